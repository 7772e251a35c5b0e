# shellcheck shell=bash
# The unit, and what an admin looks at first.

needs systemd || return 0

check "duetd.service is active and enabled" <<'END'
is active "$(systemctl is-active duetd)"
is enabled "$(systemctl is-enabled duetd)"
END

check "duet doctor has nothing to mend" <<'END'
duet doctor
END

check "members of the group duet may use the socket, others may not" <<'END'
useradd --groups duet friend
useradd stranger
runuser -u friend -- duet list
fails runuser -u stranger -- duet list
userdel friend
userdel stranger
END

check "the daemon's main process is the one that answers" <<'END'
is "$(systemctl show -p MainPID --value duetd)" "$(duet query /1.0 | jq .environment.server_pid)"
END

check "a daemon that cannot start fails at once, and says why in the journal" <<'END'
systemctl stop duetd
mkdir -p /run/systemd/system/duetd.service.d
printf '[Service]\nRestart=no\nEnvironment=DUET_DIR=/proc/nowhere\n' > /run/systemd/system/duetd.service.d/broken.conf
systemctl daemon-reload
started=$SECONDS
fails systemctl start duetd
took=$((SECONDS - started))
journalctl -u duetd -n 20 --no-pager -o cat | grep -q '^Error: '
rm -r /run/systemd/system/duetd.service.d
systemctl daemon-reload
systemctl reset-failed duetd
systemctl start duetd
[ $took -lt 30 ] || { echo "it took $took s"; exit 1; }
END
