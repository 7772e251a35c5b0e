#!/usr/bin/env bash
# Builds the programs in release mode, as the owner of the tree.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

need_rust
build_release
printf 'Built duet, duetd and what they run in %s\n' "$target/release"
