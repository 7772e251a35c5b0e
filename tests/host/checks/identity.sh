# shellcheck shell=bash
# What a container takes for its own and for the machine's.

check "each boot of a container has an id of its own" <<'END'
need_image debian/13
duet launch debian/13 boots --wait=ready
boot_id() { duet exec boots -- cat /proc/sys/kernel/random/boot_id; }
first=$(boot_id)
fails is "$(cat /proc/sys/kernel/random/boot_id)" "$first"
duet restart boots
duet wait boots --for ready
fails is "$first" "$(boot_id)"
END

check "so its journal knows the boot before" <<'END'
duet exec boots -- journalctl -b -1 --no-pager -q -n 5 | grep -q .
END

check "and it goes" <<'END'
duet delete --force boots
END
