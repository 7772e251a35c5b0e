# shellcheck shell=bash disable=SC2016
# Each instance, and each network's dnsmasq, is a unit of the host's systemd.

needs systemd || return 0

check "an instance runs in a scope of its own, its monitor beside it" <<'END'
need_image busybox
duet launch busybox sc-1 --wait=ipv4
is active "$(systemctl is-active 'duet-sc\x2d1.scope')"
is duet.slice "$(systemctl show -p Slice --value 'duet-sc\x2d1.scope')"
is yes "$(systemctl show -p Delegate --value 'duet-sc\x2d1.scope')"
is infinity "$(systemctl show -p TasksMax --value 'duet-sc\x2d1.scope')"
pid=$(duet query /1.0/instances/sc-1/state | jq .pid)
grep -q '^0::/duet.slice/duet-sc\\x2d1.scope/container/payload' "/proc/$pid/cgroup"
is duet-monitor "$(ps -o comm= -p "$(in_scope sc-1 monitor/cgroup.procs)")" "what is beside it"
is "" "$(in_scope sc-1 cgroup.procs)" "what is in the scope itself"
systemd-cgls --no-pager -u duet.slice | grep -q 'duet-sc\\x2d1.scope'
systemctl status --no-pager 'duet-sc\x2d1.scope' | grep -q 'Duet instance sc-1'
END

check "so does dnsmasq, and nothing but the daemon is left in its own unit" <<'END'
eventually 20 systemctl is-active duet-dnsmasq-duetbr0.scope
pid=$(pgrep -x dnsmasq)
grep -q '^0::/duet.slice/duet-dnsmasq-duetbr0.scope$' "/proc/$pid/cgroup"
is "$(systemctl show -p MainPID --value duetd)" "$(cat /sys/fs/cgroup/system.slice/duetd.service/cgroup.procs)" "its processes"
END

check "a dnsmasq that died is replaced, in its scope" <<'END'
was=$(pgrep -x dnsmasq)
kill -9 "$was"
eventually 30 sh -c '[ "$(pgrep -x dnsmasq)" != '"$was"' ] && grep -q "/duet.slice/duet-dnsmasq-duetbr0.scope$" /proc/$(pgrep -x dnsmasq)/cgroup'
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
END

check "restart and kill -9 of the daemon leave the scope as it is" <<'END'
pid=$(duet query /1.0/instances/sc-1/state | jq .pid)
invocation=$(systemctl show -p InvocationID --value 'duet-sc\x2d1.scope')
systemctl restart duetd
is "$pid" "$(duet query /1.0/instances/sc-1/state | jq .pid)"
was=$(systemctl show -p MainPID --value duetd)
kill -9 "$was"
eventually 60 sh -c "duet query /1.0 && [ \$(systemctl show -p MainPID --value duetd) != $was ]"
is "$pid" "$(duet query /1.0/instances/sc-1/state | jq .pid)"
is "$invocation" "$(systemctl show -p InvocationID --value 'duet-sc\x2d1.scope')" "the unit's run"
duet exec sc-1 -- true
END

check "restarts at once find the former scope gone" <<'END'
for i in 1 2 3; do
    duet restart sc-1 --force
    is active "$(systemctl is-active 'duet-sc\x2d1.scope')"
done
END

check "no scope is left after stop, stop --force, kill -9 of the monitor or of init, and none failed" <<'END'
gone() { eventually 20 sh -c '[ "$(systemctl show -p LoadState --value "duet-sc\\x2d1.scope")" = not-found ]'; }
duet stop sc-1
gone
duet start sc-1
duet stop sc-1 --force
gone
duet start sc-1
kill -9 "$(in_scope sc-1 monitor/cgroup.procs)"
gone
eventually 20 sh -c '[ "$(duet list sc-1 -f csv -c s)" = STOPPED ]'
duet start sc-1
kill -9 "$(duet query /1.0/instances/sc-1/state | jq .pid)"
gone
eventually 20 sh -c '[ "$(duet list sc-1 -f csv -c s)" = STOPPED ]'
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
test ! -e '/sys/fs/cgroup/duet.slice/duet-sc\x2d1.scope'
END

check "a daemon that is killed during starts leaves no scope behind" <<'END'
for delay in 0.05 0.2 0.5; do
    duet start sc-1 2>/dev/null &
    read -r -t $delay <> <(:) || true
    was=$(systemctl show -p MainPID --value duetd)
    kill -9 "$was"
    wait || true
    eventually 60 sh -c "duet query /1.0 && [ \$(systemctl show -p MainPID --value duetd) != $was ]"
    # It was started or it was not.
    case $(duet list sc-1 -f csv -c s) in
        RUNNING) is active "$(systemctl is-active 'duet-sc\x2d1.scope')"; duet stop sc-1 --force ;;
        STOPPED) ;;
        *) duet list sc-1; exit 1 ;;
    esac
    eventually 20 sh -c '[ "$(systemctl show -p LoadState --value "duet-sc\\x2d1.scope")" = not-found ]'
done
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
END

check "without the bus an instance starts the direct way, and is found again" <<'END'
systemctl stop dbus.socket dbus.service
duet start sc-1
[ -d /sys/fs/cgroup/duet/sc-1/payload ]
systemctl start dbus.socket dbus.service
systemctl restart duetd
is RUNNING "$(duet list sc-1 -f csv -c s)"
duet stop sc-1 --force
[ ! -e /sys/fs/cgroup/duet/sc-1 ]
duet start sc-1
is active "$(systemctl is-active 'duet-sc\x2d1.scope')"
END

check "and it goes" <<'END'
duet delete --force sc-1
END
