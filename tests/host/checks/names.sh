# shellcheck shell=bash disable=SC2016
# Instances among the host's machines, and their names on the host.

needs systemd || return 0

check "machinectl lists an instance and shows it" <<'END'
need_image debian/13
command -v machinectl >/dev/null || skip "no systemd-machined in the image"
duet launch debian/13 named --wait=ipv4,ready
eventually 20 machinectl status named
machinectl list --no-legend --no-pager | grep -qE '^named +container +duet '
is duet-named.scope "$(machinectl show named -p Unit --value)"
is "$(duet query /1.0/instances/named/state | jq .pid)" "$(machinectl show named -p Leader --value)"
END

check "it is still there after a restart of the daemon, and comes back with the instance" <<'END'
command -v machinectl >/dev/null || skip "no systemd-machined in the image"
systemctl restart duetd
eventually 20 machinectl status named
duet restart named
duet wait named --for ipv4,ready
eventually 20 sh -c '[ "$(machinectl show named -p Leader --value)" = "$(duet query /1.0/instances/named/state | jq .pid)" ]'
END

check "the host resolves names of instances, and asks the bridge for nothing else" <<'END'
eventually 20 resolvectl query --cache=no named.duet
eventually 20 ping -c 1 -W 5 named.duet
is '~duet' "$(resolvectl domain duetbr0 | sed 's/.*: //')" "the bridge's domain"
is no "$(resolvectl default-route duetbr0 | sed 's/.*: //')" "whether it is the way for all names"
END

check "also after systemd-resolved was restarted or stopped for a while" <<'END'
systemctl restart systemd-resolved
eventually 20 resolvectl query --cache=no named.duet
systemctl stop systemd-resolved
rm -rf /run/systemd/resolve/netif
systemctl start systemd-resolved
eventually 20 resolvectl query --cache=no named.duet
END

check "a second network has its own domain" <<'END'
duet network create br-two dns.domain=two.example ipv6.address=none
eventually 20 sh -c 'resolvectl domain br-two | grep -q "~two.example"'
duet network set br-two dns.mode=none
eventually 20 sh -c '! resolvectl domain br-two | grep -q "~two.example"'
duet network delete br-two
eventually 20 sh -c '[ "$(systemctl show -p LoadState --value "duet-dnsmasq-br\\x2dtwo.scope")" = not-found ]'
END

check "it is no machine any more once it is gone" <<'END'
duet delete --force named
if command -v machinectl >/dev/null; then
    eventually 10 sh -c '! machinectl status named'
fi
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
END
