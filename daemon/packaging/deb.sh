#!/usr/bin/env bash
# Makes target/deb/duet_VERSION_ARCHITECTURE.deb from what was built and prints its path. `apt install ./duet_*.deb`
# installs it on a Debian as old as the one it was built on, or newer.
#
#   deb.sh [DIR]      puts it into DIR instead
#   DEB_VERSION=1.2   is the version instead of the workspace's and the commit's date
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

for program in dpkg-deb objdump; do
    command -v $program >/dev/null || fail "$program is missing: 'apt-get install dpkg binutils' brings it."
done

# A version between two releases is older than the next one ("~", deb-version(7)) and newer than a package made before.
version() {
    local version commit
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
    commit=$(cd "$top" && as_owner git log -1 --format=%cd --date=format:%Y%m%d%H%M%S 2>/dev/null) || commit=
    echo "$version${commit:+~$commit}"
}

# The newest symbols of the C library that the programs ask for.
libc_version() {
    objdump -T "$stage"/usr/bin/* | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n 1
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
result=${1:-$target/deb}
[ $# -gt 0 ] || as_owner mkdir -p "$result"
chmod 0755 "$stage"
umask 022
make -s -C "$top" install PREFIX=/usr DESTDIR="$stage" 1>&2
gzip -9n "$stage"/usr/share/man/man1/*.1
install -D -m 0644 "$top/LICENSE" "$stage/usr/share/doc/duet/copyright"
gzip -9nc "$top/CHANGELOG.md" > "$stage/usr/share/doc/duet/changelog.gz"

mkdir "$stage/DEBIAN"
for script in postinst prerm postrm; do
    install -m 0755 "$top/daemon/packaging/deb/$script" "$stage/DEBIAN/$script"
done
architecture=$(dpkg --print-architecture)
version=${DEB_VERSION:-$(version)}
cat > "$stage/DEBIAN/control" <<END
Package: duet
Version: $version
Architecture: $architecture
Section: admin
Priority: optional
Maintainer: Duet's authors <root@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$stage" | cut -f 1)
Depends: libc6 (>= $(libc_version)), libgcc-s1, init-system-helpers, passwd, iproute2, dnsmasq-base, nftables
Recommends: mmdebstrap, debootstrap, debian-archive-keyring, busybox-static, squashfs-tools, xz-utils, zstd,
 ca-certificates, e2fsprogs
Suggests: btrfs-progs, zfsutils-linux, qemu-system-x86
Description: manager of system containers and virtual machines
 Duet runs whole Linux systems as containers and as virtual machines on one host. Its daemon, duetd, serves the REST
 API of Incus, so that Incus' clients work with it too; its own is the command duet.
END
file=$result/duet_${version}_$architecture.deb
rm -f "$result"/duet_*.deb
# Quickly made: a test waits for it.
dpkg-deb --root-owner-group -Zzstd -z3 --build "$stage" "$file" >/dev/null
[ $# -gt 0 ] || [ "$owner" = UNKNOWN ] || [ "$(id -u)" != 0 ] || chown "$owner:" "$file"
echo "$file"
