#!/usr/bin/env bash
# Fuzzes what strangers feed Duet: each target of tests/fuzz for SECONDS (60), or only the one that T names. Any Rust
# that builds Duet does; libFuzzer, which a crate brings, needs a C++ compiler. What makes a target fail is kept in
# target/fuzz/findings: mend it, and put it into tests/fuzz/regressions/<target>/, which every 'cargo test' replays.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../daemon/packaging/lib.sh
source "$(dirname "$0")/../daemon/packaging/lib.sh"

seconds=${FUZZ_SECONDS:-60}
tools=$target/tools

need_rust
cd "$top"
command -v c++ >/dev/null || fail "libFuzzer needs a C++ compiler: apt-get install g++"
if ! command -v cargo-fuzz >/dev/null && ! [ -x "$tools/bin/cargo-fuzz" ]; then
    step "cargo-fuzz"
    as_owner cargo install --locked --root "$tools" cargo-fuzz ||
        fail "cargo-fuzz could not be installed from crates.io: install it by hand ('cargo install cargo-fuzz')."
fi
PATH=$tools/bin:$PATH

# The flags of cargo-fuzz are the compiler's unstable ones; this takes them on a stable compiler as well. Nothing that is
# fuzzed is unsafe, so panics, overflows, hangs and memory are what is looked for, and no sanitizer is needed.
export RUSTC_BOOTSTRAP=1
# As in a release, but quick to build, and with every check.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true

fuzz() { # fuzz COMMAND ARGUMENT...
    as_owner env PATH="$PATH" cargo fuzz "$1" --fuzz-dir tests/fuzz --target-dir "$target/fuzz/build" \
        --sanitizer none --features libfuzzer "${@:2}"
}

mapfile -t targets < <(sed -n 's/^    Target { name: "\([a-z]*\)".*/\1/p' tests/fuzz/src/lib.rs)
if [ -n "${1:-}" ]; then
    [[ " ${targets[*]} " = *" $1 "* ]] || fail "There is no target \"$1\": use one of ${targets[*]}."
    targets=("$1")
fi
failed=()
for name in "${targets[@]}"; do
    step "$name"
    corpus=$target/fuzz/corpus/$name
    findings=$target/fuzz/findings/$name
    as_owner mkdir -p "$corpus" "$findings"
    as_owner cargo run --quiet --locked -p duet-fuzz --example seeds -- "$name" "$corpus"
    kept=()
    [ -d "tests/fuzz/regressions/$name" ] && kept=("tests/fuzz/regressions/$name")
    fuzz run "$name" "$corpus" "${kept[@]}" -- -max_total_time="$seconds" -timeout=10 -max_len=32768 \
        -artifact_prefix="$findings/" -print_final_stats=1 || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || fail "Found something: ${failed[*]}; see $target/fuzz/findings."
