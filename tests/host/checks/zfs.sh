# shellcheck shell=bash disable=SC2034
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
# Storage pools on ZFS: on a file, a block device and a dataset.

needs systemd zfs || return 0
CHECK_SECONDS=400

# What every check of this file begins with.
read -r -d '' zfs_begin <<'END' || true
need_image busybox
undo=()
leave() {
    local status=$?
    set +e
    duet list -f csv -c n | xargs -r duet delete --force
    for pool in zp zq; do duet storage delete $pool; done
    for command in "${undo[@]}"; do $command; done
    exit $status
}
trap 'leave >/dev/null 2>&1' EXIT
# Nothing of an instance is mounted where others see it, and nothing half-removed stays.
tidy() {
    is "" "$(zfs list -H -o name -t all -r "$1/tmp" | grep "/tmp/" || true)" && is "" "$(grep " zfs $1/layers" /proc/self/mountinfo)"
}
layers() { zfs list -H -o name -t filesystem -r -d 1 "$1/layers" | tail -n +2 | wc -l; }
snapshots() { zfs list -H -o name -t snapshot -r "$1/layers" | wc -l; }
# What the driver has for these instances and snapshots, and nothing else: layers PER layers, snapshots of them.
holds() {
    eventually 60 tidy "$1"
    is "$2" "$(layers "$1")" "how many layers there are,"
    is "$3" "$(snapshots "$1")" "how many snapshots of layers there are,"
}
END

zfs_check() { check "$1" < <(printf '%s\n' "$zfs_begin"; cat); }

zfs_check "zfs: a pool on a file shows itself and runs instances" <<'END'
duet query /1.0 | jq -e '.environment.storage_supported_drivers[] | select(.Name == "zfs") | .Version | startswith("2.")'
duet storage create zp zfs size=2GiB
is zfs "$(duet query /1.0/storage-pools/zp | jq -r .driver)" "the driver"
is zp "$(duet storage get zp zfs.pool_name)" "the name of the zpool"
duet storage list | grep -q zfs
duet storage show zp | grep -q 'driver: zfs'
duet storage info zp >/dev/null
total=$(duet query /1.0/storage-pools/zp/resources | jq .space.total)
[ "$total" -gt 1800000000 ] && [ "$total" -le 2147483648 ] || { echo "$total bytes in all"; exit 1; }
duet launch busybox z1 -s zp --wait=ipv4
is "zp/layers" "$(duet exec z1 -- cat /proc/self/mountinfo | awk '$5 == "/" { print $(NF-1) }' | cut -d / -f 1,2)" "what the root is on"
is 0 "$(duet exec z1 -- stat -c %u /bin/busybox)" "the owner of a program inside"
duet exec z1 -- sh -c 'echo a >/a; chown 1000:1000 /a; cat /a' | grep -qx a
duet file pull z1/a - | grep -qx a
duet stop --force z1
duet file push /etc/hostname z1/b
duet start z1
is testhost "$(duet exec z1 -- cat /b)" "what was pushed into the stopped one"
is 1000 "$(duet exec z1 -- stat -c %u /a)" "the owner that was set"
holds zp 1 0
fails duet storage delete zp
duet delete --force z1
holds zp 0 0
duet storage delete zp
fails zpool list zp 2>/dev/null
is "" "$(ls /var/lib/duet/disks)" "what is left of files"
is "" "$(ls /var/lib/duet/storage-pools | grep zp)" "what is left of folders"
END

zfs_check "zfs: a whole Debian runs on it" <<'END'
need_image debian/13
duet storage create zp zfs
duet launch debian/13 z1 -s zp --wait=ipv4
system_runs z1
duet exec z1 -- systemd-tmpfiles --create
duet delete --force z1
duet storage delete zp
END

