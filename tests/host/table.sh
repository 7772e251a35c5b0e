#!/usr/bin/env bash
# Prints, as Markdown, what the last runs of the checks found on each kind of host: a row for each file of checks, a
# column for each host that was checked.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../daemon/packaging/lib.sh
source "$(dirname "$0")/../../daemon/packaging/lib.sh"

suites=() titles=()
for suite in "trixie:Debian 13" "bookworm:Debian 12" "bare:a bare machine"; do
    [ -s "$target/host-results-${suite%:*}.tsv" ] || continue
    suites+=("${suite%:*}")
    titles+=("${suite#*:}")
done
[ ${#suites[@]} -gt 0 ] || fail "Nothing was checked yet: run 'make test-host'."

# cell SUITE FILE: how many checks passed, and why others did not.
cell() {
    awk -F '\t' -v file="$2" '
        $1 != file { next }
        $2 == 0 { passed++; next }
        $2 == 77 { if (!($4 in seen)) { seen[$4] = 1; why = why "; skipped: " $4 } next }
        { why = why "; failed: " $3 }
        END {
            text = (passed ? passed " passed" : "") why
            sub(/^; /, "", text)
            print text == "" ? "not run" : text
        }' "$target/host-results-$1.tsv"
}

row() { # row FIRST CELL...
    printf '| %s |' "$1"
    shift
    printf ' %s |' "$@"
    printf '\n'
}

row "" "${titles[@]}"
row "---" "${titles[@]//*/---}"
for file in "$top"/tests/host/checks/*.sh; do
    cells=()
    for suite in "${suites[@]}"; do
        cells+=("$(cell "$suite" "$(basename "$file" .sh)")")
    done
    # The file's subject is its first comment that is not for shellcheck.
    subject=$(grep -m 1 '^# [^s]\|^# s[^h]' "$file")
    row "${subject#\# }" "${cells[@]}"
done
