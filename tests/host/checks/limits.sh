# shellcheck shell=bash
# Limits through the version 2 controllers, set and taken away while the container runs.

check "a container to limit" <<'END'
need_image debian/13
duet launch debian/13 limits --wait=ready
is "cpuset cpu io memory pids" "$(in_cgroup limits cgroup.controllers)" "what its group controls"
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
is 50 "$(in_cgroup limits cpu.weight)"
duet config unset limits limits.cpu.allowance
is 100 "$(in_cgroup limits cpu.weight)"
END

check "limits.processes: one more is refused" <<'END'
duet config set limits limits.processes=60
is 60 "$(in_cgroup limits pids.max)"
duet exec limits -- bash -c 'for i in {1..80}; do sleep 60 & done' 2>/dev/null || true
[ "$(in_cgroup limits pids.current)" -le 60 ]
# Before Linux 6.11 a refusal counts in the group that forked, not in the one that has the limit.
refused=$(find /sys/fs/cgroup/duet/limits -name pids.events -exec cat {} + | awk '/^max/ { n += $2 } END { print n }')
duet config unset limits limits.processes
[ "$refused" -gt 0 ]
is max "$(in_cgroup limits pids.max)"
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
