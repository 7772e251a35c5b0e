# shellcheck shell=bash
# The host is shut down and comes back: containers end in order, and those that should run again do.

check "containers before the reboot" <<'END'
need_image debian/13
need_image busybox
duet launch debian/13 always -c boot.autostart=true --wait=ipv4,ready
duet launch busybox never -c boot.autostart=false --wait=ipv4
duet launch busybox ran --wait=ipv4
duet launch debian/13 ran2 --wait=ready
duet init busybox idle
duet exec always -- sh -c 'cat > /etc/systemd/system/mark.service && systemctl enable --now mark' <<UNIT
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecStop=touch /root/ended-in-order
[Install]
WantedBy=multi-user.target
UNIT
END

started=$SECONDS status=0
output=$(reboot_host) || status=$?
report "the host reboots" $status "$output" "$started"

check "what should run does, with limits and addresses, and nothing else" <<'END'
duet wait always --for ipv4,ready
duet wait ran --for ipv4
duet wait ran2 --for ipv4,ready
system_runs always
is STOPPED "$(duet list '^never$' -f csv -c s)" never
is STOPPED "$(duet list '^idle$' -f csv -c s)" idle
END

check "the network is there again" <<'END'
nft list table inet duet >/dev/null
duet exec always -- ping -c 1 -W 5 10.0.2.2
eventually 20 duet exec always -- ping -c 1 -W 5 ran.duet
END

check "services in the containers were stopped in order" <<'END'
duet exec always -- test -e /root/ended-in-order
END

check "and they go" <<'END'
duet delete --force always never ran ran2 idle
END
