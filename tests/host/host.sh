# shellcheck shell=bash disable=SC2154
# A test host with the freshly built programs installed in it as an admin would, by apt from their package.
# Sourced after lib.sh. A host that was booted once is kept as a snapshot, so that the next one is there in a second.
# shellcheck source-path=SCRIPTDIR source=machine.sh
source "$top/tests/host/machine.sh"

images=(debian/13 debian/12 busybox)
cache=$target/host-cache
# The folders of its kernel and of what this run makes.
image=
run=

# wanted NAME: whether the checks of this file are asked for, by T.
wanted() {
    local patterns pattern
    read -ra patterns <<<"${T:-*}"
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053 # it is a pattern
        [[ $1 != $pattern ]] || return 0
    done
    return 1
}

# start_host SERIAL: from nothing to a host that has all files. SERIAL is where QEMU puts its console; %s is the folder.
start_host() {
    local ready serial
    install_qemu
    mkdir -p "$cache"
    exec {host_lock}>"$cache/lock"
    flock -n "$host_lock" || fail "Another test host runs: there is room for one on a machine like this."
    image=$("$top/tests/host/image.sh")
    run=$(mktemp -d "$cache/run.XXXXXX")
    ready=$image/ready-$({ cat "$top/tests/host/machine.sh"; $qemu --version; } | sha256sum | cut -c 1-12).qcow2
    stage
    [ -e "$ready" ] || make_ready "$image" "$ready"
    step "Starting the test host"
    cp --reflink=auto "$ready" "$run/disk.qcow2"
    # shellcheck disable=SC2059 # it is a format
    printf -v serial "$1" "$run"
    start_qemu "$image" "$run" -loadvm ready -serial "$serial"
    # The clock stood still in the snapshot. The root directory's own mode and owner are not the archive's business.
    within 60 "date -s @$(date +%s) >/dev/null && tar -C / --no-overwrite-dir --no-same-owner -xf /dev/vdb" \
        || fail "The host could not unpack its files."
}

# cached_image ALIAS: the file of an image in the end-to-end suite's cache, the one that was used last. Nothing where the
# suite has not run yet: checks that need the image say so.
cached_image() {
    # shellcheck disable=SC2012 # our own names
    ls -t "$target/e2e-cache/${1/\//-}"-*.tar* 2>/dev/null | head -n 1 || true
}

# What goes into the host, as it will lie there.
stage() {
    local root=$run/root name file
    mkdir -p "$root/usr/local/lib" "$root/root/images" "$root"/root/packages/{1,2}
    DEB_VERSION=1.0 "$top/daemon/packaging/deb.sh" "$root/root/packages/1" >/dev/null
    # The same once more, as the next version.
    DEB_VERSION=1.1 "$top/daemon/packaging/deb.sh" "$root/root/packages/2" >/dev/null
    cp "$top/tests/host/inside.sh" "$root/usr/local/lib/duet-checks.sh"
    for name in "${images[@]}"; do
        file=$(cached_image "$name")
        [ -z "$file" ] || cp "$file" "$root/root/images/${name/\//-}.tar${file##*.tar}"
    done
    [ ! -d "$target/clients/docker" ] || cp -r "$target/clients/docker" "$root/root"
    ! wanted suite || stage_suite "$root"
    [ ! -d "$target/clients/bin" ] || ! wanted machines || install -D -t "$root/usr/local/bin" "$target/clients/bin/incus"
    ! wanted vmm || cp -r "$top/tests/host/vmm" "$root/usr/local/lib/duet-vmm"
    pack_files "$run" "$root"
    rm -rf "$root"
}

# The end-to-end suite at the very paths that it was built for, where it looks for what it needs.
stage_suite() { # stage_suite ROOT
    local program name file files=("$top/images" "$top/tests/data")
    program=$(cd "$top" && as_owner cargo test --locked -p duet-tests --test e2e --no-run 2>&1 \
        | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    [ -n "$program" ] || fail "cargo test built no end-to-end suite."
    files+=("$(realpath "$top/$program" 2>/dev/null || realpath "$program")" "$target"/debug/duet-test-{holder,shell})
    for name in "${images[@]}"; do
        file=$(cached_image "$name")
        [ -z "$file" ] || files+=("$file")
    done
    cp --parents -r "${files[@]}" "$1"
    strip "$1${files[2]}"
    printf '%s\n' "${files[2]}" > "$1/root/suite"
}

make_ready() { # make_ready IMAGE RESULT
    step "Booting it for the first time"
    qemu-img create -q -f qcow2 -b "$(realpath "$1/disk.img")" -F raw "$run/disk.qcow2"
    start_qemu "$1" "$run" -serial "file:$run/first-boot.log"
    within 300 'systemctl is-system-running --wait' || { cat "$run/first-boot.log" >&2; fail "The test host does not boot."; }
    tell_qemu "savevm ready"
    end_qemu
    rm -f "$1"/ready-*
    mv "$run/disk.qcow2" "$2"
}

# Installs the package, which starts duetd, and gives that its images.
install_duet() {
    step "Installing Duet in it"
    within 300 "set -e; . /usr/local/lib/duet-checks.sh; install_package 1; import_images"
}

# Ends what was started and leaves nothing.
end_host() {
    end_qemu
    [ -z "$run" ] || rm -rf "$run"
}
