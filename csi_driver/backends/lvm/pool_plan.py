"""How a pool of LVM is made of disks, and made larger: which disks may be taken, which sizes it gets, which commands do it."""

from collections.abc import Sequence
from dataclasses import dataclass

from csi_driver.domain.capacity import GIB, MIB, human
from csi_driver.domain.errors import InvalidRequest, OutOfRange, Precondition
from csi_driver.host.lvm import tags
from csi_driver.host.lvm.configuration import Version, has_auto_activation
from csi_driver.host.lvm.disks import Disk

THIN_POOL = "pool"
"""Name of the thin pool in its volume group."""
AREA = 64 * MIB
"""Bytes on each disk for the volume group's metadata. The default of 1 MiB holds fewer than 390 volumes and snapshots with their
records, and cannot be changed later; 64 MiB hold 30,000."""

_FORMAT = 1
_SMALLEST_DISK = 512 * MIB
_CHUNK = 64 << 10
"""Bytes: what the first write after a snapshot copies, and what the first write to a new chunk zeroes."""
_DATA_OF_CHUNK = 15 << 40
"""Bytes of data that a thin pool addresses with chunks of 64 KiB: LVM's limit is 15.81 TiB."""
_LEAST_METADATA, _MOST_METADATA = 512 * MIB, 15 * GIB
"""Of a thin pool. It takes 31 bytes a chunk (measured), and again for each snapshot that has its own; LVM's limit is 15.81 GiB."""


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Bytes of a thin pool's data, of its metadata (of which there is a spare as large), and of a chunk."""

    data: int
    metadata: int
    chunk: int


def check_disks(disks: Sequence[Disk]) -> None:
    """Raise the reason why disks cannot be taken: Precondition for what is on them, InvalidRequest for one that is named twice."""
    names = [disk.name for disk in disks]
    if twice := [disk.path for disk in disks if names.count(disk.name) > 1]:
        raise InvalidRequest(f"{' and '.join(twice)} are the same disk: name each disk once")
    for disk in disks:
        if disk.users:
            raise Precondition(
                f"{disk.path} is in use ({', '.join(disk.users)}): nothing was changed; name another disk, or end that first"
            )
        if disk.is_physical_volume:
            raise Precondition(
                f"{disk.path} is a disk of LVM already ({', '.join(disk.content)}): nothing was changed; name another disk. `pvs "
                f"{disk.path}` shows its volume group. If nothing in it is needed: {_emptied(disk)}"
            )
        if disk.content:
            raise Precondition(
                f"{disk.path} is not empty ({', '.join(disk.content)}): nothing was changed; name an empty disk. If nothing on it is "
                f"needed: {_emptied(disk)}"
            )
        if not disk.searched:
            raise InvalidRequest(
                f"{disk.path} cannot be part of a pool: pools are looked for on disks, partitions, multipath and encrypted devices "
                "alone, since on loop devices, network block devices and other logical volumes lies what tenants have put there"
            )
        if disk.size < _SMALLEST_DISK:
            raise OutOfRange(
                f"{disk.path} has {human(disk.size)}: a disk of a pool has at least {human(_SMALLEST_DISK)}"
            )


def _emptied(disk: Disk) -> str:
    return f"wipefs --all {disk.path}; dd if=/dev/zero of={disk.path} bs=1M count=1"


def pool_sizes(free: int, extent: int, wanted: int | None = None) -> PoolSizes:
    """Return the sizes of a new thin pool in a volume group with `free` bytes, in whole extents.

    `wanted`: bytes of data; None: all. What is left is for thick volumes. Metadata is 1 % of the data, at least 512 MiB, but no
    more than 2 % on a small disk. Raises OutOfRange.
    """
    metadata = metadata_size(free if wanted is None else wanted, extent)
    most = (free - 2 * metadata) // extent * extent
    data = most if wanted is None else -(-wanted // extent) * extent
    if data > most or data <= 0:
        raise OutOfRange(
            f"a thin pool of {human(max(data, 0))} does not fit: the disks have {human(free)}, of which {human(2 * metadata)} are "
            f"for its metadata and a spare of it; ask for at most {human(max(most, 0))}"
        )
    return PoolSizes(data, metadata, chunk_size(data))


def metadata_size(data: int, extent: int) -> int:
    """Return the bytes of metadata of a thin pool with so much data, in whole extents."""
    least = min(_LEAST_METADATA, data // 50)
    return -(-min(max(data // 100, least, 2 * extent), _MOST_METADATA) // extent) * extent


def chunk_size(data: int) -> int:
    """Return the smallest chunk with which a thin pool can address so much data."""
    chunk = _CHUNK
    while data > _DATA_OF_CHUNK * (chunk // _CHUNK):
        chunk *= 2
    return chunk


def pool_identity(name: str, uuid: str) -> str:
    """Return the tag of a new pool. Nobody owns it: the first agent that opens it under this name does from then on."""
    return tags.pool_tag({"format": _FORMAT, "uuid": uuid, "name": name, "owner": ""})


def physical_volume(disk: Disk) -> list[str]:
    """Return the command that makes a disk one of LVM. It asks before it wipes anything, and gets no answer."""
    return ["pvcreate", "--metadatasize", f"{AREA}b", disk.stable]


def volume_group(vg: str, disks: Sequence[Disk], tag: str, version: Version) -> list[str]:
    """Return the command that makes the volume group of disks. It is not activated at boot: the agent activates what it needs."""
    automatic = ["--setautoactivation", "n"] if has_auto_activation(version) else []
    return ["vgcreate", *automatic, "--addtag", tag, vg, *(disk.stable for disk in disks)]


def thin_pool(vg: str, sizes: PoolSizes) -> list[str]:
    """Return the command that makes the thin pool: new chunks are zeroed, and a full pool fails at once instead of hanging."""
    return [
        "lvcreate", "--yes", "--thin", "--size", f"{sizes.data}b", "--poolmetadatasize", f"{sizes.metadata}b",
        "--poolmetadataspare", "y", "--chunksize", f"{sizes.chunk}b", "--zero", "y", "--errorwhenfull", "y",
        f"{vg}/{THIN_POOL}",
    ]  # fmt: skip


def growth(vg: str, pool: str, data: int, metadata: int, added: int, extent: int) -> list[list[str]]:
    """Return the commands by which a thin pool takes the `added` bytes of new disks: its metadata grows first, if it must.

    `data`, `metadata`: what it has. What was left for thick volumes stays so.
    """
    wanted = metadata_size(data + added, extent)
    more = min(max(0, wanted - metadata), max(0, added // 8)) // extent * extent
    rest = (added - 2 * more) // extent * extent
    commands = []
    if more:
        commands.append(["lvextend", "--yes", "--poolmetadatasize", f"+{more}b", f"{vg}/{pool}"])
    if rest > 0:
        commands.append(["lvextend", "--yes", "--size", f"+{rest}b", f"{vg}/{pool}"])
    return commands
