# shellcheck shell=bash
# What is done to one running container: exec, pause, restart, snapshots, copies, files.

check "a container to work with" <<'END'
need_image debian/13
duet launch debian/13 life --wait=ipv4,ready
END

check "exec passes output, status and a terminal on" <<'END'
is out "$(duet exec life -- echo out)"
duet exec life -- sh -c 'exit 7' || is 7 $? "the status"
script -qec 'stty cols 90 rows 30; duet exec life -- sh -c "tty; stty size"' /dev/null > /tmp/terminal </dev/null
grep -q '/dev/pts/' /tmp/terminal
grep -q '30 90' /tmp/terminal
END

check "pause stops every process and resume lets them go on" <<'END'
need cgroup2
duet pause life
is FROZEN "$(duet list life -f csv -c s)"
is 1 "$(in_cgroup life cgroup.events | awk '/^frozen/ { print $2 }')" "frozen"
duet resume life
is RUNNING "$(duet list life -f csv -c s)"
duet exec life -- true
END

check "restart boots it anew" <<'END'
before=$(duet exec life -- stat -c %Y /proc/1)
duet restart life
duet wait life --for ipv4,ready
system_runs life
fails is "$before" "$(duet exec life -- stat -c %Y /proc/1)"
END

check "a snapshot of a running one is gone back to, and copied" <<'END'
duet snapshot create life before
duet exec life -- touch /root/later
duet snapshot restore life before
duet wait life --for ready
duet exec life -- test ! -e /root/later
duet copy life/before life2
duet start life2
duet wait life2 --for ipv4,ready
system_runs life2
duet delete --force life2
END

check "files go in and come out, a folder of the host is shared" <<'END'
echo hello > /tmp/hello
duet file push /tmp/hello life/root/hello
is hello "$(duet file pull life/root/hello -)"
mkdir -p /srv/shared
duet config device add life shared disk source=/srv/shared path=/srv/shared shift=true
duet exec life -- touch /srv/shared/made
is 0 "$(stat -c %u /srv/shared/made)" "the owner"
duet config device remove life shared
rm -r /srv/shared
END

check "a privileged container reaches no disk of the host's and no kernel setting" <<'END'
need_image debian/13
[ -b /dev/vda ] || skip "its disk is not /dev/vda"
duet launch debian/13 mighty -c security.privileged=true --wait=ready
duet exec mighty -- sh -c "mknod /tmp/disk b $(stat -c '0x%t 0x%T' /dev/vda)"
fails duet exec mighty -- dd if=/tmp/disk of=/dev/null count=1
fails duet exec mighty -- sh -c 'echo 1 > /proc/sys/vm/drop_caches'
fails duet exec mighty -- sh -c 'echo h > /proc/sysrq-trigger'
duet delete --force mighty
END

check "and it goes" <<'END'
duet delete --force life
END
