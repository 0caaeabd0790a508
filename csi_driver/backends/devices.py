"""What a technology whose volumes are block devices supplies to be shown through the kernel."""

from collections.abc import Mapping
from typing import Any, Protocol

from csi_driver.backends.volume_helpers import VolumeHelpers
from csi_driver.domain.model import Volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.fs import mountinfo


class Devices(Protocol):
    """What a technology supplies to be shown here."""

    jobs: VolumeHelpers

    async def find(self, volume: Volume) -> BlockDevice | None:
        """The volume's device, told by identity, or None. Costs no process where the attachment was met before."""
        ...

    def source(self, volume: Volume) -> dict[str, Any]:
        """Return what a helper process attaches the volume by, or finds its device by: see host/block/sources.py."""
        ...

    def note(self, told: Mapping[str, Any]) -> BlockDevice:
        """The device that a job has attached, as it told it; `find` knows it from now on."""
        ...

    async def attach(self, volume: Volume) -> BlockDevice:
        """Make or find the volume's one device, at the volume's size."""
        ...

    async def detach(self, volume: Volume) -> None:
        """Take the volume's device away, verified. Raises InUse with nothing changed."""
        ...

    async def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """Whether what is mounted there is, or was, a volume of this pool, and no living one besides `volume`."""
        ...

    def is_unbound_device_node(self, mount: mountinfo.Mount) -> bool:
        """Whether what is mounted is the node of a device that holds nothing."""
        ...

    def nodes(self) -> list[mountinfo.Mount]:
        """Every mount of the node of a device of this kind, whoever's it is."""
        ...

    def device_generation(self, mount: mountinfo.Mount) -> str:
        """What tells the device behind a mount, as it is bound now, from the next owner of its number. Empty: it holds nothing."""
        ...

    async def release_unknown_device(self, mount: mountinfo.Mount, held: str) -> None:
        """Take away the device that was behind a mount of a volume that is no longer known, if it still is what was `held`."""
        ...

    async def mounts_of_volume(self, digest: str) -> list[mountinfo.Mount]:
        """Where the volume with this hash is shown, as far as can be told without looking into its pool."""
        ...

    async def detach_unavailable(self, digest: str) -> None:
        """Take away the device of a volume whose pool cannot be looked into, if it is surely that volume's. Raises InUse."""
        ...

    async def grow_unmounted(self, volume: Volume) -> bool:
        """Grow the ext4 of a volume that is shown nowhere to the volume's size, in one step. True: it has no device now.

        Costs no process where there is nothing to grow.
        """
        ...

    async def restore_allocation(self, volume: Volume) -> None:
        """Make good what a thick volume was promised, where it lacks space. Raises OutOfSpace where the pool has none."""
        ...
