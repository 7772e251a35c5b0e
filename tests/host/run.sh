#!/usr/bin/env bash
# Checks the release binaries on a whole machine of our own: a Debian server with systemd, cgroup v2 and AppArmor, in
# software. Each file in checks/ has one subject and ends with what it started removed.
#
#   make test-host             all of them
#   make test-host T=limits    one file of them; also several, and patterns: T='limits s*'
#   HOST_SUITE=bookworm        on Debian 12 instead of 13
#   HOST_SUITE=bare            on this machine, in namespaces of its own with neither systemd nor another service
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../daemon/packaging/lib.sh
source "$(dirname "$0")/../../daemon/packaging/lib.sh"
# shellcheck source-path=SCRIPTDIR source=host.sh
source "$top/tests/host/host.sh"
# shellcheck source-path=SCRIPTDIR source=bare.sh
[ "${HOST_SUITE:-}" != bare ] || source "$top/tests/host/bare.sh"

# Why all ends is told, also where what is printed goes into the report of one check.
exec {told}>&2
fail() {
    printf '%s\n' "$*" >&"$told"
    exit 1
}

# check NAME <<END: runs a script in the host. It is passed if the script succeeds, skipped if its status is 77, and what
# it printed is shown otherwise.
check() {
    local script output status=0 started=$SECONDS
    script=$(cat)
    output=$(within "${CHECK_SECONDS:-180}" ". /usr/local/lib/duet-checks.sh"$'\n'"$script" 2>&1) || status=$?
    report "$1" "$status" "$output" "$started"
    # What a check did not come to remove is not in the way of the next.
    case $status in 0 | 77) ;; *) within 60 'duet list -f csv -c n | xargs -r duet delete --force' >/dev/null || true ;; esac
    [ "$status" = 0 ] || host_is_there || { keep_logs; fail "The host is gone: no more can be checked."; }
}

report() { # report NAME STATUS OUTPUT STARTED
    printf '%s\t%s\t%s\t%s\n' "$(basename "${file:-}" .sh)" "$2" "$1" "${3##*$'\n'}" >> "$results"
    case $2 in
        0) printf 'passed   %s (%s s)\n' "$1" "$((SECONDS - $4))" ;;
        77) printf 'skipped  %s: %s\n' "$1" "${3##*$'\n'}" ;;
        *) printf 'FAILED   %s (status %s)\n         | %s\n' "$1" "$2" "${3//$'\n'/$'\n'         | }" ;;
    esac
}

passed='$2 == 0' skipped='$2 == 77' failed='$2 != 0 && $2 != 77'

# count CONDITION [FILE]: how many checks ended so, of one file or of all.
count() {
    awk -F '\t' -v file="${2:-}" "(file == \"\" || \$1 == file) && ($1) { n++ } END { print n + 0 }" "$results"
}

# A file of checks in which one fails is tried once more, as the end-to-end tests are; both are shown.
run_file() {
    local name
    name=$(basename "$1" .sh)
    file=$1
    # shellcheck source=/dev/null
    source "$file"
    [ "$(count "$failed" "$name")" -gt 0 ] || return 0
    printf 'AGAIN    %s\n' "$name"
    keep_logs
    again+=("$name")
    sed -i "/^$name\t/d" "$results"
    # shellcheck source=/dev/null
    source "$file"
}

# needs WHAT...: whether the host has what all checks of a file need. They are left out, once for all, where it has not.
needs() {
    local output status=0 started=$SECONDS
    output=$(within 30 ". /usr/local/lib/duet-checks.sh; need $*" 2>&1) || status=$?
    [ "$status" = 0 ] && return
    report "$(basename "$file" .sh)" "$status" "$output" "$started"
    return 1
}

# What the host knows about a failure.
keep_logs() {
    local logs=$target/host-logs
    rm -rf "$logs"
    mkdir -p "$logs"
    cp "$run"/*.log "$logs"
    within 60 'journalctl --no-pager -o short-precise' > "$logs/journal.log" || true
    within 60 'journalctl --no-pager -o short-precise -u duetd' > "$logs/duetd.log" || true
    within 60 'for name in $(duet list -f csv -c n); do
        echo "== $name"; duet config show $name --expanded; duet exec $name -- journalctl --no-pager -n 200
        tail -n 100 /var/lib/duet/logs/$name/*; done' \
        > "$logs/instances.log" 2>&1 || true
    echo "What the host's console, journal and daemon said is in $logs."
}

need_root test-host
started=$SECONDS
trap end_host EXIT
start_host 'file:%s/console.log'
install_duet || { keep_logs; fail "Duet could not be installed in the test host."; }
step "Checks"
results=$target/host-results-${HOST_SUITE:-trixie}.tsv
: > "$results"
again=()
# What all of them left is looked for in the end.
last=$top/tests/host/checks/traces.sh
files=("$top"/tests/host/checks/*.sh)
for file in "${files[@]/#$last/}" "$last"; do
    [ -z "$file" ] || ! wanted "$(basename "$file" .sh)" || run_file "$file"
done
[ "$(count "$failed")" = 0 ] || keep_logs
[ ${#again[@]} = 0 ] || printf '\nTried twice: %s\n' "${again[*]}"
printf '\nIt took %s s.\n%s passed, %s failed, %s skipped\n' "$((SECONDS - started))" "$(count "$passed")" "$(count "$failed")" "$(count "$skipped")"
[ "$(count "$failed")" = 0 ]
