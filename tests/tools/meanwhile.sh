#!/bin/sh
# Has something built while something else runs, with what that leaves of the processors.
#
#     meanwhile.sh BUILD COMMAND...      runs COMMAND, and ends as it does; BUILD is a line for the shell
#
# From nothing that saves about ten minutes: many tests wait, for disks or for time to pass. A build that is not through yet
# goes on when COMMAND was well, and whoever needs it waits for it (kubernetes.sh); otherwise it ends too, since nobody will.
set -u

# A session of its own, which can be ended as a whole.
setsid chrt --idle 0 sh -c "$1" >/dev/null 2>&1 &
build=$!
shift

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