zfs_check "zfs: snapshots, copies and restores copy nothing" <<'END'
duet storage create zp zfs size=2GiB
duet launch busybox z1 -s zp
duet exec z1 -- sh -c 'dd if=/dev/urandom of=/ballast bs=1M count=100 2>/dev/null; echo one >/state; sync'
zpool sync zp
before=$(zfs list -Hp -o used zp)
for n in 1 2 3; do duet snapshot create z1 s$n; done
duet copy z1 z2 --instance-only
duet copy z1/s2 z3
zpool sync zp
after=$(zfs list -Hp -o used zp)
[ $((after - before)) -lt 5000000 ] || { echo "they cost $((after - before)) bytes"; exit 1; }
duet exec z1 -- sh -c 'rm /ballast; echo two >/state'
is two "$(duet exec z1 -- cat /state)" "the state"
duet snapshot restore z1 s1
is one "$(duet exec z1 -- cat /state)" "the restored state"
duet exec z1 -- test -s /ballast
duet start z2 z3
is "one one" "$(duet exec z2 -- cat /state) $(duet exec z3 -- cat /state)" "the copies"
# The instance and three snapshots, two copies; each but the image's own clones stands on a snapshot.
eventually 60 tidy zp
is 6 "$(layers zp)" "how many layers there are,"
duet delete --force z1
is one "$(duet exec z3 -- cat /state)" "a copy without what it was made of"
duet delete --force z2
duet exec z3 -- test -s /ballast
holds zp 1 0
duet delete --force z3
holds zp 0 0
zpool sync zp
after=$(zfs list -Hp -o used zp)
[ "$after" -lt "$before" ] && [ $((before - after)) -gt 90000000 ] || { echo "$((before - after)) bytes came back"; exit 1; }
duet storage delete zp
END

zfs_check "zfs: whatever is deleted first, nothing is lost and nothing stays" <<'END'
duet storage create zp zfs size=1GiB
fresh() {
    duet launch busybox z1 -s zp
    for n in 1 2 3; do duet exec z1 -- sh -c "echo $n >/state; dd if=/dev/urandom of=/fill$n bs=1M count=3 2>/dev/null"; duet snapshot create z1 s$n; done
    duet copy z1/s2 z2
}
fresh
# The middle one, of which there is a copy; then the oldest, the copy's own source being gone.
duet snapshot delete z1 s2
duet snapshot delete z1 s1
duet start z2
is 2 "$(duet exec z2 -- cat /state)" "the copy"
duet snapshot restore z1 s3
duet snapshot delete z1 s3
is 3 "$(duet exec z1 -- cat /state)" "the restored"
duet delete --force z2
holds zp 1 0
# Restored again and again, a chain does not grow.
duet snapshot create z1 s1
for _ in 1 2 3 4; do duet snapshot restore z1 s1; done
eventually 60 tidy zp
is 2 "$(layers zp)" "how many layers there are,"
is 1 "$(snapshots zp)" "how many snapshots there are,"
duet delete --force z1
holds zp 0 0
# The source first; the snapshots of the copy of a copy.
fresh
duet delete --force z1
duet snapshot create z2 t1
duet copy z2/t1 z3
duet snapshot create z3 u1
duet snapshot restore z3 u1
duet delete z2
duet start z3
is 2 "$(duet exec z3 -- cat /state)" "the copy of a copy"
# The image under a running instance, which may not lose it.
duet image export busybox /root/kept >/dev/null
duet image delete busybox
is 2 "$(duet exec z3 -- cat /state)" "what stands on a deleted image"
duet stop --force z3; duet start z3
duet delete --force z3
eventually 60 tidy zp
none() { [ "$(zfs list -H -o name -t all -r "$1" | wc -l)" = 4 ]; }
eventually 60 none zp || { zfs list -t all -r zp; exit 1; }
duet image import /root/kept* --alias busybox
rm /root/kept*
duet storage delete zp
END

