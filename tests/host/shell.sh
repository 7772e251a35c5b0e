#!/usr/bin/env bash
# A test host with Duet in it, and a root shell on its console. It is gone when the console is left with Ctrl-].
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../../daemon/packaging/lib.sh
source "$(dirname "$0")/../../daemon/packaging/lib.sh"
# shellcheck source-path=SCRIPTDIR source=host.sh
source "$top/tests/host/host.sh"

need_root host-shell
[ -t 0 ] || fail "This needs a terminal."
install_packages socat
trap end_host EXIT
start_host 'unix:%s/console,server=on,wait=off'
install_duet
step "Press Enter for the shell and Ctrl-] to leave; leaving ends the host"
socat STDIO,raw,echo=0,escape=0x1d "UNIX-CONNECT:$run/console" || true
