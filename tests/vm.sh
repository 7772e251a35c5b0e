#!/usr/bin/env bash
# Boots virtual machines in QEMU's software emulation, with our initramfs and agent: daemon/agent/tests/boot, and under the
# monitor that the daemon has for them: daemon/vm/tests. Makes what that takes, from the machine's package mirror: a kernel
# with its modules, and disks with an image's root and with those modules. They are kept beside the end-to-end tests'
# images. Further arguments go to the test programs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"

need_root test-vm
suite=trixie
cache=$target/vm-cache

sources() {
    local debian
    debian=$(mirror_of debian) || fail "apt has no source of Debian here: see /etc/apt/sources.list.d."
    echo "deb $debian $suite main"
}

make_parts() { # make_parts DIR
    install_packages mmdebstrap debian-archive-keyring e2fsprogs
    # The root is what a container's image has: no udev, no kernel, and a network that is set up for an eth0. The kernel
    # comes from a tree of its own. The disk is larger than the filesystem on it, which grows when it is mounted.
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --include=systemd-sysv,dbus,kmod,login,passwd "$suite" "$1/root" - < <(sources)
    printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' >"$1/root/etc/systemd/network/eth0.network"
    chroot "$1/root" systemctl --quiet enable systemd-networkd.service
    mke2fs -q -t ext4 -E root_owner=0:0 -d "$1/root" "$1/disk.img" 1G
    truncate --size 3G "$1/disk.img"
    rm -rf "$1/root"
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --include=kmod,linux-image-cloud-amd64 "$suite" "$1/tree" - < <(sources)
    mkdir -p "$1/kernel/lib"
    mv "$1/tree/boot" "$1/kernel/boot"
    mv "$1/tree/usr/lib/modules" "$1/kernel/lib/modules"
    mke2fs -q -t ext4 -E root_owner=0:0 -d "$1"/kernel/lib/modules/* "$1/modules.img" 256M
    rm -rf "$1/tree"
}

need_rust
install_packages qemu-system-x86 busybox-static xz-utils
build_agent
parts=$cache/$suite-$(declare -f sources make_parts | sha256sum | cut -c 1-12)
if [ ! -d "$parts" ]; then
    step "Making a kernel and a disk ($suite)"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/making.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    make_parts "$work"
    mv "$work" "$parts"
fi
step "Booting virtual machines"
cd "$top"
export DUET_VM_KERNEL=$parts/kernel DUET_VM_DISK=$parts/disk.img DUET_VM_MODULES=$parts/modules.img
export DUET_VM_AGENT=$target/release/duet-agent.static
cargo build --release --locked -p duet-vmm
cargo test --release --locked -p duet-vm --test boot --test kvm -- --nocapture --test-threads 1 "$@"
cargo test --release --locked -p duet-agent --test boot -- --nocapture --test-threads 1 "$@"
