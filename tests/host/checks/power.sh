# shellcheck shell=bash disable=SC2034,SC2154
# The host's power is cut, at random moments, while instances are made, snapshotted, written to and deleted.
#
#   POWER_KILLS=20 POWER_SEED=1    how often, and the moments
#
# What is tested: QEMU is killed with SIGKILL, so the host's memory is gone, and with it what its kernel had not written
# and what QEMU had not: its disk is opened with cache=writeback, where a flush by the guest reaches the file on this
# machine, but the tables of the disk's format that say where new data lies are written only then. What the guest wrote
# over old data without a flush stays, which a real disk's cache may lose.
#
# What the daemon acknowledged is noted on this machine, through a serial port: a note on the host's disk would flush
# other things with it.

needs systemd || return 0

acknowledged=$run/acknowledged
kills=${POWER_KILLS:-3}
RANDOM=${POWER_SEED:-$$}
echo "power.sh: POWER_KILLS=$kills POWER_SEED=${POWER_SEED:-$$}"
CHECK_SECONDS=400

# On a busy machine a processor of the host's may begin without its timer, and the boot stands still. The power is cut
# then as well, and it begins anew.
power_on() {
    local try status=1
    for try in 1 2 3; do
        disk_cache=writeback start_qemu "$image" "$run" \
            -chardev "file,id=console,path=$run/console.log,append=on" -serial chardev:console \
            -chardev "file,id=notes,path=$acknowledged,append=on" -device virtserialport,chardev=notes,name=duet.notes
        status=0
        within 180 'systemctl is-system-running --wait || { systemctl --failed --plain --no-legend --no-pager; exit 1; }' \
            || status=$?
        # Only silence is worth another try.
        [ $status = 124 ] || break
        echo "boot $try stood still"
        [ $try = 3 ] || cut_power
    done
    return $status
}

check "a container that writes" <<'END'
need_image busybox
duet launch busybox writes --wait=ipv4
duet exec writes -- sh -c 'echo begin | dd of=/lines conv=fsync'
END

# Two hands: one makes, snapshots and deletes, the other writes inside a container. It syncs in every other round only,
# since that writes out what the first hand did as well.
read -r -d '' load <<'END' || true
# The port can be open once only.
exec 4>/dev/virtio-ports/duet.notes
note() { echo "$*" >&4; }
round=$1
manage() {
    number=0
    while :; do
        number=$((number + 1))
        name=p$round-$number
        duet init busybox "$name" && note "made $name" || break
        duet config set "$name" user.number=$number && note "set $name $number"
        duet snapshot create "$name" first && note "snapshot $name"
        [ $((number % 3)) = 0 ] || continue
        gone=p$round-$((number - 1))
        note "deleting $gone"
        duet delete "$gone" && note "deleted $gone"
    done
}
work() {
    number=0
    while :; do
        number=$((number + 1))
        duet exec writes -- dd if=/dev/urandom of=/noise bs=64k count=8 || break
        [ $((round % 2)) = 0 ] || continue
        duet exec writes -- sh -c "echo $round-$number | dd of=/line-$round-$number conv=fsync" \
            && note "wrote $round-$number" || break
    done
}
manage >/dev/null 2>>/root/load.log &
work >/dev/null 2>>/root/load.log &
wait
END

# What must be so after the power came back. The notes of this round are its standard input.
read -r -d '' judge <<'END' || true
is ok "$(sqlite3 /var/lib/duet/duet.db 'PRAGMA integrity_check')" "the inventory"
declare -A must=() may=() snapshots=() numbers=()
written=
# A note that the cut tore has no line end.
while read -r what name value; do
    case $what in
        made) must[$name]=1 ;;
        set) numbers[$name]=$value ;;
        snapshot) snapshots[$name]=1 ;;
        deleting) unset "must[$name]" "snapshots[$name]" "numbers[$name]"; may[$name]=1 ;;
        deleted) unset "may[$name]"; is "" "$(duet list "^$name\$" -f csv -c n)" "the deleted" ;;
        wrote) written=$name ;;
    esac
