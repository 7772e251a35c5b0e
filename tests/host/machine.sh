# shellcheck shell=bash
# One test host under QEMU: starting and ending it, running commands in it, giving commands to QEMU. Sourced after
# lib.sh. Software emulation throughout, whose CPU has SVM, so that the host has a /dev/kvm of its own.

qemu="qemu-system-x86_64"
qemu_pid=

# QEMU 7.2 hangs such a host after some tens of nested machines. Debian 12 has that one, and its backports a newer one,
# from the mirror that the machine's own sources name.
install_qemu() {
    local version codename
    version=$($qemu --version 2>/dev/null | sed -n 's/.*version \([0-9.]*\).*/\1/p') || true
    if [ -n "$version" ] && at_least 10 "$version" && command -v qemu-img >/dev/null; then
        return
    fi
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$codename" = bookworm ]; then
        # shellcheck disable=SC2016 # apt fills this in
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' \
            "$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/*$')" \
            /usr/share/keyrings/debian-archive-keyring.gpg > /etc/apt/sources.list.d/duet-test-host.sources
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -t bookworm-backports \
            qemu-system-x86 qemu-utils
    else
        install_packages qemu-system-x86 qemu-utils
    fi
}

# How the host's disk treats a flush: by default it counts for nothing, since the disk is thrown away. Where the host's
# power is to be cut it is "writeback": see checks/power.sh.
disk_cache=unsafe

# start_qemu IMAGE RUN [OPTION...]: starts the host whose kernel is in the folder IMAGE and whose disks are in RUN.
# The network leads to QEMU itself and nowhere else. QEMU ends with this shell, however that ends.
start_qemu() {
    local image=$1 run=$2
    shift 2
    rm -f "$run"/{command,monitor}.{in,out}
    mkfifo "$run"/{command,monitor}.{in,out}
    setpriv --pdeathsig TERM $qemu -name duet-test-host -machine q35 -cpu EPYC,+svm,+npt -accel tcg,thread=multi \
        -smp 2 -m 3072 -nodefaults -display none -kernel "$image/vmlinuz" -initrd "$image/initrd.img" \
        -append "root=/dev/vda rw console=ttyS0 panic=-1 quiet" \
        -drive "file=$run/disk.qcow2,if=virtio,format=qcow2,cache=$disk_cache" \
        -drive "file=$run/files.tar,if=virtio,format=raw,readonly=on" \
        -netdev user,id=net0,restrict=on -device virtio-net-pci,netdev=net0 \
        -device virtio-rng-pci -device virtio-serial-pci \
        -chardev "pipe,id=command,path=$run/command" -device virtserialport,chardev=command,name=duet.command \
        -chardev "pipe,id=monitor,path=$run/monitor" -mon chardev=monitor,mode=readline \
        "$@" </dev/null >"$run/qemu.log" 2>&1 &
    qemu_pid=$!
    # Opened for both, so that neither end waits for the other.
    exec {command_in}<>"$run/command.in" {command_out}<>"$run/command.out"
    exec {monitor_in}<>"$run/monitor.in" {monitor_out}<>"$run/monitor.out"
    tell_qemu "" || fail "QEMU did not start: $(tail -n 5 "$run/qemu.log")"
}

end_qemu() {
    [ -n "$qemu_pid" ] || return 0
    kill "$qemu_pid" 2>/dev/null || true
    wait "$qemu_pid" 2>/dev/null || true
    qemu_pid=
    exec {command_in}>&- {command_out}>&- {monitor_in}>&- {monitor_out}>&-
}

host_is_there() {
    kill -0 "$qemu_pid" 2>/dev/null
}

# Cuts the host's power: QEMU has no time for anything.
cut_power() {
    kill -KILL "$qemu_pid"
    end_qemu
}

# Shuts the host down in good order. No answer is waited for, which might not be out before the port is gone.
power_off() {
    local deadline=$((SECONDS + 180))
    printf '%s %s\n' "$EPOCHREALTIME" "$(base64 -w 0 <<<'systemctl poweroff')" >&"$command_in"
    while kill -0 "$qemu_pid" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || { echo "the host did not shut down within 180 s"; return 1; }
        read -r -t 0.2 <> <(:) || true
    done
    end_qemu
}

# tell_qemu COMMAND: gives QEMU's monitor a command and waits until it is done, since it answers one after the other.
tell_qemu() {
    local line
    printf '%s\ninfo version\n' "$1" >&"$monitor_in"
    while read -r -t 30 line <&"$monitor_out"; do
        if [[ $line =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]]; then return; fi
        if [[ $line = Error* ]]; then echo "QEMU: $line" >&2; return 1; fi
    done
    return 1
}

# within SECONDS COMMAND: runs a shell command in the host, prints what it printed and has its status. No answer in time
# is 124, as with timeout(1); what still runs then goes on, and so the host is of no use any more.
within() {
    local number=$EPOCHREALTIME deadline=$((SECONDS + $1)) answer status output
    printf '%s %s\n' "$number" "$(base64 -w 0 <<<"$2")" >&"$command_in"
    while read -r -t "$((deadline - SECONDS + 1))" answer status output <&"$command_out"; do
        # Others are the answers to earlier commands, for which nobody waits any more.
        [ "$answer" = "$number" ] || continue
        base64 -d <<<"$output"
        return "$status"
    done
    kill -0 "$qemu_pid" 2>/dev/null || fail "QEMU has ended."
    echo "no answer from the host within $1 s"
    return 124
}

# Starts the host anew and waits until it is up.
reboot_host() {
    local before now deadline=$((SECONDS + 300))
    before=$(within 30 'cat /proc/sys/kernel/random/boot_id') || return
    within 30 'systemctl --no-block reboot' || return
    # What is sent while there is no kernel to receive it is lost, so each question waits a moment only.
    until now=$(within 2 'cat /proc/sys/kernel/random/boot_id') && [ "$now" != "$before" ]; do
        if [ $SECONDS -ge $deadline ]; then
            echo "the host did not come back within 300 s"
            return 1
        fi
    done
    within 300 'systemctl is-system-running --wait'
}

# pack_files RUN DIR: puts what is in DIR on the host's second disk, which is of one size whatever is on it.
pack_files() {
    tar -C "$2" --owner=0 --group=0 -cf "$1/files.tar" .
    truncate -s 512M "$1/files.tar"
}
