#!/bin/sh
# Runs a command as one stage of a long run: says when it begins and how long it took.
#
#     stage.sh NAME COMMAND...      runs COMMAND, and ends as it does
#
# $TIDEMARK_STAGES names a file that gets a line "SECONDS NAME" for each stage; .ci/run makes its table of it.
set -u

name=$1
shift
printf '\n== %s: begins at %s\n' "$name" "$(date -u +%H:%M:%S)" >&2
began=$(date +%s)
status=0
"$@" || status=$?
seconds=$(($(date +%s) - began))
printf '== %s: %d min %02d s%s\n' "$name" $((seconds / 60)) $((seconds % 60)) "$([ "$status" -eq 0 ] || echo ", status $status")" >&2
[ -z "${TIDEMARK_STAGES-}" ] || printf '%d %s\n' "$seconds" "$name" >>"$TIDEMARK_STAGES"
exit "$status"
