# shellcheck shell=bash
# Limits through the version 2 controllers, set and taken away while the container runs.

needs systemd cgroup2 || return 0

check "a container to limit" <<'END'
need_image debian/13
duet launch debian/13 limits --wait=ready
for controller in cpuset cpu io memory pids; do
    grep -qw $controller <<<"$(in_cgroup limits cgroup.controllers)"
    grep -qw $controller <<<"$(in_cgroup limits payload/cgroup.controllers)"
done
END

check "limits.memory: what takes more is killed, nothing else is" <<'END'
duet config set limits limits.memory=200MiB
is 209715200 "$(in_cgroup limits memory.max)"
duet exec limits -- dd bs=400M count=1 if=/dev/zero of=/dev/null && exit 1 || is 137 $? "dd's status"
system_runs limits
is 209715200 "$(duet query /1.0/instances/limits/state | jq .memory.total)" "the total"
duet config unset limits limits.memory
is max "$(in_cgroup limits memory.max)"
END

check "limits.memory.enforce=soft is a goal" <<'END'
duet config set limits limits.memory=200MiB
duet config set limits limits.memory.enforce=soft
is "max 209715200" "$(in_cgroup limits memory.max) $(in_cgroup limits memory.high)"
duet config unset limits limits.memory.enforce
duet config unset limits limits.memory
is "max max" "$(in_cgroup limits memory.max) $(in_cgroup limits memory.high)"
END

check "limits.cpu: fewer processors, and all of them again" <<'END'
duet config set limits limits.cpu=1
is 1 "$(duet exec limits -- nproc)"
duet config set limits limits.cpu=1-1
is 1 "$(in_cgroup limits cpuset.cpus.effective)"
duet config unset limits limits.cpu
is "$(nproc)" "$(duet exec limits -- nproc)"
END

check "limits.cpu.allowance: a quota is kept, a share is a weight" <<'END'
duet config set limits limits.cpu.allowance=20ms/100ms
is "20000 100000" "$(in_cgroup limits cpu.max)"
used() { in_cgroup limits cpu.stat | awk '/^usage_usec/ { print $2 }'; }
before=$(used)
duet exec limits -- timeout 5 sh -c 'while :; do :; done' || true
took=$(( $(used) - before ))
[ $took -lt 2000000 ] || { echo "$took us in some 5 s"; exit 1; }
duet config set limits limits.cpu.allowance=50%
is "max 100000" "$(in_cgroup limits cpu.max)"
is 50 "$(in_scope limits cpu.weight)"
systemctl daemon-reload
is 50 "$(in_scope limits cpu.weight)"
duet config set limits limits.cpu.priority=5
is 45 "$(in_scope limits cpu.weight)"
duet restart limits
duet wait limits --for ready
is 45 "$(in_scope limits cpu.weight)"
duet config unset limits limits.cpu.allowance
duet config unset limits limits.cpu.priority
is 100 "$(in_scope limits cpu.weight)"
END

check "limits.processes: one more is refused" <<'END'
duet config set limits limits.processes=60
is 60 "$(in_cgroup limits pids.max)"
duet exec limits -- bash -c 'for i in {1..80}; do sleep 60 & done' 2>/dev/null || true
[ "$(in_cgroup limits pids.current)" -le 60 ]
# Before Linux 6.11 a refusal counts in the group that forked, not in the one that has the limit.
refused=$(find /sys/fs/cgroup/duet.slice/duet-limits.scope -name pids.events -exec cat {} + | awk '/^max/ { n += $2 } END { print n }')
duet config unset limits limits.processes
[ "$refused" -gt 0 ]
is max "$(in_cgroup limits pids.max)"
END

check "limits.memory.swap: none, so much, and all" <<'END'
duet config set limits limits.memory.swap=false
is 0 "$(in_cgroup limits memory.swap.max)"
duet config set limits limits.memory.swap=64MiB
is 67108864 "$(in_cgroup limits memory.swap.max)"
duet config unset limits limits.memory.swap
is max "$(in_cgroup limits memory.swap.max)"
fails duet config set limits limits.memory.swap=some
END

