#!/usr/bin/env bash
# From a fresh Debian 12 or 13 to a running system container and a virtual machine of the same image. Every step looks first whether it is done already, so
# running it again is harmless, and mends what a first run was stopped in.
#
#   quickstart.sh [--prebuilt DIR]
#
# --prebuilt takes the programs from DIR and neither builds nor installs anything.
# DUET_DIR moves the state away from /var/lib/duet; the daemon is then started without systemd.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

image=debian/13
container=c1
machine=v1
state=${DUET_DIR:-/var/lib/duet}
bin=/usr/local/bin
prebuilt=
if [ "${1:-}" = --prebuilt ]; then
    prebuilt=1
    bin=${2:?--prebuilt needs the folder that holds duet, duetd and the other programs}
fi

duet() {
    DUET_DIR=$state "$bin/duet" "$@"
}

get_programs() {
    step "Packages"
    install_packages "${host_packages[@]}" "${build_packages[@]}" "${vm_packages[@]}" curl
    echo "All there."
    step "Building (the first time takes some minutes)"
    need_rust
    build_release
    step "Installing into /usr/local"
    # A running daemon keeps its old program until it is restarted; that is needed only when it changed.
    if [ -e "$bin/duetd" ] && ! cmp -s "$target/release/duetd" "$bin/duetd"; then
        renewed=1
    fi
    make -s -C "$top" install
    # Who is in this group may use the socket, which is as good as being root.
    getent group duet >/dev/null || groupadd --system duet
    echo "duet, duetd and the programs that they run are in $bin."
}

use_systemd() {
    [ -d /run/systemd/system ] && [ -z "${DUET_DIR:-}" ] && [ -z "$prebuilt" ]
}

answers() {
    duet query /1.0 >/dev/null 2>&1
}

# SIGTERM ends the daemon only: instances go on running, and the next daemon adopts them.
stop_daemon() {
    local pid
    pid=$(duet query /1.0 | sed -n 's/.*"server_pid": *\([0-9]*\).*/\1/p' | head -n 1)
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || return 0
    timeout 60 tail --pid="$pid" -f /dev/null || fail "The duetd that ran before (process $pid) does not end: see $state/logs/duetd.log."
}

start_daemon() {
    step "Starting duetd"
    if use_systemd; then
        systemctl daemon-reload
        systemctl enable --quiet duetd.service duet-instances.service
        # Stopped, so that duetd.socket, which the service asks for, can be made anew with it.
        if [ -n "$renewed" ]; then systemctl stop duetd.service || true; fi
        systemctl start duetd.service duet-instances.service \
            || fail "duetd did not start: 'journalctl -u duetd' says why."
        echo "It runs as the unit duetd.service."
        return
    fi
    if [ -n "$renewed" ] && answers; then
        stop_daemon
    fi
    if ! answers; then
        mkdir -p "$state/logs"
        DUET_DIR=$state setsid --fork "$bin/duetd" </dev/null >>"$state/logs/duetd.log" 2>&1
    fi
    duet admin waitready --timeout 60 || fail "duetd did not come up: $state/logs/duetd.log says why."
    echo "It runs in the background and writes to $state/logs/duetd.log."
}

get_image() {
    step "Image $image"
    if duet image info "$image" >/dev/null 2>&1; then
        echo "It is there already."
    else
        duet image build "$image"
    fi
}

# A virtual machine whose image has no kernel takes the host's. Where that has none (a container, a machine that boots from
# elsewhere) the distribution's is fetched, for this alone.
get_kernel() {
    step "A kernel for virtual machines"
    if host_has_kernel; then
        echo "The host's own."
    elif [ -n "$(duet config get core.vm_kernel)" ]; then
        echo "It is configured: $(duet config get core.vm_kernel)"
    else
        fetch_kernel "$state/vm-kernel"
        duet config set core.vm_kernel="$state/vm-kernel"
        echo "It is in $state/vm-kernel."
    fi
}

get_instance() { # get_instance NAME SECONDS FLAG...
    local name=$1 seconds=$2
    shift 2
    step "Instance $name"
    case "$(duet list "^$name\$" -f csv -c s 2>/dev/null)" in
        "") duet launch "$image" "$name" "$@" ;;
        RUNNING) echo "It runs already." ;;
        *) duet start "$name" ;;
    esac
    duet wait "$name" --for ipv4 --timeout "$seconds"
}

say_what_next() {
    printf '\n'
    duet list
    printf '\nNext, type (as root, or as a member of the group "duet", which is as mighty):\n'
    [ -z "${DUET_DIR:-}" ] || printf '  export DUET_DIR=%s\n' "$state"
    printf '  %-36s %s\n' \
        "duet exec $container -- bash" "a shell in the container" \
        "duet exec $machine -- bash" "a shell in the virtual machine, which has a kernel of its own" \
        "duet launch $image c2" "another one" \
        "duet snapshot create $container before" "a snapshot; 'duet snapshot restore $container before' goes back to it" \
        "duet stop $machine && duet delete $machine" "and it is gone" \
        "duet --help" "all the rest"
}

need_root quickstart
renewed=
[ -n "$prebuilt" ] || get_programs
start_daemon
get_image
get_instance "$container" 60
get_kernel
get_instance "$machine" 300 --vm
say_what_next
