# shellcheck shell=bash
# AppArmor: a profile for each running instance, and one of its own policy namespace with nesting.

needs apparmor || return 0

check "a running container has a profile, which goes with it" <<'END'
need_image debian/13
duet launch debian/13 c1 --wait=ready
grep -q '^duet_c1 (enforce)$' /sys/kernel/security/apparmor/profiles
is 'duet_c1 (enforce)' "$(duet exec c1 -- cat /proc/1/attr/apparmor/current)" "init's label"
is 'duet_c1 (enforce)' "$(duet exec c1 -- cat /proc/self/attr/apparmor/current)" "a program's label"
is 'duet_c1 (enforce)' "$(duet exec c1 --user 65534 -- cat /proc/self/attr/apparmor/current)" "a user's label"
system_runs c1
systemctl restart duetd
duet exec c1 -- true
grep -q '^duet_c1 ' /sys/kernel/security/apparmor/profiles
duet stop c1
fails grep '^duet_c1 ' /sys/kernel/security/apparmor/profiles
duet start c1
grep -q '^duet_c1 ' /sys/kernel/security/apparmor/profiles
duet delete --force c1
fails grep '^duet_c1 ' /sys/kernel/security/apparmor/profiles
END

check "a profile keeps a container from what its root could do" <<'END'
need_image debian/13
for key in false true; do
    duet launch debian/13 c1 -c security.privileged=$key --wait=ready
    fails duet exec c1 -- sh -c 'echo h > /proc/sysrq-trigger'
    fails duet exec c1 -- sh -c 'printf "changeprofile unconfined" > /proc/self/attr/apparmor/current'
    fails duet exec c1 -- sh -c 'printf "exec unconfined" > /proc/self/attr/apparmor/exec && exec true'
    duet exec c1 -- mount -t tmpfs none /mnt
    duet exec c1 -- unshare -Ur true
    duet delete --force c1
done
# A root that is the host's.
duet launch debian/13 c1 -c security.privileged=true --wait=ready
fails duet exec c1 -- umount /proc/kcore
fails duet exec c1 -- head -c 1 /proc/kcore
before=$(cat /proc/sys/kernel/core_pattern)
duet exec c1 -- sh -c 'mount -o remount,rw,bind /proc/sys/kernel || umount /proc/sys/kernel'
fails duet exec c1 -- sh -c 'echo x > /proc/sys/kernel/core_pattern'
is "$before" "$(cat /proc/sys/kernel/core_pattern)" "the host's core_pattern"
duet delete --force c1
END

check "with nesting a container has profiles of its own" <<'END'
need_image debian/13
duet launch debian/13 c1 -c security.nesting=true --wait=ready
system_runs c1
[ -d /sys/kernel/security/apparmor/policy/namespaces/lxc-duet_c1 ]
# What it sees of itself is its own namespace; the host's profile holds it all the same.
is unconfined "$(duet exec c1 -- cat /proc/self/attr/apparmor/current)" "a program's label as it sees it"
pid=$(duet query /1.0/instances/c1/state | jq .pid)
is 'duet_c1//&:lxc-duet_c1:unconfined (enforce)' "$(cat "/proc/$pid/attr/apparmor/current")" "init's label on the host"
duet exec c1 -- test -e /sys/kernel/security/apparmor/.replace
# A profile that is compiled here and loaded there, by the container's root.
printf 'profile "own" { file, deny /etc/hostname r, }\n' | apparmor_parser -QKS > /tmp/own.bin
duet file push /tmp/own.bin c1/root/own.bin
duet exec c1 -- sh -c 'cat /root/own.bin > /sys/kernel/security/apparmor/.replace'
duet exec c1 -- grep -q '^own ' /sys/kernel/security/apparmor/profiles
fails grep '^own ' /sys/kernel/security/apparmor/profiles
fails duet exec c1 -- sh -c 'printf "exec own" > /proc/self/attr/apparmor/exec && exec cat /etc/hostname'
duet delete --force c1
[ ! -e /sys/kernel/security/apparmor/policy/namespaces/lxc-duet_c1 ]
rm /tmp/own.bin
END

check "profiles that a dead daemon left are removed" <<'END'
need_image busybox
duet launch busybox c1
pid=$(duet query /1.0/instances/c1/state | jq .pid)
monitor=$(ps -o ppid= -p "$pid")
systemctl kill -s KILL --kill-whom=main duetd
kill -KILL $monitor
eventually 30 duet exec c1 -- true
duet delete --force c1
fails grep '^duet_c1 ' /sys/kernel/security/apparmor/profiles
END

CHECK_SECONDS=900 check "Docker of Debian runs a container in a nested instance" <<'END'
need_image debian/12
[ -d /root/docker ] || skip "no packages of Docker in target/clients: the end-to-end suite gets them"
duet launch debian/12 c1 -c security.nesting=true --wait=ready
duet file push -q -r /root/docker c1/root
duet exec c1 -- sh -c 'DEBIAN_FRONTEND=noninteractive dpkg -i /root/docker/*.deb' >/dev/null 2>&1
duet exec c1 -- systemctl is-active docker
duet init busybox b1
duet file pull b1/bin/busybox /tmp/busybox
duet file push -q -p --mode 755 /tmp/busybox c1/root/own/bin/sh
duet exec c1 -- sh -c 'tar -C /root/own -c . | docker import - own'
is 1 "$(duet exec c1 -- docker run --rm own /bin/sh -c 'echo $$')" "the process id of a container in Docker"
# Docker's own profile, in the instance's namespace and not in the host's.
duet exec c1 -- grep -q '^docker-default ' /sys/kernel/security/apparmor/profiles
fails grep '^docker-default ' /sys/kernel/security/apparmor/profiles
duet delete --force c1 b1
rm /tmp/busybox
END
