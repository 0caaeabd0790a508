"""`tidemark mount` and `tidemark umount`: mount a volume through the same CSI calls as the kubelet."""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import STAGING, Endpoint, Failure, connect, find, retry_while_busy, views
from csi_driver.domain.errors import BEING_CHECKED
from csi_driver.domain.model import RAW, AccessMode, Capability
from csi_driver.host.fs import mount_points
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


def staging_of(volume_id: str) -> Path:
    """Return where this command stages a volume: a hash, since an id has characters that a path should not have."""
    return STAGING / hashlib.sha256(volume_id.encode()).hexdigest()[:32]


def mount(
    volume: Annotated[str, typer.Argument(help="Name or id of the volume, e.g. db.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Mount point, created if missing, e.g. /mnt/db.")],
    block: Annotated[bool, typer.Option("--block", help="Publish a raw block device as the file DIR.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Mount read-only.")] = False,
    flags: Annotated[
        str, typer.Option("-o", "--options", metavar="FLAG,...", help="Mount flags, e.g. noatime,nodev.")
    ] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Mount a volume at a directory. A new volume is formatted once.

    $ tidemark mount db /mnt/db
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    target = _plain(directory)
    _check_target(target)
    with connect(endpoint) as client:
        volume_node = find(client, volume, "volume")
        raw = block or volume_node.format == RAW
        capability = Capability(
            "block" if raw else "mount", AccessMode.WRITER, "", tuple(flag for flag in flags.split(",") if flag)
        )
        staging = staging_of(volume_node.id)
        try:
            staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except OSError as error:
            raise Failure(f"{error.filename} cannot be created ({error.strerror}): run as root") from None
        before = bool(volume_node.used_by)
        kept = _keep_on_umount(target)
        try:
            _stage(client, volume_node.id, staging, capability)
            client.publish(volume_node.id, str(staging), target, capability, read_only)
        except BaseException as error:
            if not before:
                _undo_stage(client, volume_node.id, staging)
            if isinstance(error, CallRefused) and "block access" in error.message and not raw:
                raise Failure(f"{volume_node.name} is a raw block device: use --block; DIR is a file then") from None
            raise
    note = (
        ""
        if kept
        else " and removes the directory, because its file system cannot store the mark that it existed before"
    )
    typer.echo(f"{volume_node.name} is mounted at {target}: `tidemark umount {directory}` unmounts it{note}")


def umount(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Mount point, or name or id of the volume, e.g. /mnt/db.")
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Unmount a volume from a directory. All written data is durable afterwards.

    A directory that `tidemark mount` has created is removed; one that existed before stays. The volume's name unstages a
    volume that is not mounted any longer, e.g. after a plain umount.

    $ tidemark umount /mnt/db
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    target = _plain(directory)
    with connect(endpoint) as client:
        volume_node, is_mounted = _find_mounted(client, target, directory)
        staging = staging_of(volume_node.id)
        if is_mounted:
            client.unpublish(volume_node.id, target)
            # Read again: other paths that led to the same mount are gone with it.
            volume_node = (
                next((node for node in client.tree(volume_id=volume_node.id) if node.id == volume_node.id), None)
                or volume_node
            )
        mounts = [place[0] for place in views(volume_node) if not _is_stage(place, staging)]
        if mounts and is_mounted:
            typer.echo(f"{volume_node.name} is still mounted at {', '.join(mounts)}")
            return
        if mounts:
            raise Failure(f"{volume_node.name} is mounted at {', '.join(mounts)}: name the directory to unmount")
        if volume_node.used_by:
            try:
                retry_while_busy(lambda: client.unstage(volume_node.id, str(staging)), 5.0)
            except CallRefused as refused:
                raise Failure(
                    f"{volume_node.name} is unmounted from {target if is_mounted else 'every directory'}, but not unstaged: "
                    f"{refused.message}"
                ) from None
            _remove(staging)
    typer.echo(f"{volume_node.name} is no longer in use")


def _find_mounted(client: "Client", target: str, text: str) -> "tuple[Node, bool]":
    """Return the volume, and whether it is, or was, mounted at the path `target`. Raises Failure."""
    volumes = [node for node in client.tree() if node.kind == "volume"]
    for volume in volumes:
        if any(target in place for place in views(volume)):
            return volume, True
    # Unmounted by hand: the mount point still has the mark of its volume.
    mark = mount_points.marked(target)
    for volume in volumes:
        if mark == f"{volume.id} {volume.uid}" and any(
            _is_stage(place, staging_of(volume.id)) for place in views(volume)
        ):
            return volume, not _has_content(target)
    named = [volume for volume in volumes if text in {volume.id, volume.name}]
    if len(named) > 1:
        raise Failure(f"{text!r} is the name of {len(named)} volumes: use an id, {' or '.join(n.id for n in named)}")
    if named and named[0].used_by:
        return named[0], False
    if named:
        raise Failure(f"{named[0].name} is not in use: there is nothing to unmount")
    raise Failure(
        f"no volume is mounted at {target}, and none is called {text}: `tidemark volume list` lists mount points"
    )


def _stage(client: "Client", volume_id: str, staging: Path, capability: Capability) -> None:
    """Stage a volume. Waits while its file system is checked, which may take hours; Ctrl-C ends only the wait."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    reported = False
    while True:
        try:
            client.stage(volume_id, str(staging), capability)
        except CallRefused as refused:
            if refused.code != "ABORTED" or BEING_CHECKED not in refused.message:
                raise
            if not reported:
                typer.echo(refused.message, err=True)
                reported = True
            time.sleep(0.5)
        else:
            return


def _plain(directory: str) -> str:
    """Return the path as the kernel shows it. Its last part may be a link: the in-memory backend publishes links."""
    parent, name = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(parent), name)


def _is_stage(place: Sequence[str], staging: Path) -> bool:
    """Return whether a mount point is the staging directory, or the device node inside it."""
    return any(staging in (Path(path), Path(path).parent) for path in place)


def _keep_on_umount(target: str) -> bool:
    """Mark a mount point that exists already, before anything is mounted there, so that umount keeps it.

    Returns False if it exists and cannot be marked.
    """
    if not os.path.lexists(target) or os.path.islink(target) or os.path.ismount(target):
        return True
    # One with the mark of a volume was created for it, or was marked before.
    return bool(mount_points.marked(target)) or mount_points.keep(target)


def _has_content(target: str) -> bool:
    return os.path.isdir(target) and not os.path.ismount(target) and bool(os.listdir(target))


def _check_target(target: str) -> None:
    """Refuse a directory with content, which a mount would hide."""
    if _has_content(target):
        raise Failure(f"{target} is not empty, and the mount would hide its content: use an empty or a new directory")


def _undo_stage(client: "Client", volume_id: str, staging: Path) -> None:
    """Undo a stage after an error. Errors here are ignored: the first one is reported."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    with suppress(CallRefused):
        client.unstage(volume_id, str(staging))
        _remove(staging)


def _remove(staging: Path) -> None:
    # Never recursive: a directory with content may be a mounted volume.
    with suppress(OSError):
        staging.rmdir()
