#!/bin/bash
# From the start of a VMM to a line from the guest's init, side by side: duet-vmm and QEMU's microvm with the same kernel,
# initial RAM disk, one CPU and 128 MiB. Prints milliseconds. To be run in a test host in which checks/vmm.sh prepared
# its guests; only the relation of the figures means anything.
#
#   measure.sh [ROUNDS] [KERNEL...]
set -euo pipefail
cd /root/vmm
rounds=${1:-5}
shift || true
[ $# -gt 0 ] || set -- /vmlinuz
append="console=ttyS0 panic=-1 quiet modules=no"
rm -f line
mkfifo line
exec 9<>line

# timed NAME COMMAND...: its serial port is the pipe "line".
timed() {
    local name=$1 started=$EPOCHREALTIME text pid
    shift
    "$@" < /dev/null &
    pid=$!
    while read -r text <&9; do
        case $text in *"guest: up"*) break ;; esac
    done
    printf '%s\t%s\n' "$name" "$(((${EPOCHREALTIME/./} - ${started/./}) / 1000))"
    wait $pid || true
}

duet() {
    duet-vmm spec 10<"$1" 11<initrd 12>>line
}

microvm() {
    qemu-system-x86_64 -M microvm,accel=kvm -cpu host -m 128 -smp 1 -nodefaults -no-user-config -display none -no-reboot \
        -serial file:line -kernel "$1" -initrd initrd -append "$append"
}

cat > spec <<END
{"kernel":10,"initrd":11,"command_line":"$append","memory":$((128 << 20)),"serial":{"output":12}}
END
for _ in $(seq "$rounds"); do
    for kernel in "$@"; do
        timed "duet-vmm $kernel" duet "$kernel"
        timed "microvm $kernel" microvm "$kernel"
    done
done
