#!/bin/sh
# Runs a command while the clusters of the tests are up: those that are not are made before it, and removed after it.
#
#     clusters.sh PYTHON COMMAND...     runs COMMAND, and ends as it does; PYTHON is that of the environment
#
# $TIDEMARK_CLUSTERS says how many (2), and tells COMMAND. Scenarios that disturb their cluster mostly wait, for a node to be
# missed or a lease to end: two clusters need little more of the processors than one.
set -u

here=$(cd "$(dirname "$0")" && pwd)

# each PYTHON DO NUMBER...: has the rig do that with each of these clusters at once; fails where it fails for one.
each() {
    python=$1
    do=$2
    shift 2
    running=
    for number in "$@"; do
        TIDEMARK_CLUSTER=$number PYTHONPATH=$here/../cluster "$python" -m rig "$do" >&2 &
        running="$running $!"
    done
    status=0
    for pid in $running; do
        wait "$pid" || status=1
    done
    return "$status"
}

if [ "$1" = --each ]; then
    shift
    each "$@"
    exit
fi

python=$1
shift
TIDEMARK_CLUSTERS=${TIDEMARK_CLUSTERS:-2}
export TIDEMARK_CLUSTERS
made=
number=0
while [ "$number" -lt "$TIDEMARK_CLUSTERS" ]; do
    each "$python" present "$number" || made="$made $number"
    number=$((number + 1))
done

remove() {
    # shellcheck disable=SC2086  # a list of numbers
    [ -z "$made" ] || sh "$here/stage.sh" 'clusters go' sh "$0" --each "$python" down $made
}
trap 'remove; exit 130' INT
trap 'remove; exit 143' TERM HUP
# shellcheck disable=SC2086
if [ -z "$made" ] || sh "$here/stage.sh" 'clusters come up' sh "$0" --each "$python" up $made; then
    "$@"
    status=$?
else
    status=1
fi
remove || status=1
exit "$status"
