"""A real agent on the kind of pool that this run of the tests is for."""

import subprocess
import time
from pathlib import Path

from csi_driver.host.dm import ioctl
from csi_driver.host.fs import mountinfo
from support import thin_disks
from support.agent_process import AgentRig
from support.machine import KIND

DISK = "/dev/ubdb"
"""The second disk of the machine of tests/lvm; the contract suite has the first."""
_EXTENT = "4k"
"""So that sizes are multiples of what they are in a pool of files; the contract suite has the usual 4 MiB."""


class LvmAgentRig(AgentRig):
    """One agent on a pool of logical volumes, which fills the machine's disk."""

    _made = False

    def pool_options(self) -> list[str]:
        """See AgentRig."""
        if not self._made:
            thin_disks.make_group(DISK, _EXTENT, "8g")
            self._made = True
        return ["--pool", f"default=lvm:{thin_disks.GROUP}/{thin_disks.POOL}", "--pool-init"]

    def left(self) -> list[str]:
        """See AgentRig."""
        return [lv.name for lv in thin_disks.logical_volumes()] + thin_disks.devices() + thin_disks.suspended()

    def clean(self) -> None:
        """See AgentRig."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for name in thin_disks.suspended():
            ioctl.resume(ioctl.info(name=name).uuid)
        for _ in range(600):
            if not (ours := [m for m in mountinfo.read() if m.point.startswith(f"{self.root}/")]):
                break
            for mount in reversed(ours):
                subprocess.run(["fsfreeze", "-u", mount.point], check=False, capture_output=True)
                subprocess.run(["umount", mount.point], check=False, capture_output=True)
            time.sleep(0.05)
        assert not ours, f"left behind: {[m.point for m in ours]}"
        if self._made:
            thin_disks.remove_group(DISK)
            self._made = False


def agent_rig(root: Path) -> AgentRig:
    """An agent that is not started yet."""
    return LvmAgentRig(root) if KIND == "lvm" else AgentRig(root)
