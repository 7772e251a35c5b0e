#!/usr/bin/env bash
# Builds the release binaries and measures them on a test host of their own (see tests/src/bin/duet-bench).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"

need_root bench
install_packages "${host_packages[@]}" "${build_packages[@]}" iproute2 strace procps
need_rust
build_release
cd "$top"
as_owner cargo build --release --locked -p duet-tests --bin duet-bench
export DUET_TEST_BINARIES=$target/release
exec "$target/release/duet-bench" "$@"
