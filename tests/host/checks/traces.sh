# shellcheck shell=bash
# What all the others left: in the journal, in the kernel's log, on the host. The last file.

needs systemd || return 0

check "no unit of the host failed" <<'END'
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
END

# network.sh flushes the host's firewall; scopes.sh kills dnsmasq and a monitor and stops the bus. The daemon is right to
# speak of that.
check "neither duetd nor dnsmasq wrote an error" <<'END'
is "" "$(journalctl -p err --no-pager -q -o short -t dnsmasq -t dnsmasq-dhcp)" "the journal"
is "" "$(journalctl --no-pager -q -o cat -t duetd | grep -E ' (ERROR|WARN) |panicked' \
    | grep -vE 'the firewall table "inet duet" was removed; loading it again|dnsmasq has ended; starting it again' \
    | grep -vE "an instance's monitor is gone|systemd makes no scope, instances start without one|systemd-resolved is not told of the networks|systemd-machined keeps an instance that has ended" || true)" "the daemon's log"
END

# apparmor.sh tries to leave a profile.
check "the kernel and AppArmor had nothing to complain of" <<'END'
is "" "$(journalctl -k --no-pager -q -o cat | grep -E 'apparmor="DENIED"|Oops|BUG:|WARNING: CPU|Call Trace' \
    | grep -vE 'operation="change_(profile|onexec)" profile="duet_c1" name="unconfined" ' || true)" "the log"
END

check "nothing is left of what was deleted" <<'END'
is "" "$(duet list -f csv -c n)" "the list"
is "" "$(find /sys/fs/cgroup/duet.slice /sys/fs/cgroup/duet -mindepth 1 -maxdepth 1 -type d ! -name 'duet-dnsmasq-*' 2>/dev/null)" "the cgroups"
is "" "$(ip -br link | grep '^duet[0-9a-f]\{8\}' || true)" "the links"
fails pgrep -x 'duet-monitor|duet-vm-monitor|duet-vmm|qemu-system-.*'
fails grep -E ' /var/lib/duet' /proc/self/mountinfo
END
