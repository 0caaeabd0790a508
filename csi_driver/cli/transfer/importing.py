"""Makes a new volume of a raw image file.

The content is written to a hidden volume through its device, as any program writes to a volume. When all of it is durable,
a snapshot of that volume becomes the new one, in one step: under the name that was asked for there is a whole volume, or
none. The hidden volume goes before the new one comes, so that an import never reserves the size twice. A command that is
killed leaves the hidden volume or snapshot; the same import again removes them first, and starts over.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csi_driver.cli.common import retry_while_busy
from csi_driver.cli.failure import Failure
from csi_driver.cli.mount_paths import STAGING, staging_of
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.sizes import show
from csi_driver.cli.transfer.hidden_names import PREFIX, hidden_name
from csi_driver.cli.transfer.progress import ProgressLine
from csi_driver.domain.ids import parse
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.domain.requests import FILE_SYSTEMS
from csi_driver.host.errors import Busy
from csi_driver.host.fs import files, filesystems, sparse
from csi_driver.rpc.clients.cli_client import CallRefused, CreatedVolume

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client

SYNC_BYTES = 64 << 20
"""Bytes written between two readings of the free space of the pool."""

_BLOCK = Capability("block", AccessMode.WRITER)
_BUSY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What to make. `raw`: a raw block device, also of a file that has a file system. `pool`: empty for the first one."""

    name: str
    path: str
    pool: str = ""
    thick: bool = False
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of it: the new volume, the file's size and data in bytes, and its file system if it is to be mounted."""

    volume: CreatedVolume
    file_size: int
    written: int
    fs_type: str


def run_import(client: "Client", request: ImportRequest) -> Imported:
    """Make the volume. Raises Failure, CallRefused; then there is neither a volume of that name nor anything hidden.

    Refuses a name that a volume has, or is shown by.
    """
    hidden = hidden_name(request.name)
    with _source(request.path) as file, _alone(hidden):
        fs_type = _file_system(request)
        remove_leftovers(client, hidden)
        _check_new(client, request.name)
        try:
            before = os.fstat(file)
            parameters = {"pool": request.pool} if request.pool else {}
            made = client.create_volume(hidden, SizeRange(before.st_size), [_BLOCK], parameters)
            with _device(client, made.id) as device:
                written = _fill(client, request, made.id, file, device)
            _check_unchanged(request.path, before, os.fstat(file))
            snapshot = client.create_snapshot(made.id, hidden)
            client.delete_volume(made.id)
            capability = Capability("mount", AccessMode.WRITER, fs_type) if fs_type else _BLOCK
            parameters = {"provisioning": "thick"} if request.thick else {}
            size = SizeRange(before.st_size)
            volume = client.create_volume(request.name, size, [capability], parameters, Source("snapshot", snapshot.id))
        except BaseException:
            with suppress(CallRefused):  # the error that comes first is reported; the next import removes them
                remove_leftovers(client, hidden)
            raise
        remove_leftovers(client, hidden)
    return Imported(volume, before.st_size, written, fs_type)


def _check_new(client: "Client", name: str) -> None:
    objects = AgentObjects.read(client)
    for volume in objects.volumes:
        if name in (volume.name, objects.name(volume)):
            created = "" if objects.name(volume) == name else f", which was created as {name}"
            raise Failure(
                f"volume {objects.name(volume)} exists{created}: use another name, or `tidemark volume delete {objects.argument(volume)}` first"
            )


def discard_import(client: "Client", hidden: str) -> None:
    """Remove what an import has left that was killed. Raises Failure if it still runs, CallRefused."""
    with _alone(hidden):
        remove_leftovers(client, hidden)


def remove_leftovers(client: "Client", hidden: str) -> None:
    """Remove the hidden volume and snapshot of an import, in use or not. Raises CallRefused."""
    for node in [node for node in client.tree() if node.name == hidden and node.kind in ("volume", "snapshot")]:
        if node.kind == "snapshot":
            client.delete_snapshot(node.id)
            continue
        _detach(client, node.id)
        retry_while_busy(lambda volume_id=node.id: client.delete_volume(volume_id), _BUSY_SECONDS)  # type: ignore[misc]


def _fill(client: "Client", request: ImportRequest, volume_id: str, file: int, device: int) -> int:
    size = os.fstat(file).st_size
    progress = ProgressLine(f"importing {request.name}", size)
    checked = 0

    def report(done: int, written: int) -> None:
        nonlocal checked
        progress.show(done, written)
        if written - checked >= SYNC_BYTES or done == size:
            os.fsync(device)
            checked = written
            _check_space(client, volume_id)

    try:
        return sparse.copy(file, device, size, report)
    except sparse.SourceChanged:
        raise _changed(request.path) from None
    except OSError as error:
        # The kernel says EIO, too, of a device whose image gets no space.
        raise Failure(
            f"{request.path} was not imported: {error.strerror}; `tidemark pool list` shows whether the pool is full; "
            f"nothing is left of volume {request.name}"
        ) from None
    finally:
        progress.clear()


def _check_space(client: "Client", volume_id: str) -> None:
    """Raise Failure before the pool is so full that the writes of other volumes fail."""
    item = parse(volume_id)
    for pool in client.pools():
        if item is not None and (pool.owner, pool.name) == (item.owner, item.pool) and pool.free < pool.reserve:
            raise Failure(
                f"pool {pool.name} has {show(pool.free)} free, less than its reserve of {show(pool.reserve)}: the import "
                "was stopped and removed; delete something, or enlarge the pool"
            )


def _check_unchanged(path: str, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)


def _changed(path: str) -> Failure:
    return Failure(f"{path} changed while it was read: stop what writes to it, then import again; nothing was created")


def _file_system(request: ImportRequest) -> str:
    """Return the file system with which the volume is to be mounted; empty for a raw block device."""
    if request.raw:
        return ""
    found = filesystems.probe(request.path)
    return {"ext2": "ext4", "ext3": "ext4"}.get(found, found if found in FILE_SYSTEMS else "")


@contextmanager
def _source(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror}): name a raw image file") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Failure(f"{path} is not a regular file: copy it to a raw image file first")
        if not status.st_size:
            raise Failure(f"{path} is empty: name a raw image file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _alone(hidden: str) -> Iterator[None]:
    """Keep another import of the same name away, which would take what this one has written for a leftover."""
    try:
        STAGING.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = files.lock_pool(STAGING / f"import-{hashlib.sha256(hidden.encode()).hexdigest()[:16]}.lock")
    except Busy:
        raise Failure(f"another import makes volume {hidden.removeprefix(PREFIX)} now: wait for it") from None
    except OSError as error:
        raise Failure(f"{STAGING} cannot be written ({error.strerror}): run as root") from None
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def _device(client: "Client", volume_id: str) -> Iterator[int]:
    """Yield a descriptor of the volume's device, to be written; it is taken away again."""
    staging, target = staging_of(volume_id), _target(volume_id)
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    client.stage(volume_id, str(staging), _BLOCK)
    client.publish(volume_id, str(staging), str(target), _BLOCK)
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)
    _detach(client, volume_id)


def _detach(client: "Client", volume_id: str) -> None:
    staging = staging_of(volume_id)
    client.unpublish(volume_id, str(_target(volume_id)))
    retry_while_busy(lambda: client.unstage(volume_id, str(staging)), _BUSY_SECONDS)
    with suppress(OSError):
        staging.rmdir()


def _target(volume_id: str) -> Path:
    staging = staging_of(volume_id)
    return staging.with_name(f"{staging.name}.import")
