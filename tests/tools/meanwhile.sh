#!/bin/sh
# Builds the programs of the test cluster while something else runs, with what that leaves of the processors.
#
#     meanwhile.sh COMMAND...      runs COMMAND, and ends as it does
#
# From nothing that saves about ten minutes: most tests wait, for disks or for time to pass. A build that is not through yet
# goes on when COMMAND was well, and whoever needs it waits for it (kubernetes.sh); otherwise it ends too, since nobody will.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# A session of its own, which can be ended as a whole.
setsid chrt --idle 0 sh "$here/kubernetes.sh" >/dev/null 2>&1 &
build=$!

end() {
    kill -TERM "-$build" 2>/dev/null
    wait "$build"
}
trap 'end; exit 130' INT
trap 'end; exit 143' TERM HUP

"$@"
status=$?
[ "$status" -eq 0 ] || end
exit "$status"
