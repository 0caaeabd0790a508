"""What the thin pool and the volume group have left: read from the kernel in microseconds, and from lvm's last report."""

import errno
from dataclasses import dataclass

from csi_driver.domain.capacity import Limit, Space
from csi_driver.domain.errors import Unavailable
from csi_driver.host.dm import ioctl, status
from csi_driver.host.dm.status import METADATA_BLOCK, ThinPoolStatus
from csi_driver.host.lvm.reports import VolumeGroup

SMALLEST_AREA = 16 << 20
"""Bytes of the area that a disk has for the volume group's metadata. The default of 1 MiB is full with fewer than 390 objects."""
METADATA_FULL = 0.75
"""Part of the thin pool's metadata beyond which nothing new is made: a pool whose metadata is full is repaired offline."""
AREA_FULL = 0.9
"""The same of the volume group's metadata area: when it is full, nothing can be deleted either."""


@dataclass(frozen=True, slots=True)
class Area:
    """The area for the volume group's metadata, in bytes: it holds two copies, so that half of it may be used."""

    total: int
    used: int


def area_of(group: VolumeGroup) -> Area:
    """Return how much of the metadata area a volume group takes."""
    total = group.area_size // 2
    return Area(total, max(0, total - group.area_free))


class PoolStatus:
    """The state of one thin pool. `uuid`: of its device in the device mapper, once the pool was opened."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.uuid = ""
        self.chunk = 0
        self.area = Area(1, 0)
        self.vg_free = 0
        """Bytes of the volume group that are in no logical volume, by lvm's last report: thick volumes are made of them."""

    def read(self) -> ThinPoolStatus:
        """Return the pool's status now. Raises Unavailable if it is not there, or has failed."""
        try:
            found = status.thin_pool(ioctl.status(uuid=self.uuid))
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise Unavailable(
                    f"pool {self._name}: its thin pool is no longer active: restart the agent, which activates it"
                ) from error
            raise Unavailable(f"pool {self._name}: the device mapper does not answer ({error.strerror})") from error
        except ValueError as error:
            raise Unavailable(f"pool {self._name}: {error}") from error
        if found.mode == "failed":
            raise Unavailable(
                f"pool {self._name}: its thin pool has failed: see the node's kernel log, and repair it (lvconvert --repair)"
            )
        return found

    def check(self) -> None:
        """Raise Unavailable if the pool has gone since it was opened, or takes no changes for an error of its own."""
        found = self.read()
        if found.mode == "ro" or found.needs_check:
            raise Unavailable(
                f"pool {self._name}: its thin pool takes no more writes, since its metadata are full or damaged: see the node's kernel "
                "log, and lvmthin(7), section Metadata check and repair"
            )

    def space(self) -> Space:
        """Return size and free bytes of the pool's data, and how full its metadata are. Raises Unavailable."""
        found = self.read()
        metadata = found.metadata_total * METADATA_BLOCK
        limits = (
            Limit(
                "thin pool's metadata",
                found.metadata_used * METADATA_BLOCK,
                metadata,
                int(metadata * METADATA_FULL),
                "enlarge it with lvextend --poolmetadatasize",
            ),
            Limit("volume group's metadata area", self.area.used, self.area.total, int(self.area.total * AREA_FULL)),
        )
        return Space(
            found.data_total * self.chunk, (found.data_total - found.data_used) * self.chunk, limits, self.vg_free
        )
