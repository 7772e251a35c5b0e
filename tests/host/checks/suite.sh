# shellcheck shell=bash
# shellcheck disable=SC2016 # what stands in single quotes is expanded in the host
# The end-to-end suite itself, unchanged, on this kernel, these control groups and this AppArmor.
#
#   make test-host T=suite SUITE='exec:: network::'   those tests whose names have one of these in them
#   make test-host T=suite SUITE=::                   all of them, which takes an hour or more

needs systemd || return 0

for part in ${SUITE:-lifecycle:: limits:: snapshots:: storage::}; do
    CHECK_SECONDS=5400 check "the suite's ${part/#::/tests}" < <(
        printf 'part=%s\n' "$part"
        cat <<'END'
export DUET_TEST_BINARIES=/usr/bin
# Those of zfs are not among the others, since few hosts have it.
ignored=(--include-ignored)
(need zfs) || ignored=()
"$(cat /root/suite)" --test-threads 2 "${ignored[@]}" "$part" > /tmp/suite.log 2>&1 || {
    sed -n '/^failures:/,$p' /tmp/suite.log
    exit 1
}
sed -n 's/^test result: ok. //p' /tmp/suite.log
# What is not there is not tested: a name that no test has is no success.
fails grep -q '^running 0 tests' /tmp/suite.log
END
    )
done
