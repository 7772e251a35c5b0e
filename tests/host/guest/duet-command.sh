#!/bin/bash
# The command channel of a test host: reads one command a line from a virtio-serial port and answers with one line.
# "NUMBER COMMAND" comes in and "NUMBER STATUS OUTPUT" goes out; command and output are base64, so that a line is one.
exec 3<>/dev/virtio-ports/duet.command
while read -r number command <&3; do
    output=$(bash -c "$(base64 -d <<<"$command")" 2>&1 </dev/null 3>&- | base64 -w 0; exit "${PIPESTATUS[0]}")
    status=$?
    printf '%s %s %s\n' "$number" "$status" "$output" >&3
done
