# shellcheck shell=bash
# Whole systems as containers: each image, in each way that a container can be confined.

boots() { # boots IMAGE NAME [KEY=VALUE...]
    local image=$1 name=$2 options=() key
    shift 2
    for key in "$@"; do options+=(-c "$key"); done
    check "$image${*:+ with $*} boots, has an address and ends cleanly" <<END
need_image $image
duet launch $image $name ${options[*]} --wait=ipv4,ready
[ $image = busybox ] || system_runs $name
duet list $name -f csv -c 4 | grep -q '^10\.'
duet exec $name -- ping -c 1 -W 5 "\$(ip -4 -br addr show duetbr0 | awk '{ sub("/.*", "", \$3); print \$3 }')"
duet stop $name --timeout 60
is STOPPED "\$(duet list $name -f csv -c s)"
eventually 10 test ! -e /sys/fs/cgroup/duet.slice/duet-$name.scope
duet delete $name
END
}

for image in debian/13 debian/12 busybox; do
    boots $image plain
    boots $image mighty security.privileged=true
    boots $image nest security.nesting=true
done
boots debian/13 both security.privileged=true security.nesting=true
boots debian/13 own security.idmap.isolated=true

check "services with systemd's sandboxing run in a container" <<'END'
need_image debian/13
duet launch debian/13 c1 --wait=ready
duet exec c1 -- systemd-run --wait -p PrivateDevices=yes -p ProtectSystem=strict -p PrivateTmp=yes \
    -p ProtectKernelTunables=yes -p ProtectControlGroups=yes -p PrivateUsers=yes -p DynamicUser=yes \
    -p PrivateNetwork=yes true
duet delete --force c1
END

check "users of a container have their own systemd" <<'END'
need_image debian/13
duet launch debian/13 c1 --wait=ready
duet exec c1 -- useradd -m someone
duet exec c1 -- loginctl enable-linger someone
eventually 30 duet exec c1 -- systemctl is-active user@1000
duet delete --force c1
END

check "containers nest with security.nesting: mounts, a user namespace, an overlay" <<'END'
need_image debian/13
duet launch debian/13 c1 -c security.nesting=true --wait=ready
duet exec c1 -- unshare -Urmpf --mount-proc sh -c 'mount -t tmpfs t /mnt && cd /mnt && mkdir l u w m &&
    mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w,userxattr m && touch m/file && ls u/file'
duet delete --force c1
END
