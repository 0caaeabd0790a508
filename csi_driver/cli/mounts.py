"""`tidemark mount` and `tidemark umount`: a disk at a path, through the same CSI calls as the kubelet's."""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import STAGING, Endpoint, Failure, connect, find, patiently, views
from csi_driver.domain.errors import BEING_CHECKED
from csi_driver.domain.model import RAW, AccessMode, Capability
from csi_driver.host.fs import mount_points
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


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
    from csi_driver.rpc.clients.cli_client import CallRefused

    target = _plain(directory)
    _check_target(target)
    with connect(endpoint) as client:
        disk = find(client, volume, "volume")
        raw = block or disk.format == RAW
        capability = Capability(
            "block" if raw else "mount", AccessMode.WRITER, "", tuple(flag for flag in flags.split(",") if flag)
        )
        staging = staging_of(disk.id)
        try:
            staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except OSError as error:
            raise Failure(f"{error.filename} cannot be made ({error.strerror}): run as root") from None
        before = bool(disk.used_by)
        stays = _to_stay(target)
        try:
            _stage(client, disk.id, staging, capability)
            client.publish(disk.id, str(staging), target, capability, read_only)
        except BaseException as error:
            if not before:
                _give_up(client, disk.id, staging)
            if isinstance(error, CallRefused) and "block access" in error.message and not raw:
                raise Failure(f"{disk.name} is a raw block device: mount it with --block, DIR is a file then") from None
            raise
    note = "" if stays else ", and the directory too: its file system cannot keep a note that it was there"
    typer.echo(f"{disk.name} is at {target}: `tidemark umount {directory}` takes it away{note}")


def umount(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where a disk is shown, or the disk's name or id.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Take a disk away from a directory. What was written is safe on the disk.

    A directory that `tidemark mount` made is removed, one that was there before stays. By its name a disk is taken away
    that is shown nowhere any more, such as after a plain umount.

    $ tidemark umount /mnt/db
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    target = _plain(directory)
    with connect(endpoint) as client:
        disk, is_there = _shown_at(client, target, directory)
        staging = staging_of(disk.id)
        if is_there:
            client.unpublish(disk.id, target)
            # Asked again, not reckoned: whatever showed the same mount has gone with it.
            disk = next((node for node in client.tree(volume_id=disk.id) if node.id == disk.id), None) or disk
        left = [place[0] for place in views(disk) if not _is_stage(place, staging)]
        if left and is_there:
            typer.echo(f"{disk.name} is still at {', '.join(left)}")
            return
        if left:
            raise Failure(f"{disk.name} is at {', '.join(left)}: name the directory that it is to be taken away from")
        if disk.used_by:
            try:
                patiently(lambda: client.unstage(disk.id, str(staging)), 5.0)
            except CallRefused as refused:
                raise Failure(
                    f"{disk.name} is away from {target if is_there else 'every directory'}, but its device could not be "
                    f"given back: {refused.message}"
                ) from None
            _remove(staging)
    typer.echo(f"{disk.name} is not in use any more")


def _shown_at(client: "Client", target: str, text: str) -> "tuple[Node, bool]":
    """The disk that is meant, and whether it is, or was, at the path `target`. Raises Failure."""
    disks = [node for node in client.tree() if node.kind == "volume"]
    for disk in disks:
        if any(target in place for place in views(disk)):
            return disk, True
    # Unmounted by hand: what the mount point was for is still written on it.
    mark = mount_points.marked(target)
    for disk in disks:
        if mark == f"{disk.id} {disk.uid}" and any(_is_stage(place, staging_of(disk.id)) for place in views(disk)):
            return disk, not _holds_something(target)
    named = [disk for disk in disks if text in {disk.id, disk.name}]
    if len(named) > 1:
        raise Failure(f"{text!r} is the name of {len(named)} disks: use an id, {' or '.join(n.id for n in named)}")
    if named and named[0].used_by:
        return named[0], False
    if named:
        raise Failure(f"{named[0].name} is not in use: there is nothing to take away")
    raise Failure(
        f"no disk is shown at {target}, and none is called {text}: `tidemark volume list` shows where disks are"
    )


def _stage(client: "Client", volume_id: str, staging: Path, capability: Capability) -> None:
    """Stage a disk; while its file system is checked, which may take hours, wait and say why. Ctrl-C ends the wait alone."""
    from csi_driver.rpc.clients.cli_client import CallRefused

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


def _is_stage(place: Sequence[str], staging: Path) -> bool:
    """Whether a place is the staging directory, or the device node inside it."""
    return any(staging in (Path(path), Path(path).parent) for path in place)


def _to_stay(target: str) -> bool:
    """Write on a mount point that was there before that it is to stay, before anything is mounted there: umount looks for that.

    False: it was, and that cannot be written.
    """
    if not os.path.lexists(target) or os.path.islink(target) or os.path.ismount(target):
        return True
    # One that says which disk it was for was made for it, or has been written on before.
    return bool(mount_points.marked(target)) or mount_points.keep(target)


def _holds_something(target: str) -> bool:
    return os.path.isdir(target) and not os.path.ismount(target) and bool(os.listdir(target))


def _check_target(target: str) -> None:
    """A mount hides what lies below it: nothing of the user's may be there."""
    if _holds_something(target):
        raise Failure(f"{target} is not empty, and what is in it would be hidden: name an empty or a new directory")


def _give_up(client: "Client", volume_id: str, staging: Path) -> None:
    """Take a stage of ours away again; the first error is the one to be told."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    with suppress(CallRefused):
        client.unstage(volume_id, str(staging))
        _remove(staging)


def _remove(staging: Path) -> None:
    # Never recursive: what is not empty may be a disk.
    with suppress(OSError):
        staging.rmdir()
