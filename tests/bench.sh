#!/usr/bin/env bash
# Builds the release binaries and measures them on a test host of their own, beside Incus where that is installed: see
# tests/src/bench and `tests/bench.sh --help`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"

need_root bench
install_packages "${host_packages[@]}" "${build_packages[@]}" iproute2 procps
# Incus' btrfs pool is made with them; without Incus nothing is compared.
[ ! -x /usr/libexec/incus/incusd ] || install_packages btrfs-progs
need_rust
build_release
cd "$top"
as_owner cargo build --release --locked -p duet-tests --bins
export DUET_TEST_BINARIES=$target/release
exec "$target/release/duet-bench" "$@"
