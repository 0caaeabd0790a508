#!/bin/sh
# Process 1 of a user-mode Linux whose root is the host's own, read-only. /dev/ubda holds the pool.
# Nothing is mounted over /tmp: the program may lie there.
# From the kernel's command line: TIDEMARK_TEST_BACKEND, PYTHON, PYTHONPATH, GUEST (a program of Python), STEP and SEED (its arguments).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 TMPDIR=/run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir /dev/shm && mount -t tmpfs shm /dev/shm
. "${GUEST%/*/*}/support/uml_modules.sh"
if [ "$TIDEMARK_TEST_BACKEND" = lvm ]; then
    mkdir -p /run/lock/lvm /run/lvm
    for module in dm-mod dm-thin-pool dm-snapshot; do load "$module"; done
    "$PYTHON" "$GUEST" "$STEP" "$SEED"
else
    [ -e /dev/loop-control ] || load loop
    mkdir /run/pool
    mount -t xfs -o noatime /dev/ubda /run/pool && "$PYTHON" "$GUEST" "$STEP" "$SEED"
fi
halt -f -p -d
