"""One agent's services on a pool of logical volumes, for tests inside the machine of tests/lvm."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csi_driver.backends.options import PoolOptions
from csi_driver.backends.registry import BACKENDS
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.host.dm import ioctl
from support import thin_disks
from support.node_rig import OWNER, PATIENCE, POOL, Rig

_numbers = itertools.count()


class LvmRig(Rig):
    """As Rig, on the volume group of the disk that is attached."""

    backend: Any

    def make_backend(self, options: dict[str, Any]) -> Any:
        """See Rig."""
        path = f"{thin_disks.GROUP}/{thin_disks.POOL}"
        return BACKENDS["lvm"].make(PoolOptions(POOL, OWNER, path, **options), self.children)

    @contextmanager
    def blocks(self, *items: Volume | Snapshot) -> Iterator[list[Path]]:
        """See Rig. By devices that lvm knows nothing of, so that what is inactive stays so."""
        known = {lv.name: lv for lv in thin_disks.logical_volumes()}
        lvs = [known[self.backend.table.of(item).name] for item in items]
        wanted = [(f"look-{next(_numbers)}", lv.thin_id or 0, lv.size) for lv in lvs]
        paths = thin_disks.show(wanted) if wanted else []
        try:
            yield paths
        finally:
            if paths:
                thin_disks.hide(paths)

    def mode(self, snapshot: Snapshot) -> int:
        """See Rig. Who may write to a snapshot is lvm's to say: nobody activates one."""
        return 0

    def is_allocated(self, volume: Volume) -> bool:
        """See Rig. Thick volumes are linear."""
        return True

    def device(self, volume: Volume) -> Any:
        """See Rig."""
        return asyncio.get_running_loop().run_until_complete(self.access.find(volume))

    def devices(self) -> list[Any]:
        """See Rig. Those that lvm has made for objects."""
        return [ioctl.info(name=name) for name in thin_disks.devices()]

    def left_inside(self) -> list[str]:
        """See Rig."""
        return [f"{path.parent.name}/{path.name}" for path in self.node_local.glob("*")]


__all__ = ["PATIENCE", "LvmRig"]