done < /tmp/notes
[ ${#must[@]} -gt 0 ] || [ ${#may[@]} -gt 0 ] || { echo "nothing was acknowledged"; cat /root/load.log; exit 1; }
for name in "${!must[@]}"; do is "$name" "$(duet list "^$name\$" -f csv -c n)" "an acknowledged instance"; done
for name in $(duet list -f csv -c n '^p'); do
    [ -z "${numbers[$name]:-}" ] || is "${numbers[$name]}" "$(duet config get "$name" user.number)" "an acknowledged key of $name"
    if [ -n "${snapshots[$name]:-}" ]; then
        duet query "/1.0/instances/$name/snapshots/first" >/dev/null
        duet snapshot restore "$name" first
    fi
    duet start "$name"
    duet exec "$name" -- true
    duet delete --force "$name"
done
# What ran runs again, with all that it had synced.
duet wait writes --for ipv4 --timeout 120
[ -z "$written" ] || is "$written" "$(duet exec writes -- cat "/line-$written")" "what was written last"
# Nothing is half-made, and nothing is left of what was deleted or half-deleted.
is writes "$(duet list -f csv -c n)" "the list"
is duet-monitor "$(pgrep -xl 'duet-monitor|unsquashfs' | cut -d ' ' -f 2)" "what runs"
for pool in /var/lib/duet/storage-pools/*; do
    tidy() { [ -z "$(find "$pool/tmp" -mindepth 1 2>/dev/null)" ]; }
    eventually 60 tidy
done
is 1 "$(find /var/lib/duet/storage-pools/default/layers -mindepth 1 -maxdepth 1 | wc -l)" "how many layers there are,"
is 1 "$(find /var/lib/duet/run -mindepth 1 -maxdepth 1 | wc -l)" "how many run,"
is "" "$(find /var/lib/duet/work /var/lib/duet/images -name '*.part' -o -path '*/work/*')" "what is half-made"
is 1 "$(ip -br link | grep -c '^duet[0-9a-f]\{8\}')" "how many links there are,"
END

cut_and_judge() { # cut_and_judge ROUND
    local deadline=$((SECONDS + 120)) before after
    before=$(stat -c %s "$acknowledged")
    within 30 "systemd-run --quiet --unit=load bash -c $(printf %q "$load") load $1" || return
    # Under way, and then at any moment.
    until [ "$(stat -c %s "$acknowledged")" -gt "$before" ]; do
        [ $SECONDS -lt $deadline ] || { echo "the load does nothing"; within 30 'cat /root/load.log'; return 1; }
        read -r -t 0.1 <> <(:) || true
    done
    sleep "$((RANDOM % 9)).$((RANDOM % 1000))"
    cut_power
    after=$(tail -c "+$((before + 1))" "$acknowledged" | grep -c .) || true
    echo "cut after $after notes"
    power_on || { echo "the host does not come up again"; return 1; }
    # A line that is whole: the last one may not be.
    within 900 ". /usr/local/lib/duet-checks.sh
echo $(tail -c "+$((before + 1))" "$acknowledged" | head -n "$(tail -c "+$((before + 1))" "$acknowledged" | wc -l)" | base64 -w 0) | base64 -d > /tmp/notes
$judge"
}

started=$SECONDS status=0
: > "$acknowledged"
# Not in a shell of their own: they end and start QEMU for the rest as well.
{ power_off && power_on; } > "$run/judged" 2>&1 || status=$?
report "the host is shut down and comes back with a disk that keeps what it is told to" $status "$(cat "$run/judged")" "$started"

for ((round = 1; round <= kills && status == 0; round++)); do
    started=$SECONDS
    cut_and_judge $round > "$run/judged" 2>&1 || status=$?
    report "power cut $round: the inventory is whole, what was acknowledged is there, nothing else is" $status "$(cat "$run/judged")" "$started"
done

check "and they go" <<'END'
duet delete --force writes
END

unset CHECK_SECONDS
