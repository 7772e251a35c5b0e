# shellcheck shell=bash disable=SC2016
# The daemon comes and goes, by systemctl and by force, and what it started stays.

needs systemd || return 0

check "containers to leave alone" <<'END'
need_image debian/13
need_image busybox
duet launch debian/13 stays --wait=ipv4,ready
duet launch busybox stays2 --wait=ipv4
duet config set stays limits.memory=400MiB
# IPv6 addresses come by router advertisement, a moment later.
eventually 30 sh -c '[ $(duet list -f csv -c 6 | grep -c ^fd42:) = 2 ]'
duet list -f csv > /tmp/before
duet query /1.0/instances/stays/state | jq .pid > /tmp/pid
END

survived='is "$(cat /tmp/pid)" "$(duet query /1.0/instances/stays/state | jq .pid)" "its init"
is 419430400 "$(in_cgroup stays memory.max)"
eventually 20 sh -c "duet list -f csv | cmp - /tmp/before"
duet exec stays -- systemctl is-system-running
duet exec stays2 -- true
is 1 "$(pgrep -xc dnsmasq)" "how many dnsmasq run,"'

check "systemctl restart duetd" <<END
systemctl restart duetd
$survived
END

check "systemctl stop duetd, and start" <<END
systemctl stop duetd
kill -0 "\$(cat /tmp/pid)"
systemctl start duetd
$survived
END

check "kill -9, and systemd starts it again" <<END
was=\$(systemctl show -p MainPID --value duetd)
kill -9 "\$was"
eventually 60 sh -c "duet query /1.0 && [ \\\$(systemctl show -p MainPID --value duetd) != \$was ]"
$survived
END


check "what was left running can be stopped, started and removed" <<'END'
duet stop stays
duet start stays
duet wait stays --for ipv4,ready
system_runs stays
duet delete --force stays stays2
END
