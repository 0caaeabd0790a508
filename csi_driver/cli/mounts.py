"""`tidemark mount` and `tidemark umount`: mount a volume through the same CSI calls as the kubelet.

A snapshot is mounted read-only, through a clone that is deleted with the mount (snapshot_mounts.py).
"""

import os
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli import snapshot_mounts
from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_source
from csi_driver.cli.failure import Failure
from csi_driver.cli.mount_paths import staged_here, staging_of, views
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.escape import as_argument
from csi_driver.cli.output.printing import say, warn
from csi_driver.cli.refusals import in_our_words
from csi_driver.domain.errors import BEING_CHECKED
from csi_driver.domain.model import RAW, AccessMode, Capability
from csi_driver.host.fs import mount_points
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node


def mount(
    source: Annotated[
        str,
        typer.Argument(
            metavar="VOLUME|SNAPSHOT",
            help="Name or id of the volume, e.g. db, or of a snapshot, which is mounted read-only.",
            autocompletion=complete_source,
        ),
    ],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Mount point, created if missing, e.g. /mnt/db.")],
    block: Annotated[bool, typer.Option("--block", help="Publish a raw block device as the file DIR.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Mount read-only.")] = False,
    flags: Annotated[
        str, typer.Option("-o", "--options", metavar="FLAG,...", help="Mount flags, e.g. noatime,nodev.")
    ] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Mount a volume, or a snapshot read-only, at a directory. A new volume is formatted once.

    $ tidemark mount db /mnt/db
    $ tidemark mount before-upgrade /mnt/old
    """
    target = plain_path(directory)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        node = objects.find(source, "volume", "snapshot")
        shown = (objects.mount_of(node) or node) if node.kind == "snapshot" else node
        name = objects.name(node)
        if shown.kind == "volume" and any(target in place for place in views(shown)) and staged_here(shown):
            say(f"{name} is mounted at {target} already: unchanged")
            return
        _check_target(target)
        raw = block or node.format == RAW
        if not raw and os.path.lexists(target) and not os.path.isdir(target):
            raise Failure(f"{target} is not a directory: mount {name} at a directory that is empty or new")
        mount_flags = tuple(flag for flag in flags.split(",") if flag)
        capability = Capability("block" if raw else "mount", AccessMode.WRITER, "", mount_flags)
        is_snapshot = node.kind == "snapshot"
        clone = snapshot_mounts.clone_of(client, node, capability) if is_snapshot else nullcontext(node)
        with clone as volume:
            kept = _mount(client, objects, volume, name, target, capability, read_only or is_snapshot)
        snapshot_mounts.delete_unused(client, objects)
    note = (
        ""
        if kept
        else " and removes the directory, because its file system cannot store the mark that it existed before"
    )
    how = ", read-only" if read_only or is_snapshot else ""
    say(
        f"{name} is mounted at {target}{how}: `tidemark umount {as_argument(directory) or directory}` unmounts it{note}"
    )


def _mount(
    client: "Client",
    objects: AgentObjects,
    volume: "Node",
    name: str,
    target: str,
    capability: Capability,
    read_only: bool,
) -> bool:
    """Stage and publish a volume. Returns whether umount will keep a directory that existed before. Undone on an error."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    staging = staging_of(volume.id)
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except OSError as error:
        raise Failure(f"{error.filename} cannot be created ({error.strerror}): run as root") from None
    kept = _keep_on_umount(target)
    try:
        _stage(client, objects, volume.id, staging, capability)
        client.publish(volume.id, str(staging), target, capability, read_only)
    except BaseException as error:
        if not volume.used_by:
            _undo_stage(client, volume, staging)
        if isinstance(error, CallRefused) and "block access" in error.message and capability.access != "block":
            raise Failure(f"{name} is a raw block device: use --block; DIR is a file then") from None
        raise
    return kept


def _stage(client: "Client", objects: AgentObjects, volume_id: str, staging: Path, capability: Capability) -> None:
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
                warn(in_our_words(refused, objects))
                reported = True
            time.sleep(0.5)
        else:
            return


def plain_path(directory: str) -> str:
    """Return the path as the kernel shows it. Its last part may be a link: the in-memory backend publishes links."""
    parent, name = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(parent), name)


def _keep_on_umount(target: str) -> bool:
    """Mark a mount point that exists already, before anything is mounted there, so that umount keeps it.

    Returns False if it exists and cannot be marked.
    """
    if not os.path.lexists(target) or os.path.islink(target) or os.path.ismount(target):
        return True
    # One with the mark of a volume was created for it, or was marked before.
    return bool(mount_points.marked(target)) or mount_points.keep(target)


def has_content(target: str) -> bool:
    """Return whether a directory that nothing is mounted on has content."""
    return os.path.isdir(target) and not os.path.ismount(target) and bool(os.listdir(target))


def _check_target(target: str) -> None:
    """Refuse a directory with content, which a mount would hide."""
    if has_content(target):
        raise Failure(f"{target} is not empty, and the mount would hide its content: use an empty or a new directory")


def _undo_stage(client: "Client", volume: "Node", staging: Path) -> None:
    """Undo a stage after an error. Errors here are ignored: the first one is reported."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    with suppress(CallRefused):
        client.unstage(volume.id, str(staging))
        remove_stage(staging)
        if snapshot_mounts.is_snapshot_mount(volume):
            client.delete_volume(volume.id)


def remove_stage(staging: Path) -> None:
    """Remove a staging directory if it is empty. Never recursive: one with content may be a mounted volume."""
    with suppress(OSError):
        staging.rmdir()
