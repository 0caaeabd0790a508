"""`make demo`: the demo on this kernel, or, for LVM thin on a kernel without the device mapper, in user-mode Linux.

python tests/lvm/demo.py TIDEMARK [OPTION...]
"""

import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, Popen

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402 - run as a program, the line before finds it

from csi_driver.cli.demo.lvm_pool import lacks_kernel, why_not_lvm  # noqa: E402

LIMIT = 1800.0
"""Seconds. It took twelve minutes on two busy processors, of which the demo itself used a quarter."""

_OF_THE_KERNEL = "^(SELinux: |mmapper_init |operation not supported error, dev loop|Powering off|reboot: )"
"""What user-mode Linux says on its console: at boot, at its end, and of a loop device on a file in memory."""


def wants_lvm(options: list[str]) -> bool:
    """Return whether these options of the demo ask for LVM."""
    return "--backend=lvm" in options or ("--backend", "lvm") in pairwise(options)


def main(tidemark: str, options: list[str]) -> int:
    """Play the demo; return its exit code."""
    command = [tidemark, "demo", *options]
    if not wants_lvm(options) or not why_not_lvm() or not lacks_kernel():
        os.execv(tidemark, command)
    release = os.uname().release
    if reason := machine.why_not():
        print(f"demo: this kernel ({release}) has no thin provisioning, and there is no user-mode Linux: {reason}")
        return 1
    print(f"This kernel ({release}) has no thin provisioning: playing the demo in user-mode Linux, where each command")
    print("of LVM takes about a second. Times below are not those of your machine.", flush=True)
    with tempfile.TemporaryDirectory(prefix="demo-") as place:
        shared = Path(place, "shared")
        shared.mkdir()
        with Popen(("sed", "-u", "-E", f"/{_OF_THE_KERNEL}/d"), stdin=PIPE) as shown:
            return machine.run(command, shared, LIMIT, stdout=shown.stdin)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
