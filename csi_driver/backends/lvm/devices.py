"""Devices of a pool's logical volumes: told by the uuid that the device mapper has of them, never by a name or a number alone.

A device is there as long as its logical volume is active. lvm makes it and takes it away, in the agent's turn; what is done to it
meanwhile is the helper processes'.
"""

import errno
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from csi_driver.backends.block_access import SLOW_TIMEOUT
from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.names import LvName, device_name, parse_device
from csi_driver.backends.lvm.table import Table
from csi_driver.backends.volume_helpers import VolumeHelpers
from csi_driver.domain.errors import Busy, DriverError, InUse, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.block import sources
from csi_driver.host.block.device import BlockDevice, name_of, sysfs
from csi_driver.host.dm import ioctl
from csi_driver.host.dm.ioctl import DeviceInfo
from csi_driver.host.fs import mountinfo
from csi_driver.host.helper.client import HelperPool
from csi_driver.host.lvm.reports import dm_uuid

_REMOVE_SECONDS = 10.0
_WRITES = (4, 6, 11, 13)
"""In /sys/block/NAME/stat: writes, sectors written, discards, sectors discarded."""
_NODE = re.compile(r"/(dm-\d+)(//deleted)?")


class ThinDevices:
    """The Devices port for a pool of logical volumes. `vg_uuid` is known once the pool was opened."""

    def __init__(self, vg: str, table: Table, changes: Changes, helpers: HelperPool) -> None:
        self._vg = vg
        self._table = table
        self._changes = changes
        self.jobs = VolumeHelpers(helpers)
        self.vg_uuid = ""
        self.attached: Callable[[str], None] = lambda _: None
        """Called with a volume's hash before it gets a device."""
        self.completed: Callable[[str], Awaitable[None]] = _nothing
        """Called with a logical volume's name before it gets a device that somebody uses."""
        self._last: dict[str, str] = {}
        """What `change_token` said last of logical volumes that have no device any more."""

    async def find(self, volume: Volume) -> BlockDevice | None:
        """See Devices."""
        self.jobs.refuse_hanging(volume)
        name = self._table.named("volume", volume.id.hash)
        found = self.of(name) if name else None
        return _device(found) if found else None

    def of(self, name: str) -> DeviceInfo | None:
        """Return the device of a logical volume; None: it is not active, or there is none of that name."""
        if name not in self._table:
            return None
        lv = self._table[name]
        try:
            if lv.uuid:
                found = ioctl.info(uuid=dm_uuid(self.vg_uuid, lv.uuid))
            else:
                # Made since the last report: its name tells it, and its device its uuid.
                found = ioctl.info(name=device_name(self._vg, name))
            if not found.uuid.startswith(dm_uuid(self.vg_uuid, "")):
                return None
            if not lv.uuid:
                self._table.learn(name, found.uuid.removeprefix(dm_uuid(self.vg_uuid, "")))
            if lv.pool and lv.thin_id is None:
                # What a report of lvm would tell, in microseconds.
                self._table.learn(name, thin_id=int(ioctl.table(uuid=found.uuid)[0].text.split()[1]))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
        return found

    async def source(self, volume: Volume) -> dict[str, Any]:
        """See Devices."""
        return sources.present(await self.attach(volume))

    def note(self, answer: Mapping[str, Any]) -> BlockDevice:
        """See Devices. Nothing need be remembered."""
        return BlockDevice(answer["path"], answer["name"], answer["major"], answer["minor"], answer["identity"])

    async def attach(self, volume: Volume) -> BlockDevice:
        """See Devices."""
        if (device := await self.find(volume)) is not None:
            return device
        name = self._table.of(volume).name
        self.attached(volume.id.hash)
        await self.completed(name)
        await self._changes.activate(name)
        device = await self.find(volume)
        if device is None:
            raise Precondition(
                f"{volume.id} has no device after lvm activated {self._vg}/{name}: see the node's kernel log"
            )
        # A bind of the number's last owner would hand it this volume's data.
        if stale := [mount.point for mount in mountinfo.mounts_of(device.major, device.minor, device.name)]:
            await self._changes.deactivate(name)
            raise Busy(f"{device.path} is still shown at {', '.join(stale)} for its last owner: unmount it there")
        return device

    async def detach(self, volume: Volume) -> None:
        """See Devices."""
        if await self.find(volume) is not None:
            await self.deactivate(self._table.of(volume).name)

    async def deactivate(self, name: str) -> None:
        """Take the device of a logical volume away. Raises InUse, naming how often it is open."""
        found = self.of(name)
        if found is None:
            return
        if found.opened:
            raise InUse(
                f"{_device(found).path} ({self._vg}/{name}) is open: stop what uses it (fuser -v {_device(found).path}), then "
                "try again"
            )
        token = self.change_token(name)
        await self._changes.deactivate(name)
        self._last[name] = token

    def change_token(self, name: str) -> str:
        """Return what changes whenever a logical volume is written to: the kernel counts that for each device, from 0 on."""
        if (found := self.of(name)) is None:
            return self._last.get(name, name)
        written = (sysfs(f"dm-{found.minor}", "stat") or "").split()
        return f"{name}/{sysfs(f'dm-{found.minor}', 'diskseq')}/{'-'.join(written[index] for index in _WRITES)}"

    async def grow_unmounted(self, volume: Volume) -> bool:  # noqa: ARG002
        """See Devices. A node with LVM pools lets its agent grow what is mounted: there is nothing to do before."""
        return False

    async def restore_allocation(self, volume: Volume) -> None:
        """See Devices. A thick volume is linear: all of its space is its own, whatever is written or discarded."""

    def count(self) -> int:
        """How many volumes of the pool have a device."""
        return sum(1 for _ in self._volumes())

    async def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """See Devices."""
        name = _dm_name(mount)
        if not name:
            return False
        if (uuid := sysfs(name, "dm/uuid")) is None:
            return True  # the node of a device that has gone
        held = parse_device(self._vg, sysfs(name, "dm/name") or "")
        if held is None or not uuid.startswith(dm_uuid(self.vg_uuid, "")):
            return False
        # A bind of a device's node may be older than what the number holds by now; a file system is what it is.
        living = not _node_name(mount) and self._table.named(held.kind, held.hash) == str(held)
        return not living or (volume is not None and held.kind == "volume" and held.hash == volume.id.hash)

    def is_unbound_device_node(self, mount: mountinfo.Mount) -> bool:
        """See Devices."""
        name = _node_name(mount)
        return bool(name) and sysfs(name, "dm/uuid") is None

    def nodes(self) -> list[mountinfo.Mount]:
        """See Devices."""
        return [mount for mount in mountinfo.read_with(b" /dm-") if _node_name(mount)]

    def device_generation(self, mount: mountinfo.Mount) -> str:
        """See Devices."""
        name = _dm_name(mount)
        uuid = sysfs(name, "dm/uuid") if name else None
        return f"{uuid}/{sysfs(name, 'diskseq')}" if uuid else ""

    async def release_unknown_device(self, mount: mountinfo.Mount, generation: str) -> None:
        """See Devices."""
        name = _dm_name(mount)
        held = parse_device(self._vg, sysfs(name, "dm/name") or "") if name else None
        if held is None or not generation or self.device_generation(mount) != generation:
            return
        number = sysfs(name, "dev") or "0:0"
        major, minor = map(int, number.split(":"))
        if str(held) in self._table and not mountinfo.mounts_of(major, minor, name):
            with suppress(InUse):  # somebody has it open: it is found again at the next start
                await self.deactivate(str(held))

    async def mounts_of_volume(self, digest: str) -> list[mountinfo.Mount]:
        """See Devices. By the names of devices, which carry the hash."""
        mounts = mountinfo.read()
        found = [(major, minor) for name, _, major, minor in self._volumes() if name.hash == digest]
        return [m for major, minor in found for m in mountinfo.mounts_of(major, minor, f"dm-{minor}", mounts)]

    async def detach_unavailable(self, digest: str) -> None:
        """See Devices. By the device mapper alone: lvm may not find the volume group, or wait for a disk of it."""
        for name, device, _, _ in list(self._volumes()):
            if name.hash != digest:
                continue
            found = ioctl.info(name=device)
            if not found.uuid.startswith("LVM-"):
                continue
            if found.opened:
                raise InUse(f"{_device(found).path} ({device}) is open: stop what uses it, then try again")
            argv = ["dmsetup", "remove", "--uuid", found.uuid]
            await self.jobs.run(None, "command", SLOW_TIMEOUT, argv=argv, seconds=_REMOVE_SECONDS)

    async def sweep(self) -> None:
        """Deactivate what is shown nowhere: a crash left it, or the node activated it at its start."""
        mounts = mountinfo.read()
        for name, _, major, minor in list(self._volumes(every=True)):
            if str(name) in self._table and not mountinfo.mounts_of(major, minor, f"dm-{minor}", mounts):
                with suppress(DriverError):  # somebody has it open: it is found again at the next stage
                    await self.deactivate(str(name))

    def _volumes(self, every: bool = False) -> Iterator[tuple[LvName, str, int, int]]:
        """The devices of volumes of this group, with their names and numbers. `every`: also of snapshots."""
        for name, major, minor in ioctl.names():
            held = parse_device(self._vg, name)
            if held is not None and (every or held.kind == "volume"):
                yield held, name, major, minor


async def _nothing(_: str) -> None:
    return None


def _device(found: DeviceInfo) -> BlockDevice:
    return BlockDevice(f"/dev/dm-{found.minor}", f"dm-{found.minor}", found.major, found.minor, found.uuid)


def _dm_name(mount: mountinfo.Mount) -> str:
    """The kernel's name of the device behind a mount: of a file system on it, or of its node. Empty: none of the device mapper."""
    name = _node_name(mount) or name_of(mount.major, mount.minor)
    return name if name.startswith("dm-") else ""


def _node_name(mount: mountinfo.Mount) -> str:
    node = _NODE.fullmatch(mount.root)
    return node[1] if node and mount.fs_type in {"devtmpfs", "tmpfs"} else ""
