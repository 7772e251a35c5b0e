# shellcheck shell=bash disable=SC2034
# Beside ufw and Docker instances are reached, or the doctor and a warning name the rule in the way.
# And `duet doctor --fix` mends it, for good.

needs systemd || return 0

CHECK_SECONDS=400

read -r -d '' helpers <<'END' || true
# Over TCP, since ufw forwards pings by itself.
reaches() {
    local answer
    answer=$(printf 'GET /hello HTTP/1.0\r\n\r\n' | timeout 20 duet exec near -- nc -w 5 192.0.2.2 80) || true
    is hello "${answer##*$'\n'}" "what the world answers"
}
knows() { duet exec near -- nslookup near.duet; }
all_well() {
    reaches
    knows
    duet restart --force near
    duet wait near --for ipv4 --timeout 60
    reaches
}
warned() {
    duet query '/1.0/warnings?recursion=1' | jq -e --arg what "$1" 'any(.[]; .status != "resolved"
        and .type == "Firewall of the host cuts instances off" and (.last_message | contains($what)))'
}
unwarned() { ! warned ''; }
named() { duet doctor > /tmp/doctor || true; grep -q "$1" /tmp/doctor || { cat /tmp/doctor; return 1; }; }
END

# It knows no way back to instances, so that it takes NAT to be answered.
check "a world behind the host" <<'END'
ip netns add world
ip link add world0 type veth peer name world1 netns world
ip addr add 192.0.2.1/24 dev world0
ip link set world0 up
ip -n world addr add 192.0.2.2/24 dev world1
ip -n world link set world1 up
mkdir -p /srv/world
echo hello > /srv/world/hello
ip netns exec world busybox httpd -p 80 -h /srv/world
END

check "a container on a host without neighbours" <<END
$helpers
need_image busybox
duet launch busybox near --wait=ipv4
all_well
unwarned
END

check "ufw is enabled: the doctor and a warning name what it drops" <<END
$helpers
ufw --force enable
eventually 60 warned 'ufw drops'
named 'ufw allow in on duetbr0'
named 'ufw route allow in on duetbr0'
fails reaches
END

check "duet doctor --fix lets instances past ufw, and they stay so" <<END
$helpers
duet doctor --fix
all_well
eventually 60 unwarned
ufw reload
reaches
systemctl restart ufw
all_well
systemctl restart duetd
all_well
unwarned
END

check "and without ufw" <<END
$helpers
ufw --force reset
all_well
END

check "Docker starts after Duet" <<END
$helpers
systemctl start docker
reaches || { named DOCKER-USER; duet doctor --fix; }
all_well
eventually 60 unwarned
END

check "Docker starts before Duet: the doctor and a warning name what it drops" <<END
$helpers
systemctl stop duetd.socket duetd docker.socket docker
nft delete table ip filter
# As after a boot: Docker closes the chain if it is the one that turns forwarding on.
sysctl -q -w net.ipv4.ip_forward=0
systemctl start docker
nft list chain ip filter FORWARD | grep 'policy drop'
systemctl start duetd.socket duetd
eventually 60 warned "Docker's firewall drops"
warned 'chain ip filter FORWARD'
named 'iptables -I DOCKER-USER -i duetbr0 -j ACCEPT'
fails reaches
END

check "duet doctor --fix lets instances past Docker, and they stay so" <<END
$helpers
duet doctor --fix
all_well
eventually 60 unwarned
systemctl restart docker
all_well
systemctl daemon-reload
reaches
END

check "also when the host has forgotten Docker's rules, as after a boot" <<END
$helpers
systemctl stop docker.socket docker
nft delete table ip filter
sysctl -q -w net.ipv4.ip_forward=0
systemctl start docker
nft list chain ip filter FORWARD | grep 'policy drop'
systemctl restart duetd
all_well
is 1 "\$(nft list chain ip filter DOCKER-USER | grep -c 'iifname "duetbr0"')" "how many such rules there are,"
END

check "ufw beside Docker" <<END
$helpers
ufw --force enable
eventually 60 warned 'ufw drops'
duet doctor --fix
all_well
eventually 60 unwarned
END

check "nftables.service flushes everybody's rules, and ours are back" <<END
$helpers
systemctl restart nftables
eventually 60 reaches
END

check "and they go" <<'END'
duet delete --force near
ufw --force reset
systemctl stop docker.socket docker containerd
rm -r /etc/systemd/system/docker.service.d
systemctl daemon-reload
nft delete table ip filter || true
nft delete table ip nat || true
nft delete table ip6 filter || true
ip link delete docker0 || true
ip netns pids world | xargs kill
ip netns delete world
rm -r /srv/world
END

unset CHECK_SECONDS
