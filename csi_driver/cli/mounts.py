"""`tidemark mount` and `tidemark umount`: a disk at a path, through the same CSI calls as the kubelet's."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import STAGING, Endpoint, Failure, connect, find, patiently
from csi_driver.domain.errors import BEING_CHECKED
from csi_driver.domain.model import RAW, Capability, Mode
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.client import Client


def staging_of(volume_id: str) -> Path:
    """Where a disk is staged by this command: hashed, since an id holds characters that no path should."""
    return STAGING / hashlib.sha256(volume_id.encode()).hexdigest()[:32]


def mount(
    volume: Annotated[str, typer.Argument(help="Name or id of the disk.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where; made if it is missing.")],
    block: Annotated[bool, typer.Option("--block", help="Show a raw block device as the file DIR.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Do not allow writing.")] = False,
    flags: Annotated[str, typer.Option("-o", "--options", metavar="FLAG,...", help="Mount flags: noatime,nodev")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Show a disk at a directory. A new disk is formatted once.

    $ tidemark mount db /mnt/db
    """
    from csi_driver.rpc.client import CallRefused

    target = _plain(directory)
    _check_target(target)
    with connect(endpoint) as client:
        disk = find(client, volume, "volume")
        raw = block or disk.format == RAW
        capability = Capability(
            "block" if raw else "mount", Mode.WRITER, "", tuple(flag for flag in flags.split(",") if flag)
        )
        staging = staging_of(disk.id)
        try:
            staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except OSError as error:
            raise Failure(f"{error.filename} cannot be made ({error.strerror}): run as root") from None
        before = bool(disk.used_by)
        try:
            _stage(client, disk.id, staging, capability)
            client.publish(disk.id, str(staging), target, capability, read_only)
        except BaseException as error:
            if not before:
                _give_up(client, disk.id, staging)
            if isinstance(error, CallRefused) and "block access" in error.message and not raw:
                raise Failure(f"{disk.name} is a raw block device: mount it with --block, DIR is a file then") from None
            raise
    typer.echo(f"{disk.name} is at {target}: `tidemark umount {directory}` takes it away")


def umount(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where a disk is shown.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Take a disk away from a directory, which is removed. What was written is safe on the disk.

    $ tidemark umount /mnt/db
    """
    from csi_driver.rpc.client import CallRefused

    target = _plain(directory)
    with connect(endpoint) as client:
        disk = next((n for n in client.tree() if target in n.used_by), None)
        if disk is None:
            raise Failure(f"no disk is shown at {target}: `tidemark volume list` shows where disks are")
        staging = staging_of(disk.id)
        client.unpublish(disk.id, target)
        left = [path for path in disk.used_by if path != target and not _is_below(path, staging)]
        if left:
            typer.echo(f"{disk.name} is still at {', '.join(left)}")
            return
        if any(_is_below(path, staging) for path in disk.used_by):
            try:
                patiently(lambda: client.unstage(disk.id, str(staging)), 5.0)
            except CallRefused as refused:
                raise Failure(
                    f"{disk.name} is away from {target}, but its device could not be given back: {refused.message}"
                ) from None
            _remove(staging)
    typer.echo(f"{disk.name} is not in use any more")


def _stage(client: "Client", volume_id: str, staging: Path, capability: Capability) -> None:
    """Stage a disk; while its file system is checked, which may take hours, wait and say why. Ctrl-C ends the wait alone."""
    from csi_driver.rpc.client import CallRefused

    told = False
    while True:
        try:
            client.stage(volume_id, str(staging), capability)
        except CallRefused as refused:
            if refused.code != "ABORTED" or BEING_CHECKED not in refused.message:
                raise
            if not told:
                typer.echo(refused.message, err=True)
                told = True
            time.sleep(0.5)
        else:
            return


def _plain(directory: str) -> str:
    """The path as the kernel shows it. Its last part may be a link: the in-memory backend shows disks by links."""
    parent, name = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(parent), name)


def _is_below(path: str, staging: Path) -> bool:
    """Whether a path is the staging directory, or the device node inside it."""
    return staging in (Path(path), Path(path).parent)


def _check_target(target: str) -> None:
    """A mount hides what lies below it, and the path is removed by umount: nothing of the user's may be there."""
    if os.path.isdir(target) and not os.path.ismount(target) and os.listdir(target):
        raise Failure(f"{target} is not empty, and what is in it would be hidden: name an empty or a new directory")


def _give_up(client: "Client", volume_id: str, staging: Path) -> None:
    """Take a stage of ours away again; the first error is the one to be told."""
    from csi_driver.rpc.client import CallRefused

    with suppress(CallRefused):
        client.unstage(volume_id, str(staging))
        _remove(staging)


def _remove(staging: Path) -> None:
    # Never recursive: what is not empty may be a disk.
    with suppress(OSError):
        staging.rmdir()
