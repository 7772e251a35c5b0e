#!/bin/bash
# The last touches to the test host's root filesystem, which is the first argument.
# shellcheck disable=SC2016 # systemd expands $TERM
set -euo pipefail
root=$1
mv "$root/etc/systemd/system/10-host.network" "$root/etc/systemd/network/"
chmod 0755 "$root/usr/local/sbin/duet-command.sh"
echo testhost > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 testhost\n' > "$root/etc/hosts"
echo '/dev/vda / ext4 rw,relatime 0 1' > "$root/etc/fstab"
: > "$root/etc/machine-id"
mkdir -p "$root/var/log/journal" "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - $TERM\n' \
    > "$root/etc/systemd/system/serial-getty@ttyS0.service.d/root.conf"
chroot "$root" systemctl enable systemd-networkd systemd-resolved duet-command ssh
chroot "$root" systemctl disable apt-daily.timer apt-daily-upgrade.timer man-db.timer 2>/dev/null || true
# A neighbour only when a check asks for it. ufw is not active unless somebody enables it.
chroot "$root" systemctl disable docker.service docker.socket containerd.service

# The ZFS module: built here, where it is fast, for the kernel in the image and not for the one that runs now. What
# built it takes more room than all the rest, and goes; its removal takes the module with it, so that is put aside.
kernel=$(basename "$(echo "$root"/lib/modules/*)")
# The link to them may be an absolute one.
chroot "$root" test -d "/lib/modules/$kernel/build" || { echo "not one kernel with its headers: $kernel" >&2; exit 1; }
zfs=$(basename "$(echo "$root"/usr/src/zfs-*)")
[ -n "$(find "$root/lib/modules/$kernel" -name 'zfs.ko*')" ] || chroot "$root" dkms install "${zfs/-//}" -k "$kernel" \
    || { cat "$root/var/lib/dkms/${zfs/-//}"/build/make.log >&2; exit 1; }
mkdir "$root/tmp/zfs"
find "$root/lib/modules/$kernel/updates" -name '*.ko*' -exec cp -t "$root/tmp/zfs" {} +
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get purge -q -y --autoremove zfs-dkms dkms linux-headers-amd64
mkdir -p "$root/lib/modules/$kernel/extra"
mv "$root"/tmp/zfs/* "$root/lib/modules/$kernel/extra"
rmdir "$root/tmp/zfs"
chroot "$root" depmod "$kernel"
chroot "$root" modinfo -k "$kernel" -n zfs

chroot "$root" update-initramfs -u
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
