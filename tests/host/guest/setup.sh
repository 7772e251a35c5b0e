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
chroot "$root" update-initramfs -u
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
