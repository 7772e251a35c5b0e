#!/usr/bin/env bash
# Formatting, clippy with every warning an error, and shellcheck where it is installed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/lib.sh"

need_rust
cd "$top"
step "rustfmt"
as_owner cargo fmt --all --check
step "clippy"
as_owner cargo clippy --locked --workspace --all-targets -- -D warnings
# The fuzzing programs, without building the libFuzzer that only running them needs.
as_owner env CUSTOM_LIBFUZZER_PATH=/unused/libfuzzer.a \
    cargo clippy --locked -p duet-fuzz --features libfuzzer --bins -- -D warnings
if command -v shellcheck >/dev/null; then
    step "shellcheck"
    git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x
else
    echo "shellcheck is not installed: the shell scripts were not checked ('apt-get install shellcheck')."
fi