check "limits of disks: what is read and written is held to them, live, and set free again" <<'END'
disk=$(cat "/sys/class/block/$(basename "$(findmnt -n -o SOURCE /)")/dev")
duet config device override limits root limits.read=2MiB limits.write=1000iops
is "$disk rbps=2097152 wbps=max riops=max wiops=1000" "$(in_cgroup limits io.max)"
duet exec limits -- dd if=/dev/urandom of=/root/data bs=1M count=8 conv=fsync status=none
started=$SECONDS
duet exec limits -- dd if=/root/data of=/dev/null bs=1M iflag=direct status=none
took=$((SECONDS - started))
[ $took -ge 3 ] || { echo "8 MiB at 2 MiB/s took $took s"; exit 1; }
duet config device set limits root limits.max=500iops
is "$disk rbps=max wbps=max riops=500 wiops=500" "$(in_cgroup limits io.max)"
duet restart limits
duet wait limits --for ready
is "$disk rbps=max wbps=max riops=500 wiops=500" "$(in_cgroup limits io.max)"
fails duet config device set limits root limits.max=fast
mkdir -p /srv/limited
duet config device add limits more disk source=/srv/limited path=/srv/limited limits.max=1500iops
is "$disk rbps=max wbps=max riops=1000 wiops=1000" "$(in_cgroup limits io.max)"
duet config device add limits proc disk source=/proc/sys path=/srv/proc limits.max=10iops 2>/tmp/said && exit 1
grep -q 'is not on a block device' /tmp/said
duet config device remove limits more
duet config device remove limits root
is "" "$(in_cgroup limits io.max)"
rmdir /srv/limited
END

check "limits.disk.priority is a weight" <<'END'
[ -e /sys/fs/cgroup/duet.slice/duet-limits.scope/io.weight ] || skip "the kernel has no io.weight"
duet config set limits limits.disk.priority=8
is "default 800" "$(in_scope limits io.weight)"
duet config unset limits limits.disk.priority
is "default 100" "$(in_scope limits io.weight)"
END

check "how an instance waits is in its state" <<'END'
duet exec limits -- timeout 5 sh -c 'for i in 1 2 3 4; do sh -c "while :; do :; done" & done; wait' || true
state=$(duet query /1.0/instances/limits/state)
[ "$(jq .duet_pressure.cpu.some.total <<<"$state")" -gt 100000 ]
jq -e '.duet_pressure.memory.full.avg300 >= 0 and .duet_pressure.io.some.total >= 0' <<<"$state"
duet info limits | grep -A 3 'Waiting in the last' | grep -q '  CPU: '
duet query /1.0 | jq -e '.api_extensions | index("duet_pressure") and index("duet_instance_oom")'
END

check "what is killed for memory is told of: an event and a warning, which is acknowledged and counts on" <<'END'
timeout 60 duet monitor --type=lifecycle > /tmp/events &
monitor=$!
duet config set limits limits.memory=200MiB
duet warning delete --all
duet exec limits -- dd bs=400M count=1 if=/dev/zero of=/dev/null || true
of='.[] | select(.type == "Instance ran out of memory" and .entity_url == "/1.0/instances/limits")'
eventually 20 sh -c "duet query '/1.0/warnings?recursion=1' | jq -e '$of'"
eventually 20 grep -q instance-oom /tmp/events
kill $monitor || true
uuid=$(duet query '/1.0/warnings?recursion=1' | jq -r "$of | .uuid")
duet warning ack "$uuid"
duet exec limits -- dd bs=400M count=1 if=/dev/zero of=/dev/null || true
eventually 20 sh -c "[ \$(duet query /1.0/warnings/$uuid | jq .count) = 2 ]"
is acknowledged "$(duet query "/1.0/warnings/$uuid" | jq -r .status)"
duet config unset limits limits.memory
system_runs limits
is active "$(systemctl is-active duet-limits.scope)"
is "" "$(systemctl --failed --plain --no-legend --no-pager)" "the list of failed units"
duet warning delete "$uuid"
END

check "limits outlive systemctl daemon-reload" <<'END'
duet config set limits limits.memory=300MiB
systemctl daemon-reload
is 314572800 "$(in_cgroup limits memory.max)"
duet config unset limits limits.memory
END

check "the container's own systemd limits its services" <<'END'
duet exec limits -- systemd-run --wait -p MemoryMax=50M -p TasksMax=20 -p CPUQuota=10% \
    sh -c 'cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && cat memory.max pids.max cpu.max > /root/inner'
is "52428800 20 10000 100000" "$(duet exec limits -- cat /root/inner | xargs)"
END

check "and it goes" <<'END'
duet delete --force limits
END
