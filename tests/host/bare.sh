# shellcheck shell=bash disable=SC2154
# A host for the checks without a machine of its own: namespaces on this one, as each end-to-end test has them, with the
# release programs as they were built, no systemd, and this machine's kernel and control groups. Sourced after host.sh,
# in place of whose functions it puts its own.

# start_host SERIAL: one shell in it runs what is asked for, each time in a shell of its own.
start_host() {
    install_packages jq bsdutils btrfs-progs xfsprogs e2fsprogs
    (cd "$top" && as_owner cargo build --locked --release -p duet-tests --bin duet-test-shell --bin duet-test-holder)
    run=$(mktemp -d "$target/bare.XXXXXX")
    mkfifo "$run"/{command,answer}
    step "Starting a host in namespaces"
    DUET_TEST_BINARIES=$target/release "$target/release/duet-test-shell" "${images[@]}" -c "
        while read -r number seconds command; do
            status=0
            timeout \"\$seconds\" bash -c \"\$(base64 -d <<<\"\$command\")\" >'$run/output' 2>&1 </dev/null || status=\$?
            echo \"\$number \$status\"
        done" <"$run/command" >"$run/answer" 2>"$run/host.log" &
    host_pid=$!
    exec {command_in}>"$run/command" {command_out}<"$run/answer"
    within 120 true || { cat "$run/host.log" >&2; fail "There is no host in namespaces here."; }
}

# It has its images.
install_duet() {
    :
}

host_is_there() {
    kill -0 "$host_pid" 2>/dev/null
}

# within SECONDS COMMAND: as on a whole machine.
within() {
    local number=$EPOCHREALTIME answer status script=${2/\/usr\/local\/lib\/duet-checks.sh/$top\/tests\/host\/inside.sh}
    printf '%s %s %s\n' "$number" "$1" "$(base64 -w 0 <<<"$script")" >&"$command_in"
    while read -r -t "$(($1 + 10))" answer status <&"$command_out"; do
        [ "$answer" = "$number" ] || continue
        cat "$run/output"
        return "$status"
    done
    echo "no answer from the host within $1 s"
    return 124
}

end_host() {
    [ -n "${host_pid:-}" ] || return 0
    exec {command_in}>&- {command_out}<&-
    wait "$host_pid" || true
    rm -rf "$run"
}