zfs_check "zfs: a pool on a block device" <<'END'
truncate -s 1G /var/tmp/device
device=$(losetup --find --show /var/tmp/device)
undo=("losetup -d $device" "rm /var/tmp/device")
mkfs.ext4 -q "$device"
fails duet storage create zp zfs source="$device" 2>/tmp/said
grep -q 'is not empty.*source.wipe=true' /tmp/said
fails duet storage create zp zfs source="$device" size=1GiB 2>/dev/null
duet storage create zp zfs source="$device" source.wipe=true zfs.pool_name=other
is other "$(duet storage get zp zfs.pool_name)" "the name of the zpool"
duet launch busybox z1 -s zp
is other/layers "$(duet exec z1 -- cat /proc/self/mountinfo | awk '$5 == "/" { print $(NF-1) }' | cut -d / -f 1,2)" "what the root is on"
fails duet storage create zp2 zfs source="$device" 2>/dev/null
fails duet storage set zp size=2GiB 2>/dev/null
fails duet storage set zp zfs.pool_name=x 2>/dev/null
duet delete --force z1
duet storage delete zp
fails zpool list other 2>/dev/null
END

zfs_check "zfs: a pool in a dataset" <<'END'
truncate -s 1G /var/tmp/tank
zpool create -m none tank /var/tmp/tank
undo=("zpool destroy tank" "rm /var/tmp/tank")
zfs create -o canmount=off tank/duet
zfs create -o canmount=off tank/full
zfs create -o canmount=off tank/full/x
fails duet storage create zp zfs source=tank/full 2>/tmp/said
grep -q 'has datasets in it' /tmp/said
fails duet storage create zp zfs source=nosuch 2>/tmp/said
grep -q 'there is no ZFS pool or dataset nosuch' /tmp/said
duet storage create zp zfs source=tank/duet
fails duet storage create zq zfs source=tank/duet 2>/dev/null
fails duet storage create zq zfs source=tank/duet/x 2>/dev/null
duet storage create zq zfs source=tank/made/not 2>/dev/null && exit 1
duet storage create zq zfs source=tank/made
duet launch busybox z1 -s zp
duet snapshot create z1 s1
# A neighbour's snapshots of everything are in nobody's way.
zfs snapshot -r tank@daily
duet copy z1/s1 z2 -s zp
duet delete --force z1
zfs snapshot -r tank@daily2
duet start z2
duet delete --force z2
eventually 60 tidy tank/duet
duet storage delete zp
duet storage delete zq
is "tank tank/duet tank/full tank/full/x" "$(zfs list -H -o name -r tank | tr '\n' ' ' | sed 's/ $//')" "what is left"
is - "$(zfs get -H -o value duet:pool tank/duet)" "the mark"
END

zfs_check "zfs: hostile names" <<'END'
for source in -r 'a b' 'tank@x' '../x' 'tank/../x' 'tank//x' mirror '$(id)' 'tank;id' 'tank/%s' $'tank\nx' /etc /etc/passwd /dev/null; do
    fails duet storage create zp zfs "source=$source" 2>/tmp/said
    grep -qv panicked /tmp/said
done
for name in -f tank/x 'a b' raidz1 'x@y' log; do fails duet storage create zp zfs "zfs.pool_name=$name" 2>/dev/null; done
fails duet storage create mirror zfs 2>/tmp/said
grep -q 'zfs.pool_name' /tmp/said
fails duet storage create 1x zfs 2>/dev/null
truncate -s 100M /var/tmp/tank; zpool create -m none tank /var/tmp/tank
undo=("zpool destroy tank" "rm /var/tmp/tank")
fails duet storage create tank zfs 2>/tmp/said
grep -q 'there is a ZFS pool tank already' /tmp/said
zpool list -H tank >/dev/null
fails duet storage create zp overlay source=tank/x 2>/dev/null
fails duet storage create zp overlay zfs.pool_name=x 2>/dev/null
is "" "$(ls /var/lib/duet/disks)" "what is left of files"
is tank "$(zpool list -H -o name)" "what zpools there are"
END
