"""What a technology whose volumes are block devices supplies to BlockDeviceAccess."""

from collections.abc import Mapping
from typing import Any, Protocol

from csi_driver.backends.volume_helpers import VolumeHelpers
from csi_driver.domain.model import Volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.fs import mountinfo


class Devices(Protocol):
    """The block devices of one pool's volumes."""

    jobs: VolumeHelpers

    async def find(self, volume: Volume) -> BlockDevice | None:
        """Return the volume's device, known by identity, or None. Costs no process if the attachment was met before."""
        ...

    async def source(self, volume: Volume) -> dict[str, Any]:
        """Return what a helper process attaches the volume by, or finds its device by: see host/block/sources.py.

        Where a helper process cannot attach it, it is attached before this returns.
        """
        ...

    def note(self, answer: Mapping[str, Any]) -> BlockDevice:
        """Return the device that a helper process answered; `find` knows it from now on."""
        ...

    async def attach(self, volume: Volume) -> BlockDevice:
        """Make or find the volume's one device, at the volume's size."""
        ...

    async def detach(self, volume: Volume) -> None:
        """Detach the volume's device, verified. Raises InUse with nothing changed."""
        ...

    async def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """Return whether what is mounted is, or was, a volume of this pool, and no living one besides `volume`."""
        ...

    def is_unbound_device_node(self, mount: mountinfo.Mount) -> bool:
        """Return whether what is mounted is the node of a device that holds nothing."""
        ...

    def nodes(self) -> list[mountinfo.Mount]:
        """Return every mount of the node of a device of this kind, whoever's it is."""
        ...

    def device_generation(self, mount: mountinfo.Mount) -> str:
        """Return a token of the attachment behind a mount, which changes when its number is reused. Empty: it holds nothing."""
        ...

    async def release_unknown_device(self, mount: mountinfo.Mount, generation: str) -> None:
        """Detach the device that was behind a mount of a volume that is no longer known, if its generation is still this one."""
        ...

    async def mounts_of_volume(self, digest: str) -> list[mountinfo.Mount]:
        """Return the mounts of the volume with this hash, as far as they are known without its pool."""
        ...

    async def detach_unavailable(self, digest: str) -> None:
        """Detach the device of a volume whose pool is unavailable, if it is surely that volume's. Raises InUse."""
        ...

    async def grow_unmounted(self, volume: Volume) -> bool:
        """Grow the ext4 of a volume that is mounted nowhere to the volume's size, in one step. True: it has no device now.

        Costs no process if there is nothing to grow.
        """
        ...

    async def restore_allocation(self, volume: Volume) -> None:
        """Allocate what a thick volume lacks of its size. Raises OutOfSpace if the pool has no space."""
        ...
