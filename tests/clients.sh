#!/usr/bin/env bash
# Gets the clients that the tests drive, unmodified and without installing them: incus 6.0.4 and incus-benchmark from
# Debian 12's backports, lxc 5.0.2 from Debian 12, pylxd 2.4.2 from PyPI; and schemathesis from PyPI, which makes requests
# from a description of an API; and Docker of Debian 12, as packages for an instance. Prints their folder.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"

clients=$target/clients
made=$clients/$(sha256sum "$0" | cut -c 1-12)
if [ -e "$made" ]; then
    echo "$clients"
    exit
fi
exec 3>&1 1>&2
command -v apt-get >/dev/null || fail "The clients come as Debian packages: run the tests on Debian or Ubuntu."
install_packages python3-venv debian-archive-keyring
rm -rf "$clients"
mkdir -p "$clients"/apt/{parts,lists/partial,cache}
debian=$(mirror_of debian) || debian=http://deb.debian.org/debian
cat > "$clients/apt/parts/debian.sources" <<SOURCES
Types: deb
URIs: $debian
Suites: bookworm bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
# Lists and cache of our own: the machine's package state is not touched.
options=(-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$clients/apt/parts"
    -o Dir::State::Lists="$clients/apt/lists" -o Dir::Cache="$clients/apt/cache" -o APT::Sandbox::User=root
    -o APT::Architecture=amd64 -o APT::Architectures=amd64)
apt-get "${options[@]}" update
(cd "$clients/apt" && apt-get "${options[@]}" download \
    incus-client/bookworm-backports incus-extra/bookworm-backports lxd-client/bookworm)
# With what they depend on and the image debian/12 has not.
mkdir "$clients/docker"
(cd "$clients/docker" && apt-get "${options[@]}" download docker.io apparmor containerd runc tini iptables libip4tc2 libip6tc2 \
    libxtables12 libnetfilter-conntrack3 libnfnetlink0 libnftnl11 libmnl0 libdevmapper1.02.1 dmsetup)
for package in "$clients"/apt/*.deb; do
    dpkg-deb -x "$package" "$clients/apt/root"
done
mkdir "$clients/bin"
mv "$clients"/apt/root/usr/bin/{incus,incus-benchmark,lxc} "$clients/bin"
rm -rf "$clients/apt"
python3 -m venv "$clients/python"
"$clients/python/bin/pip" install --quiet --disable-pip-version-check pylxd==2.4.2 schemathesis==4.32.5
[ "$owner" = UNKNOWN ] || chown -R "$owner" "$clients"
touch "$made"
echo "$clients" >&3
