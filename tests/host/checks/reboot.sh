# shellcheck shell=bash
# The host is shut down and comes back: containers end in order, and those that should run again do.

needs systemd || return 0

check "containers before the reboot" <<'END'
need_image debian/13
need_image busybox
duet launch debian/13 always -c boot.autostart=true -c boot.autostart.priority=5 -c boot.autostart.delay=4 \
    -c boot.stop.priority=1 --wait=ipv4,ready
duet launch busybox never -c boot.autostart=false --wait=ipv4
duet launch busybox ran --wait=ipv4
duet launch debian/13 ran2 -c boot.stop.priority=9 --wait=ready
duet launch debian/13 stubborn -c boot.autostart.priority=1 -c boot.stop.priority=20 -c boot.host_shutdown_timeout=8 \
    --wait=ready
duet init busybox idle
mark() { # mark INSTANCE COMMAND: what its system does when it is stopped
    duet exec "$1" -- sh -c 'cat > /etc/systemd/system/mark.service && systemctl enable --now mark' <<UNIT
[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStopSec=infinity
ExecStart=true
ExecStop=$2
[Install]
WantedBy=multi-user.target
UNIT
}
mark always "sh -c 'date +%%s%%N > /root/ended'"
mark ran2 "sh -c 'date +%%s%%N > /root/ended'"
mark stubborn "sleep infinity"
END

started=$SECONDS status=0
output=$(reboot_host) || status=$?
report "the host reboots" $status "$output" "$started"

check "what should run does, with limits and addresses, and nothing else" <<'END'
duet wait always --for ipv4,ready
duet wait ran --for ipv4
duet wait ran2 --for ipv4,ready
duet wait stubborn --for ready
system_runs always
is STOPPED "$(duet list '^never$' -f csv -c s)" never
is STOPPED "$(duet list '^idle$' -f csv -c s)" idle
END

check "the network is there again" <<'END'
nft list table inet duet >/dev/null
duet exec always -- ping -c 1 -W 5 10.0.2.2
eventually 20 duet exec always -- ping -c 1 -W 5 ran.duet
END

check "they were stopped by their priorities, with time for their services" <<'END'
last=$(duet exec always -- cat /root/ended)
first=$(duet exec ran2 -- cat /root/ended)
[ "$first" -lt "$last" ] || { echo "ran2 ended at $first, always at $last"; exit 1; }
END

check "and were started by their priorities, with the delay" <<'END'
at() { date -d "$(duet query "/1.0/instances/$1" | jq -r .last_used_at)" +%s%N; }
waited=$((($(at stubborn) - $(at always)) / 1000000))
[ $waited -ge 4000 ] || { echo "stubborn was started $waited ms after always"; exit 1; }
[ "$(at ran)" -gt "$(at stubborn)" ]
END

check "and they go" <<'END'
duet delete --force always never ran ran2 stubborn idle
END
