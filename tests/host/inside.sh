# shellcheck shell=bash
# What the checks of a test host have in common, inside it. Each check is a script of its own that starts with this.
set -euo pipefail

# eventually SECONDS COMMAND...: waits until the command succeeds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $deadline ]; then
            echo "not so in time: $*"
            return 1
        fi
        # Between two looks at what nothing announces.
        read -r -t 0.2 <> <(:) || true
    done
}

# is WANTED FOUND [WHAT]
is() {
    [ "$1" = "$2" ] || { echo "${3:-it} is '$2' and not '$1'"; return 1; }
}

# fails COMMAND...: succeeds if the command does not.
fails() {
    if "$@"; then echo "this should fail: $*"; return 1; fi
}

skip() {
    echo "$*"
    exit 77
}

# need WHAT...: what a host may lack.
need() {
    local what
    for what in "$@"; do
        case $what in
            systemd) [ -d /run/systemd/system ] || skip "no systemd" ;;
            cgroup2) [ -e /sys/fs/cgroup/cgroup.controllers ] || skip "no cgroup v2 with controllers" ;;
            apparmor) [ -e /sys/kernel/security/apparmor/profiles ] || skip "no AppArmor in the kernel" ;;
            zfs)
                # The daemon says why not.
                duet query /1.0 | jq -e '.environment.storage_supported_drivers[] | select(.Name == "zfs")' >/dev/null \
                    || skip "$(duet storage create zp zfs 2>&1)"
                ;;
            *) echo "$what is nothing that can be needed"; return 1 ;;
        esac
    done
}

# The next address outside of the host: its router, or QEMU, to which the whole machine has no route but that of the link.
outside() {
    local router
    router=$(ip -4 route show default | cut -d ' ' -f 3)
    echo "${router:-10.0.2.2}"
}

# need_image ALIAS
need_image() {
    duet image info "$1" >/dev/null 2>&1 || skip "no image $1 in target/e2e-cache: the end-to-end suite makes it"
}

# system_runs INSTANCE: its systemd says that all is well.
system_runs() {
    local state
    state=$(duet exec "$1" -- systemctl is-system-running --wait) || true
    is running "$state" "the system" || { duet exec "$1" -- systemctl --failed --plain --no-legend --no-pager; return 1; }
}

# The instance's scope unit.
scope_of() {
    echo "duet-$(systemd-escape "$1").scope"
}

# in_cgroup INSTANCE FILE
in_cgroup() {
    cat "/sys/fs/cgroup/duet.slice/$(scope_of "$1")/container/$2"
}

# in_scope INSTANCE FILE
in_scope() {
    cat "/sys/fs/cgroup/duet.slice/$(scope_of "$1")/$2"
}

# install_package 1|2: the first of two versions that differ in nothing else, or the second. Nothing is fetched.
install_package() {
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /root/packages/"$1"/duet_*.deb
}

import_images() {
    local file name
    for file in /root/images/*; do
        name=${file##*/}
        name=${name%.tar*}
        duet image import "$file" --alias "${name/-//}"
    done
}
