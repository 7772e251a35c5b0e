#!/usr/bin/env bash
# Every test of every crate: units with debug assertions on, and the end-to-end suite, which drives the release
# binaries. cargo builds as the owner of the tree; what it built runs as root, because namespaces, mounts, cgroups and
# links are what is tested. With cargo-nextest each test is its own process, without it the test binaries run in turn.
# Then, unless arguments choose among those, the same binaries on a whole machine in software, see tests/host: what only
# such a machine can show. TEST_HOST=all runs all checks there, which takes half an hour more, TEST_HOST=no none.
# shellcheck disable=SC2016 # what stands in single quotes is expanded by an inner shell
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"
# shellcheck source-path=SCRIPTDIR source=host/machine.sh
source "$(dirname "$0")/host/machine.sh"

test_packages=(iproute2 iputils-ping procps util-linux e2fsprogs btrfs-progs acl attr libcap2-bin strace shellcheck)

summary() {
    printf '\n\033[1m%s\033[0m\n' "$*"
}

with_nextest() {
    local lists=$target/nextest-lists
    as_owner mkdir -p "$lists"
    # For this platform only: the others' crates are not downloaded.
    as_owner sh -c 'cargo metadata --locked --format-version 1 \
        --filter-platform "$(rustc -vV | sed -n "s/^host: //p")" > "$1/cargo.json"' sh "$lists"
    as_owner sh -c 'cargo nextest list --locked --workspace --list-type binaries-only --message-format json \
        > "$1/binaries.json"' sh "$lists"
    cargo-nextest nextest run --cargo-metadata "$lists/cargo.json" --binaries-metadata "$lists/binaries.json" \
        --workspace-remap "$top" "$@"
}

# cargo says which binaries it built, and where: "  Executable unittests src/lib.rs (target/debug/deps/duet_client-1f)".
with_cargo_test() {
    local list=$target/test-binaries failed=() count=0 binary folder
    as_owner sh -c 'cargo test --locked --workspace --no-run 2> "$1"' sh "$list" || { cat "$list" >&2; return 1; }
    while read -r binary; do
        [[ $binary = /* ]] || binary=$top/$binary
        folder=$top
        count=$((count + 1))
        (cd "$folder" && "$binary" --test-threads "${TEST_THREADS:-2}" "$@") || failed+=("${binary##*/}")
    done < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$list")
    [ "$count" -gt 0 ] || fail "cargo test built no test binary."
    [ ${#failed[@]} = 0 ] || { printf 'Failed: %s\n' "${failed[*]}" >&2; return 1; }
}

need_root test
step "Packages"
install_packages "${host_packages[@]}" "${build_packages[@]}" "${vm_packages[@]}" "${test_packages[@]}"
# One for each version of the distribution's: as long as it is there it is the newest that this tree was tested with.
export DUET_TEST_KERNEL=$target/vm-kernel
if [ ! -e "$DUET_TEST_KERNEL/vmlinuz" ]; then
    step "A kernel for virtual machines"
    as_owner mkdir -p "$target"
    fetch_kernel "$DUET_TEST_KERNEL"
fi
step "Other people's clients"
DUET_TEST_CLIENTS=$("$top/tests/clients.sh")
export DUET_TEST_CLIENTS
need_rust
cd "$top"
step "Release build"
build_release
# The suite drives these, not the debug builds beside the test binaries.
export DUET_TEST_BINARIES=$target/release
export RUST_BACKTRACE=1

step "Tests"
started=$SECONDS
status=0
if command -v cargo-nextest >/dev/null; then
    with_nextest "$@" || status=$?
else
    with_cargo_test "$@" || status=$?
fi
[ "$status" = 0 ] || echo "What the daemons said is in $target/e2e-logs."
host_checks='limits package scopes service'
case ${TEST_HOST:-} in all) host_checks='*' ;; no) host_checks= ;; esac
if [ $# = 0 ] && [ -n "$host_checks" ]; then
    if log=$(install_qemu 2>&1 && "$top/tests/host/image.sh" 2>&1); then
        T=$host_checks "$top/tests/host/run.sh" || status=$?
    else
        printf '%s\n' "$log" | tail -n 20
        echo "SKIPPED: the checks on the test host, because it cannot be built here."
    fi
fi
if [ "$status" = 0 ]; then
    summary "All tests passed in $((SECONDS - started)) s."
else
    summary "Tests failed."
fi
exit "$status"
