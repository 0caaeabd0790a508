"""The demo's pool of LVM thin: a volume group on a sparse file, behind a loop device and a partition of the device mapper.

The partition is there because no lvm of an agent looks at loop devices, which may be volumes of tenants.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from csi_driver.cli.demo.pools import TIDEMARK, clean_environment, loops_below, run
from csi_driver.cli.failure import Failure

_SIZE = 2 << 30
"""Of the sparse file."""
_SECTOR = 512
_TOOLS = {"lvm": "lvm2", "thin_check": "thin-provisioning-tools", "dmsetup": "dmsetup"}
_TARGET = "thin-pool"
_NODES = ("--verifyudev",)
"""Makes and removes the nodes in /dev/mapper where no udev does."""
_MAKE_SECONDS = 180.0


def why_not_lvm() -> str:
    """Return why this process cannot have a pool of LVM thin, with what to do; empty if it can."""
    if os.geteuid() != 0:
        return "volume groups and mounts need root"
    if missing := [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]:
        return f"install Debian's {' and '.join(missing)}"
    if lacks_kernel():
        return (
            f"this kernel ({os.uname().release}) has no device mapper with thin provisioning: load its module dm-thin-pool; or, in "
            "Tidemark's source directory, make demo ARGS='--backend lvm' plays it in user-mode Linux"
        )
    return ""


def lacks_kernel() -> bool:
    """Return whether this kernel has no thin provisioning, not even as a module."""
    run("modprobe", "--quiet", "dm-thin-pool")
    with suppress(OSError, subprocess.TimeoutExpired):
        targets = subprocess.run(
            ("dmsetup", "targets"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
        return not any(line.split()[:1] == [_TARGET] for line in targets.stdout.splitlines())
    return True


class LvmPool:
    """See DemoPool."""

    mounting = True
    summary = "LVM thin (volume group in a file of 2 GiB on a loop device, removed)"

    def __init__(self, root: Path) -> None:
        self._image = root / "disk.img"
        self._root = root
        self._name = root.name.replace("-", "_")  # of volume group and partition: the device mapper doubles dashes
        self._partition = f"{self._name}_disk"
        self.where = f"on LVM thin in {self._image}"

    @property
    def disk(self) -> str:
        """The device that becomes the volume group."""
        return f"/dev/mapper/{self._partition}"

    def options(self) -> list[str]:
        """See DemoPool."""
        return ["--pool", f"demo=lvm:{self._name}", "--reserve", "64Mi"]

    def make(self) -> None:
        """See DemoPool."""
        with self._image.open("wb") as image:
            image.truncate(_SIZE)
        loop = self._checked("losetup", "--find", "--show", str(self._image)).strip()
        table = f"0 {_SIZE // _SECTOR} linear {loop} 0"
        # As a partition of a disk has it that the device mapper makes: a disk of its own, to lvm.
        uuid = f"part1-{self._name}"
        self._checked("dmsetup", "create", *_NODES, self._partition, "--uuid", uuid, "--table", table)
        self._checked(*TIDEMARK, "pool", "create", "demo", "--lvm", "--vg", self._name, self.disk)

    def remove(self) -> None:
        """See DemoPool."""
        for device in reversed(self._devices()):
            run("dmsetup", "remove", "--retry", *_NODES, device)
        for device in loops_below(self._root):
            run("losetup", "--detach", device)

    def remaining(self) -> list[str]:
        """See DemoPool."""
        devices = [f"device {device}" for device in self._devices()]
        return devices + [f"loop device {device}" for device in loops_below(self._root)]

    def _devices(self) -> list[str]:
        """The device mapper's names of the pool's devices, in the order of their making."""
        found = []
        for file in Path("/sys/block").glob("dm-*/dm/name"):
            with suppress(OSError):
                name = file.read_text().strip()
                if name == self._partition or name.startswith(f"{self._name}-"):
                    found.append((int(file.parts[3].removeprefix("dm-")), name))
        return [name for _, name in sorted(found)]

    def _checked(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_MAKE_SECONDS,
                check=False,
                env=clean_environment(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure(f"demo: {error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise Failure(f"demo: {' '.join(command[:4])} ended with {done.returncode}: {said}")
        return done.stdout
