# shellcheck shell=bash
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
# The sizes of root disks in storage pools on ext4 and xfs with project quotas, on btrfs and on ZFS.

# The size of a root disk on each pool that can enforce one: made with it, full, too small, larger while it runs, kept by
# a snapshot's restoration and by a copy. Zeros would be compressed to nothing by ZFS, which counts what it has committed.
read -r -d '' sizes <<'END' || true
need_image busybox
duet create busybox sized --storage sized -d root,size=64MiB
duet start sized
written() { duet exec "$1" -- sh -c 'dd if=/dev/urandom of=/ballast bs=1M count=100 conv=fsync 2>/dev/null; sync; stat -c %s /ballast'; }
size=$(written sized)
[ "$size" -gt 40000000 ] && [ "$size" -le 67108864 ] || { echo "$size bytes were written"; exit 1; }
is 67108864 "$(duet query /1.0/instances/sized/state | jq .disk.root.total)" "the total"
[ "$(duet query /1.0/storage-pools/sized | jq -r .driver)" != zfs ] || zpool sync
used=$(duet query /1.0/instances/sized/state | jq .disk.root.usage)
[ "$used" -gt 40000000 ] && [ "$used" -le 68000000 ] || { echo "$used bytes are shown as used"; exit 1; }
fails duet config device set sized root size=10MiB
duet config device set sized root size=150MiB
is 104857600 "$(written sized)" "what was written after the size had grown"
duet exec sized -- rm /ballast
duet snapshot create sized empty
duet exec sized -- sh -c 'mkdir /d; echo a >/d/f; mv /d /e; ln /e/f /e/g; echo b >>/etc/passwd; mv /etc /d; mv /d /etc'
duet snapshot restore sized empty
duet copy sized copied -d root,size=30MiB
duet start copied
size=$(written copied)
[ "$size" -le 31457280 ] || { echo "$size bytes were written in the copy"; exit 1; }
duet stop --force sized
duet snapshot create sized stopped
duet start sized
is 104857600 "$(written sized)" "what was written after a snapshot"
duet delete --force sized copied
duet storage delete sized
END

# on_disk FILESYSTEM MKFS-OPTIONS...: an overlay pool on a filesystem with project quotas.
on_disk() {
    printf 'filesystem=%s mkfs="%s"\n' "$1" "${*:2}"
    cat <<'END'
type mkfs.$filesystem >/dev/null || skip "mkfs.$filesystem is not installed"
modprobe $filesystem 2>/dev/null || grep -qw $filesystem /proc/filesystems || skip "no $filesystem in the kernel"
trap 'duet delete --force sized copied 2>/dev/null || true; duet storage delete sized 2>/dev/null || true
    ! mountpoint -q /mnt/sized || umount /mnt/sized; rmdir /mnt/sized; rm /var/tmp/sized' EXIT
truncate -s 1G /var/tmp/sized
mkdir -p /mnt/sized
$mkfs /var/tmp/sized
mount -o loop,prjquota /var/tmp/sized /mnt/sized || {
    mount -o loop,ro /var/tmp/sized /mnt/sized
    skip "no project quotas of $filesystem in the kernel"
}
duet storage create sized overlay source=/mnt/sized
END
    echo "$sizes"
}

check "overlay on ext4 enforces sizes by project quotas" < <(on_disk ext4 mkfs.ext4 -q -O project,quota -E quotatype=prjquota)

check "overlay on xfs enforces sizes by project quotas" < <(on_disk xfs mkfs.xfs -q)

check "overlay without project quotas says how to have them" <<'END'
need_image busybox
duet create busybox sized -d root,size=1GiB 2> /tmp/said && exit 1
grep -q 'tune2fs -O project,quota' /tmp/said
END

check "btrfs on a file enforces sizes" < <(
    printf 'type mkfs.btrfs >/dev/null || skip "mkfs.btrfs is not installed"\nduet storage create sized btrfs size=1GiB\n%s\n' "$sizes"
    printf 'is "" "$(losetup --list --noheadings)" "what is left of loop devices"\n'
)

check "zfs on a file enforces sizes" < <(
    printf 'need zfs\nduet storage create sized zfs size=1GiB\n%s\n' "$sizes"
)
