#!/usr/bin/env bash
# Makes the disk, kernel and initrd of a test host, a Debian server with systemd, from the machine's package mirror,
# and prints the folder that holds them. They are cached by a hash of what they are made from.
# shellcheck disable=SC2016 # what stands in single quotes is expanded by the hooks' shell
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../daemon/packaging/lib.sh
source "$(dirname "$0")/../../daemon/packaging/lib.sh"

here=$top/tests/host
suite=${HOST_SUITE:-trixie}
cache=$target/host-cache

# What an admin would have there, what the checks look with, and what Duet itself wants.
packages=(systemd-sysv dbus udev kmod linux-image-amd64 initramfs-tools apparmor apparmor-utils systemd-resolved polkitd
    systemd-container iproute2 iputils-ping procps util-linux less sudo cron logrotate openssh-server ca-certificates curl
    jq bsdutils acl attr libcap2-bin sqlite3 btrfs-progs e2fsprogs xfsprogs ufw docker.io zfsutils-linux
    qemu-system-x86 qemu-utils "${host_packages[@]}")
# Debian 12 has the client in docker.io itself.
[ "$suite" = bookworm ] || packages+=(docker-cli)
# The ZFS module is built with these, after which they go: see guest/setup.sh.
packages+=(zfs-dkms linux-headers-amd64)

sources() {
    local debian security
    debian=$(mirror_of debian) || fail "apt has no source of Debian here: see /etc/apt/sources.list.d."
    echo "deb $debian $suite main contrib"
    echo "deb $debian $suite-updates main contrib"
    security=$(mirror_of debian-security) && echo "deb $security $suite-security main"
}

make_root() { # make_root DIR
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --include="$(IFS=,; echo "${packages[*]}")" \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
        --essential-hook='printf "MODULES=list\nCOMPRESS=zstd\n" > "$1/etc/initramfs-tools/conf.d/duet"' \
        --essential-hook='printf "virtio_pci\nvirtio_blk\next4\n" > "$1/etc/initramfs-tools/modules"' \
        --customize-hook="copy-in $here/guest/duet-command.service $here/guest/10-host.network /etc/systemd/system" \
        --customize-hook="copy-in $here/guest/duet-command.sh /usr/local/sbin" \
        --customize-hook="$here/guest/setup.sh \"\$1\"" \
        "$suite" "$1" - < <(sources)
}

need_root test-host
hash=$({ cat "$0" "$here"/guest/*; echo "${packages[*]}"; } | sha256sum | cut -c 1-12)
result=$cache/$suite-$hash
if [ -e "$result/disk.img" ]; then
    touch "$result"
    echo "$result"
    exit
fi
# Standard output is for the answer alone.
exec 3>&1 1>&2
install_packages mmdebstrap debian-archive-keyring e2fsprogs
mkdir -p "$cache"
work=$(mktemp -d "$cache/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
step "Building the test host ($suite)"
make_root "$work/root"
mkdir "$work/made"
cp -L "$work/root/vmlinuz" "$work/root/initrd.img" "$work/made"
# QEMU has the initrd. The kernel stays where an admin's host has it, for virtual machines.
rm -f "$work"/root/boot/{initrd.img,System.map}-*
mke2fs -q -t ext4 -L host -E root_owner=0:0 -d "$work/root" "$work/made/disk.img" 16G
# Others may be of use still: to a branch that is worked on beside this one.
find "$cache" -maxdepth 1 -name "$suite-*" -mtime +2 -exec rm -rf {} +
mv "$work/made" "$result"
echo "$result" >&3
