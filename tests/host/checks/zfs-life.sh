# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
# Pools on ZFS when the daemon ends, is killed in the middle of changes, and when the host goes down.

needs systemd zfs || return 0
CHECK_SECONDS=600

# What every check of this file begins with.
read -r -d '' life_begin <<'END' || true
need_image busybox
END

life_check() { check "$1" < <(printf '%s\n' "$life_begin"; cat); }

life_check "zfs: an instance with snapshots, and a pool in a dataset of the host's" <<'END'
truncate -s 1G /var/tmp/tank
zpool create -m none tank /var/tmp/tank
duet storage create kept zfs size=2GiB
duet storage create given zfs source=tank/duet
duet launch busybox k1 -s kept --wait=ipv4
duet exec k1 -- sh -c 'echo one >/state'
duet snapshot create k1 s1
duet exec k1 -- sh -c 'echo two >/state'
duet launch busybox g1 -s given
duet exec g1 -- sh -c 'echo given >/state; sync'
END

life_check "zfs: the daemon is restarted, and the pools and what runs on them are there" <<'END'
was=$(duet query /1.0/instances/k1/state | jq .pid)
systemctl restart duetd
duet admin waitready
is "$was" "$(duet query /1.0/instances/k1/state | jq .pid)" "the init"
is two "$(duet exec k1 -- cat /state)" "the state"
duet snapshot create k1 s2
duet snapshot restore k1 s1
is one "$(duet exec k1 -- cat /state)" "the restored"
duet snapshot restore k1 s2
duet snapshot delete k1 s2
is two "$(duet exec k1 -- cat /state)" "the restored"
END

life_check "zfs: a file grows" <<'END'
fails duet storage set kept size=1GiB
duet storage set kept size=3GiB
total=$(duet query /1.0/storage-pools/kept/resources | jq .space.total)
[ "$total" -gt 2800000000 ] && [ "$total" -le 3221225472 ] || { echo "$total bytes in all"; exit 1; }
END

# Two hands make and delete while the daemon is killed at some moments. What it had begun goes when it starts again.
life_check "zfs: kill -9 in the middle of changes leaves nothing" <<'END'
load() {
    local n=0
    while [ -e /tmp/load ]; do
        n=$((n + 1))
        name=l$1-$n
        duet create busybox $name -s kept
        duet snapshot create $name a
        duet start $name
        duet snapshot create $name b
        duet snapshot restore $name a
        duet copy $name/b $name-copy
        duet delete --force $name
        duet delete --force $name-copy
    done
}
touch /tmp/load
load 1 >/dev/null 2>&1 & load 2 >/dev/null 2>&1 &
for _ in 1 2 3 4 5; do
    sleep $((RANDOM % 6 + 3)).$((RANDOM % 10))
    systemctl kill -s KILL --kill-whom=main duetd
    eventually 60 duet admin waitready
done
rm /tmp/load
wait
systemctl kill -s KILL --kill-whom=main duetd
eventually 60 duet admin waitready
duet list -f csv -c n '^l' | xargs -r duet delete --force
# k1 and its snapshot, the image, and their folders.
left() { zfs list -H -o name -t all -r kept | wc -l; }
clean() { [ "$(left)" = 9 ]; }
eventually 90 clean || { zfs list -t all -r kept; exit 1; }
is two "$(duet exec k1 -- cat /state)" "the state"
is 0 "$(grep -c ' zfs kept/\(layers\|tmp\)' /proc/self/mountinfo || true)" "how much is mounted,"
END

life_check "zfs: kill -9 while a pool is made, and while it is deleted" <<'END'
gone() { ! zpool list half && [ ! -e /var/lib/duet/disks/half.img ] && [ ! -e /var/lib/duet/storage-pools/half ]; }
all_gone() { eventually 60 gone || { zpool list; zfs list -t all; grep half /proc/self/mountinfo; ls -R /var/lib/duet/disks /var/lib/duet/storage-pools/half; duet storage list; return 1; }; }
duet storage create half zfs size=1GiB >/dev/null 2>&1 &
eventually 20 zpool list half
systemctl kill -s KILL --kill-whom=main duetd
wait
eventually 60 duet admin waitready
if duet storage show half >/dev/null 2>&1; then duet storage delete half; fi
all_gone
duet storage create half zfs size=1GiB
duet init busybox h1 -s half
duet delete h1
duet storage delete half >/dev/null 2>&1 &
unlisted() { ! duet storage show half; }
eventually 30 unlisted
systemctl kill -s KILL --kill-whom=main duetd
wait
eventually 60 duet admin waitready
all_gone
END

started=$SECONDS status=0
output=$(reboot_host) || status=$?
report "zfs: the host reboots" $status "$output" "$started"

life_check "zfs: the pools come back, and what ran on them" <<'END'
# Nobody imports the host's own pool here: it is in no cache file, as one on a disk that comes late.
zpool list tank >/dev/null 2>&1 || zpool import -d /var/tmp/tank tank
duet wait k1 --for ipv4 --timeout 120
is two "$(duet exec k1 -- cat /state)" "the state"
duet snapshot restore k1 s1
is one "$(duet exec k1 -- cat /state)" "the restored"
available() { [ "$(duet query /1.0/storage-pools/given | jq -r .status)" = Created ]; }
eventually 90 available
[ "$(duet list '^g1$' -f csv -c s)" = RUNNING ] || duet start g1
is given "$(duet exec g1 -- cat /state)" "the state in the dataset"
duet delete --force k1 g1
duet storage delete kept
duet storage delete given
is tank "$(zfs list -H -o name -r tank)" "what is left in the host's pool"
is tank "$(zpool list -H -o name)" "what zpools there are"
zpool destroy tank
rm /var/tmp/tank
END
