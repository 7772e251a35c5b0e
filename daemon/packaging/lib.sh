# shellcheck shell=bash disable=SC2034
# What the scripts behind the Makefile share: finding a Rust that is new enough, running cargo as the owner of the
# tree, installing distribution packages. Sourced, never run; the sourcing script has set -euo pipefail.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}

# One sentence and no trace of a shell behind it: what is wrong and what mends it.
fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

step() {
    printf '\n\033[1m==> %s\033[0m\n' "$*"
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "This needs root: run 'sudo make $1'."
}

# The user whose files these are. Under sudo that is not root, and cargo must not leave root's files in their tree.
owner=$(stat -c %U "$top")
home_of() {
    getent passwd "$1" | cut -d: -f6
}

# Runs a command as the owner of the tree, with the owner's own cargo and rustup first.
as_owner() {
    local home
    if [ "$(id -u)" != 0 ] || [ "$owner" = root ] || [ "$owner" = UNKNOWN ]; then
        "$@"
    else
        home=$(home_of "$owner")
        runuser -u "$owner" -- env HOME="$home" PATH="$home/.cargo/bin:$PATH" "$@"
    fi
}

# Puts cargo on PATH: the caller's own, root's, or that of the user who typed sudo (whose toolchain is only read).
find_cargo() {
    local user home
    for user in root "${SUDO_USER:-}" "$owner"; do
        if [ -z "$user" ] || [ "$user" = UNKNOWN ]; then continue; fi
        home=$(home_of "$user") || continue
        [ -x "$home/.cargo/bin/cargo" ] || continue
        case ":$PATH:" in *":$home/.cargo/bin:"*) ;; *) PATH="$home/.cargo/bin:$PATH" ;; esac
        [ "$user" = root ] || [ -n "${RUSTUP_HOME:-}" ] || [ ! -d "$home/.rustup" ] || [ -d "${HOME:-/root}/.rustup" ] \
            || export RUSTUP_HOME="$home/.rustup"
    done
    export PATH
    command -v cargo >/dev/null
}

at_least() { # at_least WANTED FOUND
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# Makes sure of a Rust that is new enough. Debian 13 packages rustup, which is used where no Rust is there at all;
# a toolchain that somebody chose is never replaced.
need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")
    # Its translated output and apt-cache show's exit status say nothing of use about a name that other packages mention.
    if ! find_cargo && [ "$(id -u)" = 0 ] && command -v apt-cache >/dev/null \
        && LC_ALL=C apt-cache policy rustup | grep -q '^ *Candidate: [0-9]'; then
        install_packages rustup
        as_owner rustup default stable
        find_cargo || true
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell, which has the owner's PATH
    found=$(as_owner sh -c 'cd "$1" && rustc --version' sh "$top" 2>/dev/null | cut -d' ' -f2) || true
    [ -n "$found" ] && at_least "$wanted" "$found" && return
    fail "Duet is built with Rust $wanted or newer and ${found:+only $found}${found:-none} is here: run" \
        "\"curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y\" as ${SUDO_USER:-$(id -un)}, then this again."
}

# Installs those of the named packages that are missing. The package lists are fetched only when they are needed.
install_packages() {
    local missing=() name
    if ! command -v dpkg-query >/dev/null; then
        printf 'Not a Debian or Ubuntu system: these, or what provides them here, must be installed: %s\n' "$*"
        return
    fi
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "These packages are missing: run 'sudo apt-get install ${missing[*]}'."
    printf 'Installing %s\n' "${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # --simulate fails where a name is not in the lists at all, as on a machine that never fetched them.
    if ! apt-get install --simulate --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
        apt-get update || fail "apt-get update failed: check the network and /etc/apt/sources.list, then run this again."
    fi
    if ! apt-get install -y -q --no-install-recommends "${missing[@]}"; then
        # Lists that are there but old name versions that the mirror no longer has.
        apt-get update
        apt-get install -y -q --no-install-recommends "${missing[@]}" \
            || fail "apt-get could not install ${missing[*]}: mend what it says above, then run this again."
    fi
}

# Where the machine's own apt sources have an archive from.
mirror_of() { # mirror_of debian|debian-security
    # shellcheck disable=SC2016 # apt fills these in
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed 's,/*$,,' | grep -m 1 "/$1\$"
}

# What duetd runs on the host, and what its images are built with.
host_packages=(dnsmasq-base nftables mmdebstrap debootstrap debian-archive-keyring busybox-static squashfs-tools
    xz-utils zstd ca-certificates)
build_packages=(gcc libc6-dev make pkg-config)
# What virtual machines need besides: mke2fs, and QEMU where KVM does not serve.
vm_packages=(e2fsprogs qemu-system-x86)

build_release() {
    (cd "$top" && as_owner cargo build --release --locked --bins -p duet-client -p duetd -p duet-container -p duet-vm \
        -p duet-vmm)
    build_agent
}

# The agent of virtual machines: the first program in their initramfs, so it is linked statically. It does not stay where
# cargo puts it, because a build of the workspace puts one there that is not.
build_agent() {
    (cd "$top" && as_owner cargo rustc --release --locked -p duet-agent --bin duet-agent -- \
        -C target-feature=+crt-static -C strip=symbols)
    as_owner cp "$target/release/duet-agent" "$target/release/duet-agent.static"
}

# Whether virtual machines find a kernel with its modules on this host.
host_has_kernel() {
    local kernel
    for kernel in /boot/vmlinuz-*; do
        [ ! -e "/lib/modules/${kernel#/boot/vmlinuz-}/modules.dep" ] || return 0
    done
    return 1
}

# Puts the distribution's kernel for virtual machines into a directory, without installing it: vmlinuz, and its modules.
fetch_kernel() { # fetch_kernel DIR
    local meta=linux-image-cloud-amd64 package work release
    install_packages kmod
    apt-cache show $meta >/dev/null 2>&1 || apt-get update
    package=$(apt-cache depends $meta | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || fail "apt knows no package $meta: see /etc/apt/sources.list.d."
    work=$(mktemp -d "$1.XXXXXX")
    if ! (cd "$work" && apt-get download -q "$package" >/dev/null && dpkg-deb -x "$package"_*.deb tree); then
        rm -rf "$work"
        fail "apt-get could not fetch $package: mend what it says above, then run this again."
    fi
    release=$(cd "$work/tree/boot" && ls -d vmlinuz-*)
    release=${release#vmlinuz-}
    # Debian 13 has it in /usr/lib already.
    [ -d "$work/tree/lib/modules" ] || ln -s usr/lib "$work/tree/lib"
    depmod -b "$work/tree" "$release"
    mkdir "$work/kernel"
    mv "$work/tree/boot/vmlinuz-$release" "$work/kernel/vmlinuz"
    mv "$work/tree/lib/modules/$release/"* "$work/kernel/"
    rm -rf "$1"
    mv "$work/kernel" "$1"
    rm -rf "$work"
}
