# shellcheck shell=bash
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
# Addresses, names and the way out, beside the host's own network services.

check "two containers" <<'END'
need_image debian/13
duet launch debian/13 n1 --wait=ipv4,ready
duet launch debian/13 n2 --wait=ipv4,ready
eventually 30 sh -c 'duet list -f csv -c 6 "^n1$" | grep -q ^fd42:'
END

check "they know each other by name, and the host reaches them" <<'END'
duet exec n1 -- ping -c 1 -W 5 n2.duet
duet exec n1 -- ping -c 1 -W 5 -4 n2.duet
ping -c 1 -W 5 "$(duet list n1 -f csv -c 4 | cut -d ' ' -f 1)"
END

way_out='duet exec n1 -- ping -c 1 -W 5 "$(outside)"'

check "they reach the world through the host" <<END
$way_out
END

check "restarting systemd-networkd and systemd-resolved takes nothing away" <<END
need systemd
before=\$(ip -br addr show duetbr0)
systemctl restart systemd-networkd systemd-resolved
is "\$before" "\$(ip -br addr show duetbr0)"
$way_out
END

check "restarting nftables.service, which flushes all rules, is mended" <<END
need systemd
systemctl restart nftables
eventually 20 $way_out
END

check "a restart of the daemon mends what nftables.service flushed" <<END
need systemd
systemctl restart nftables
systemctl restart duetd
$way_out
END

check "duet doctor names what ufw drops" <<'END'
command -v ufw >/dev/null || skip "ufw is not installed"
ufw --force enable
duet doctor > /tmp/doctor || true
ufw --force disable
grep -q 'ufw allow in on duetbr0' /tmp/doctor
END

check "and they go" <<'END'
duet delete --force n1 n2
is "" "$(ip -br link | grep '^duet[0-9a-f]\{8\}' || true)" "what is left"
END
