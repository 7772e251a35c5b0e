# shellcheck shell=bash disable=SC2034
# The Debian package: what it brings, what systemd does with its units, upgrades, removal and purge.

needs systemd || return 0

CHECK_SECONDS=400

check "apt has installed all files, for root and by root" <<'END'
dpkg --verify duet
for file in /usr/bin/duet{,d,-monitor,-vm-monitor,-vmm,-agent} \
    /usr/lib/systemd/system/{duetd.service,duetd.socket,duet-instances.service} \
    /usr/lib/{sysctl,sysusers,tmpfiles}.d/duet.conf /usr/share/man/man1/duet.1.gz /usr/share/doc/duet/copyright \
    /usr/share/bash-completion/completions/duet /usr/share/zsh/site-functions/_duet /usr/share/fish/vendor_completions.d/duet.fish; do
    [ -s $file ]
    is "duet: $file" "$(dpkg -S $file)"
done
for script in postinst prerm postrm; do [ -x /var/lib/dpkg/info/duet.$script ]; done
is "" "$(dpkg -L duet | xargs stat -c '%u:%g %A %n' | grep -Ev '^0:0 [dl-]rw[x-]r-[x-]r-[x-] ' | grep -v '^0:0 l' || true)" "what others may write"
dpkg-query -W -f '${Depends}' duet | grep -q 'dnsmasq-base.*nftables'
END

check "the group, the directory and the socket are as they should" <<'END'
is "711 root root" "$(stat -c '%a %U %G' /var/lib/duet)" "the directory"
is "660 root duet" "$(stat -c '%a %U %G' /var/lib/duet/unix.socket)" "the socket"
is "active active active" "$(systemctl is-active duetd.socket duetd.service duet-instances.service | xargs)"
is 65536 "$(sysctl -n fs.inotify.max_user_instances)"
END

check "who connects starts the daemon" <<'END'
systemctl stop duetd.service
is inactive "$(systemctl is-active duetd.service || true)"
duet list
# It answers before its networks are up, and only then calls itself active.
eventually 60 systemctl is-active duetd.service
END

check "nobody is turned away while the daemon restarts" <<'END'
for i in 1 2 3; do
    systemctl restart --no-block duetd.service
    duet list
    duet query /1.0 >/dev/null
done
eventually 60 systemctl is-active duetd.service
systemctl reset-failed duetd.service
END

check "a container to leave alone" <<'END'
need_image busybox
duet launch busybox kept --wait=ipv4
duet query /1.0/instances/kept/state | jq .pid > /tmp/pid
END

check "a daemon that stands still is replaced, by systemd's watchdog" <<'END'
mkdir -p /run/systemd/system/duetd.service.d
printf '[Service]\nWatchdogSec=4\nTimeoutAbortSec=2\nTimeoutStopSec=2\n' > /run/systemd/system/duetd.service.d/watch.conf
systemctl daemon-reload
systemctl restart duetd
was=$(systemctl show -p MainPID --value duetd)
# Turning, it is left alone.
ran() { [ $SECONDS -ge 12 ]; }
SECONDS=0
eventually 30 ran
is "$was" "$(systemctl show -p MainPID --value duetd)" "the process"
kill -STOP "$was"
replaced() { [ "$(systemctl show -p MainPID --value duetd)" != "$was" ] && systemctl is-active duetd; }
eventually 90 replaced
rm -r /run/systemd/system/duetd.service.d
systemctl daemon-reload
systemctl restart duetd
journalctl -u duetd --no-pager -q -o cat | grep -qi 'watchdog timeout'
is "$(cat /tmp/pid)" "$(duet query /1.0/instances/kept/state | jq .pid)" "the instance's init"
END

check "an upgrade replaces the daemon and no instance" <<'END'
was=$(systemctl show -p MainPID --value duetd)
install_package 2
is 1.1 "$(dpkg-query -W -f '${Version}' duet)"
fails is "$was" "$(systemctl show -p MainPID --value duetd)"
is "$(cat /tmp/pid)" "$(duet query /1.0/instances/kept/state | jq .pid)" "the instance's init"
is "active active active" "$(systemctl is-active duetd.socket duetd.service duet-instances.service | xargs)"
END

check "removal stops the instances and leaves only their state" <<'END'
apt-get remove -q -y duet
[ -e /var/lib/duet/duet.db ]
[ ! -e /usr/bin/duetd ]
fails pgrep -x 'duetd|duet-monitor|duet-vm-monitor|duet-vmm|dnsmasq'
fails nft list table inet duet 2>/dev/null
fails ip link show duetbr0 2>/dev/null
fails kill -0 "$(cat /tmp/pid)" 2>/dev/null
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
END

check "installed again, it starts what ran" <<'END'
install_package 1
duet wait kept --for ipv4 --timeout 120
END

check "a purge leaves instances" <<'END'
apt-get purge -q -y duet
[ -e /var/lib/duet/duet.db ]
install_package 2
duet wait kept --for ipv4 --timeout 120
duet delete --force kept
END

check "without instances a purge leaves nothing" <<'END'
apt-get purge -q -y duet
[ ! -e /var/lib/duet ]
is "" "$(find /etc/systemd /usr/lib/systemd /var/lib/systemd -name 'duet*' ! -name 'duet-command*' ! -name '*duet.command*')" "what is left"
is "" "$(systemctl list-units --all --plain --no-legend 'duetd*' 'duet-instances*')" "the units"
END

check "and it is back, with its images" <<'END'
install_package 1
import_images
END

unset CHECK_SECONDS
