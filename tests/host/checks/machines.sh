# shellcheck shell=bash disable=SC2034
# Virtual machines as instances, on a KVM that is one: what an admin does to them, beside containers of the same images.
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
needs systemd || return 0

CHECK_SECONDS=400

# Of a check that failed, what the machines said is shown too, since they are deleted then.
machines_common=$(cat <<'END'
tell() {
    local status=$? log
    case $status in 0 | 77) return ;; esac
    for log in /var/lib/duet/logs/*/*.log; do [ ! -s "$log" ] || { echo "== $log"; tail -n 30 "$log"; }; done
    journalctl -u duetd --no-pager -n 30 -o cat
}
trap tell EXIT
now() { echo $((${EPOCHREALTIME/./} / 1000)); }
pid() { duet query "/1.0/instances/$1/state" | jq .pid; }
inside() { duet exec "$1" -- sh -c "$2"; }
ready() { duet wait "$1" --for ipv4,ready --timeout 250; }
status() { duet list -f csv -c ns | sed -n "s/^$1,//p"; }
unloaded() { [ "$(systemctl show -p LoadState --value "$1")" = not-found ]; }
# ended INSTANCE: nothing of it runs any more.
ended() {
    is STOPPED "$(status "$1")" "its status"
    eventually 20 unloaded "$(scope_of "$1")"
}
kill_daemon() {
    local was
    was=$(systemctl show -p MainPID --value duetd)
    kill -9 "$was"
    another() { duet query /1.0 && [ "$(systemctl show -p MainPID --value duetd)" != "$was" ]; }
    eventually 60 another
}
END
)
machine() { check "$1" < <(printf '%s\n' "$machines_common"; cat); }

machine "KVM is found to be of use, and virtual machines are launched from containers' images" <<'END'
need_image debian/13
need_image busybox
eventually 60 duet-vmm probe
times=
launch() { # launch IMAGE NAME WHAT MORE...
    local began
    began=$(now)
    duet launch "$1" "$2" --wait="$3" --wait-timeout 250 "${@:4}"
    times="$times $1 $(($(now) - began)) ms,"
}
launch busybox b1 ipv4 --vm -c limits.memory=192MiB
launch busybox b2 ipv4 --vm -c limits.memory=192MiB
launch debian/13 v1 ipv4,ready --vm -c limits.cpu=2 -c limits.memory=512MiB
is kvm "$(duet config get v1 volatile.vm.engine)" "the engine"
duet info v1 | grep -qx "Engine: KVM"
duet doctor --json | jq -e '.[] | select(.name == "KVM") | .message | startswith("KVM works")' >/dev/null
duet launch debian/13 c1 --wait=ipv4,ready
duet list -f csv -c nst | sort > /tmp/list
printf '%s\n' {b1,b2}",RUNNING,VIRTUAL-MACHINE" c1,RUNNING,CONTAINER v1,RUNNING,VIRTUAL-MACHINE | diff - /tmp/list
system_runs v1
echo "launch until there is an address, or all is ready:$times"
END

machine "limits, name, card and kernel are those of its configuration" <<'END'
is 2 "$(inside v1 nproc)" "its CPUs"
is 1 "$(inside b1 nproc)" "its CPUs"
memory=$(inside v1 "sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo")
[ "$memory" -gt $((420 << 10)) ]
[ "$memory" -le $((512 << 10)) ]
is v1 "$(inside v1 hostname)" "its name"
is "$(uname -r)" "$(inside v1 'uname -r')" "its kernel: the host's newest"
is "$(duet config get v1 volatile.eth0.hwaddr)" "$(inside v1 'cat /sys/class/net/eth0/address')" "its card"
inside v1 'test -e /lib/modules/$(uname -r)/modules.dep'
is kvm "$(inside v1 systemd-detect-virt)"
END

machine "exec passes input, output, status and a terminal on" <<'END'
is out "$(duet exec v1 -- echo out)"
status=0
duet exec v1 -- sh -c 'exit 7' || status=$?
is 7 $status "the status"
head -c 3000000 /dev/urandom > /tmp/sent
duet exec v1 -- cat < /tmp/sent | cmp - /tmp/sent
script -qec 'stty cols 90 rows 30; duet exec v1 -- sh -c "tty; stty size"' /dev/null > /tmp/terminal </dev/null
grep -q '/dev/pts/' /tmp/terminal
grep -q '30 90' /tmp/terminal
END

machine "files go in and come out" <<'END'
head -c 1000000 /dev/urandom > /tmp/sent
duet file push /tmp/sent v1/root/new/sent -p --mode 0640 --uid 1000 --gid 2000
is "640 1000 2000 1000000" "$(inside v1 "stat -c '%a %u %g %s' /root/new/sent")"
duet file pull v1/root/new/sent - | cmp - /tmp/sent
END

machine "it is reached by address and by name from the host, a container and another machine" <<'END'
address=$(duet list v1 -f csv -c 4 | cut -d ' ' -f 1)
ping -c 1 -W 10 "$address"
duet exec c1 -- ping -c 1 -W 10 "$address"
duet exec b1 -- ping -c 1 -W 10 "$address"
eventually 20 resolvectl query --cache=no v1.duet
eventually 20 ping -c 1 -W 5 v1.duet
for from in c1 b1; do eventually 20 duet exec $from -- ping -c 1 -W 5 v1.duet; done
eventually 20 duet exec v1 -- ping -c 1 -W 5 c1.duet
eventually 20 ping -c 1 -W 5 "$(duet list v1 -f csv -c 6 | cut -d ' ' -f 1)"
END

machine "it runs in a scope of its own, its monitor beside it" <<'END'
pid=$(pid v1)
is duet-vmm "$(cat "/proc/$pid/comm")" "its process"
is active "$(systemctl is-active duet-v1.scope)"
is duet.slice "$(systemctl show -p Slice --value duet-v1.scope)"
grep -q '^0::/duet.slice/duet-v1.scope/container/payload' "/proc/$pid/cgroup"
is /usr/bin/duet-vm-monitor "$(readlink "/proc/$(in_scope v1 monitor/cgroup.procs)/exe")" "what is beside it"
systemd-cgls --no-pager -u duet.slice | grep -q 'duet-v1.scope'
systemctl status --no-pager duet-v1.scope | grep -q 'Duet instance v1'
END

machine "its process is its own user, without rights and with nothing of the host's in sight" <<'END'
pid=$(pid v1)
# of FIELD PID
of() { sed -n "s/^$1:\t*//p" "/proc/$2/status" | xargs; }
read -r uid rest <<<"$(of Uid "$pid")"
is "$uid $uid $uid" "$rest" "its users"
read -r gid rest <<<"$(of Gid "$pid")"
is "$gid $gid $gid" "$rest" "its groups"
[ "$uid" -gt 65535 ] && [ "$gid" -gt 65535 ]
is "" "$(getent passwd "$uid" || true)" "the user's name"
is "" "$(of Groups "$pid")" "its other groups"
fails is "$(of Uid "$pid")" "$(of Uid "$(pid b1)")" >/dev/null
for kind in Inh Prm Eff Amb; do is 0000000000000000 "$(of Cap$kind "$pid")" "Cap$kind"; done
is 1 "$(of NoNewPrivs "$pid")" "no new privileges"
is 2 "$(of Seccomp "$pid")" "the filter of system calls"
for thread in /proc/"$pid"/task/*; do
    grep -q '^Seccomp:.2$' "$thread/status"
    grep -q "^Uid:.$uid.$uid" "$thread/status"
done
for kind in mnt net ipc uts pid; do
    fails is "$(readlink /proc/1/ns/$kind)" "$(readlink "/proc/$pid/ns/$kind")" >/dev/null
done
is "" "$(ls -A "/proc/$pid/root/")" "its root"
is 1 "$(wc -l < "/proc/$pid/mountinfo")" "how many mounts it has,"
# Of the host's files it has open its disks, the kernel's modules, and what KVM and the network are by.
ls -l "/proc/$pid/fd" | sed -n 's/.* -> //p' \
    | grep -vE '^(socket|pipe|anon_inode|/memfd):|^/dev/(net/tun|vhost-net|kvm|null)$|disk\.[0-9]+\.(raw|qcow2)|modules\.raw' > /tmp/open || true
is "" "$(cat /tmp/open)" "what it has open"
monitor=$(in_scope v1 monitor/cgroup.procs)
# CAP_KILL alone.
is 0000000000000020 "$(of CapEff "$monitor")" "the monitor's rights"
END

machine "what it costs the host" <<'END'
# pss FILE EXPRESSION: KiB of the mappings whose flags are so; guest memory is what wants huge pages.
pss() { awk '/^Pss:/ { pss = $2 } /^VmFlags:/ { if (('"$2"') == ($0 ~ / hg/)) sum += pss } END { print sum + 0 }' "$1"; }
vmm=$(pid b1)
monitor=$(in_scope b1 monitor/cgroup.procs)
own=$(pss "/proc/$vmm/smaps" 0)
guest=$(pss "/proc/$vmm/smaps" 1)
beside=$(awk '/^Pss:/ { print $2 }' "/proc/$monitor/smaps_rollup")
[ "$guest" -gt 50000 ]
[ "$own" -lt 6000 ] || { echo "duet-vmm itself takes $own KiB"; false; }
[ "$beside" -lt 4000 ] || { echo "the monitor takes $beside KiB"; false; }
echo "PSS of duet-vmm $own KiB beyond $guest KiB of guest memory, of the monitor $beside KiB"
END

machine "it is shut down in good order, and restarted" <<'END'
inside v1 "systemd-run -q --unit=last -p RemainAfterExit=yes -p ExecStop='/bin/touch /root/stopped' true"
before=$(inside v1 'cat /proc/sys/kernel/random/boot_id')
duet restart v1 --timeout 120
ready v1
inside v1 'test -e /root/stopped'
fails is "$before" "$(inside v1 'cat /proc/sys/kernel/random/boot_id')" >/dev/null
is active "$(systemctl is-active duet-v1.scope)"
system_runs v1
END

machine "it restarts and ends from within, and by stop and force" <<'END'
up() { eventually 90 duet exec b1 -- true; }
boot=$(inside b1 'cat /proc/sys/kernel/random/boot_id')
duet exec b1 -- reboot || true
another() { local found; found=$(inside b1 'cat /proc/sys/kernel/random/boot_id') && [ "$found" != "$boot" ]; }
eventually 90 another
is active "$(systemctl is-active duet-b1.scope)"
duet exec b1 -- poweroff || true
eventually 60 ended b1
duet start b1
up
duet stop b1 --timeout 60
ended b1
duet start b1
up
duet stop b1 --force
ended b1
duet start b1
up
END

machine "a snapshot of a running one is gone back to, and copied" <<'END'
inside b1 'echo one > /mark; sync'
duet snapshot create b1 before
inside b1 'echo two > /mark; sync'
duet copy b1/before b3
duet snapshot restore b1 before
eventually 90 duet exec b1 -- true
is one "$(inside b1 'cat /mark')"
duet start b3
eventually 90 duet exec b3 -- true
is "b3 one" "$(inside b3 'hostname; cat /mark' | xargs)"
duet delete --force b3
END

machine "a restart of the daemon, or its death, is nothing to it" <<'END'
pid=$(pid v1)
boot=$(inside v1 'cat /proc/sys/kernel/random/boot_id')
duet list -f csv -c nst4 | sort > /tmp/before
survived() {
    is "$pid" "$(pid v1)" "its process"
    eventually 30 sh -c 'duet list -f csv -c nst4 | sort | cmp - /tmp/before'
    is "$boot" "$(inside v1 'cat /proc/sys/kernel/random/boot_id')" "its boot"
    inside v1 'echo going on' | grep -qx 'going on'
}
systemctl restart duetd
survived
kill_daemon
survived
END

machine "a monitor that is killed takes its machine with it, and it can be started again" <<'END'
pid=$(pid v1)
kill -9 "$(in_scope v1 monitor/cgroup.procs)"
eventually 20 ended v1
fails kill -0 "$pid" 2>/dev/null
duet delete v1
duet delete --force b1 b2 c1
END

# "incus launch --vm" asks the image's kind first, and refuses by itself those of containers.
machine "incus makes one, lists it, enters it and deletes it" <<'END'
need_image busybox
command -v incus >/dev/null || skip "no incus in target/clients: the end-to-end suite gets it"
export INCUS_SOCKET=/var/lib/duet/unix.socket INCUS_CONF=/tmp/incus
incus query --wait -X POST /1.0/instances -d '{"name": "i1", "type": "virtual-machine", "config": {"limits.memory": "192MiB"},
    "source": {"type": "image", "alias": "busybox"}}' >/dev/null
incus start i1
eventually 90 incus exec i1 -- true
is inside "$(incus exec i1 -- echo inside)"
eventually 60 sh -c 'incus list -f csv -c nst4 | grep -q "^i1,RUNNING,VIRTUAL-MACHINE,.*(eth0)"'
incus info i1 | grep -qi 'type: virtual-machine'
incus file push /etc/hostname i1/root/pushed
is "$(cat /etc/hostname)" "$(incus exec i1 -- cat /root/pushed)"
incus stop i1
is STOPPED "$(incus list -f csv -c s i1)"
incus delete i1
END

for machines_driver in btrfs zfs; do
    machine "on a pool of $machines_driver: launch, snapshot, copy" <<END
need_image busybox
[ $machines_driver != zfs ] || need zfs
duet storage create mp $machines_driver size=3GiB
duet launch busybox p1 --vm -s mp -c limits.memory=192MiB --wait=ipv4 --wait-timeout 120
inside p1 'echo one > /mark; sync'
duet snapshot create p1 s
inside p1 'echo two > /mark; sync'
duet copy p1/s p2
duet start p2
eventually 60 duet exec p2 -- true
is one "\$(inside p2 'cat /mark')"
duet stop p1 --force
duet snapshot restore p1 s
duet start p1
eventually 60 duet exec p1 -- true
is one "\$(inside p1 'cat /mark')"
duet delete --force p1 p2
duet storage delete mp
END
done

CHECK_SECONDS=600 machine "20 that are launched at once all come up while the daemon is killed twice, and nothing leaks" <<'END'
need_image busybox
taps() { ip -br link | grep -c '^duet[0-9a-f]\{8\}' || true; }
links=$(taps)
began=$(now)
# What a daemon that died has not done is asked for again.
up() {
    until [ "$(status "$1")" = RUNNING ]; do
        [ $SECONDS -lt 400 ] || return
        if duet config show "$1" >/dev/null 2>&1; then
            duet start "$1" || true
        else
            duet launch busybox "$1" --vm -c limits.memory=128MiB || true
        fi
    done
}
for i in $(seq 20); do up m$i >/tmp/up.$i 2>&1 & done
run() { [ "$(pgrep -xc duet-vmm)" -ge "$1" ]; }
for many in 4 12; do
    eventually 200 run $many
    kill_daemon
done
wait
started=$(($(now) - began))
for i in $(seq 20); do
    eventually 200 duet exec m$i -- true
    is m$i "$(duet exec m$i -- hostname)"
done
reached=$(($(now) - began))
is 20 "$(pgrep -xc duet-vmm)" "how many machines run,"
is 20 "$(readlink /proc/[0-9]*/exe | grep -cx /usr/bin/duet-vm-monitor)" "how many monitors run,"
is 20 "$(duet list -f csv -c st | grep -cx RUNNING,VIRTUAL-MACHINE)" "how many are listed,"
is "" "$(duet list -f csv -c n | sort | uniq -d)"
free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
duet delete --force $(seq -f m%g 20)
fails pgrep -x 'duet-vmm|duet-vm-monitor|duet-monitor'
is "$links" "$(taps)" "how many links there are,"
is "" "$(find /sys/fs/cgroup/duet.slice /sys/fs/cgroup/duet -mindepth 1 -maxdepth 1 -type d ! -name 'duet-dnsmasq-*' 2>/dev/null)" "the cgroups"
is "" "$(systemctl list-units --all --plain --no-legend 'duet-m*.scope')" "the scopes"
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the failed units"
fails grep -E ' /var/lib/duet' /proc/self/mountinfo
echo "20 started after $started ms, all agents answered after $reached ms, $free MiB of the host's memory were left"
END

unset CHECK_SECONDS
