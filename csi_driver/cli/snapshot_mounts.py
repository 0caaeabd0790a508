"""A mounted snapshot: a clone that `tidemark mount` creates and `tidemark umount` deletes.

The clone's name says which snapshot it shows, so that a crash between two steps leaves nothing that a later command does
not recognise. Users cannot take the name: one that they give begins with a letter or a digit.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from csi_driver.cli.failure import Failure
from csi_driver.cli.mount_paths import STAGING
from csi_driver.domain.model import Capability, SizeRange, Source

if TYPE_CHECKING:
    from csi_driver.cli.objects import AgentObjects
    from csi_driver.rpc.clients.cli_client import Client, Node

PREFIX = ".tidemark-snapshot-mount."
"""Stored in pools, so it must not change."""

_LOCK = "snapshot-mounts.lock"
"""Shared while a clone is created and staged, exclusive while unused clones are deleted: neither sees the other's half."""


def mount_name(snapshot: "Node") -> str:
    """Return the name of the clone that shows a snapshot: the same each time, so a repeated mount finds it."""
    return f"{PREFIX}{snapshot.uid}"


def mounted_snapshot_uid(node: "Node") -> str:
    """Return the uid of the snapshot that a volume shows; empty for every other object."""
    return node.name.removeprefix(PREFIX) if is_snapshot_mount(node) else ""


def is_snapshot_mount(node: "Node") -> bool:
    """Return whether a volume was created by `tidemark mount SNAPSHOT`."""
    return node.kind == "volume" and node.name.startswith(PREFIX)


@contextmanager
def clone_of(client: "Client", snapshot: "Node", access: Capability) -> "Iterator[Node]":
    """Yield the clone that shows a snapshot. It must be staged at the end, or the next command deletes it."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    try:
        lock = _open_lock()
    except OSError as error:
        raise Failure(f"{STAGING} cannot be written ({error.strerror}): run as root") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        capability = Capability(access.access, access.mode)
        source = Source("snapshot", snapshot.id)
        created = client.create_volume(mount_name(snapshot), SizeRange(), [capability], None, source)
        volume = next((node for node in client.tree(volume_id=created.id) if node.id == created.id), None)
        if volume is None:
            raise CallRefused("ABORTED", f"the clone of {snapshot.id} was deleted by another command: try again")
        yield volume
    finally:
        os.close(lock)


def delete_unused(client: "Client", objects: "AgentObjects") -> None:
    """Delete clones that show nothing: left by a crash, or unmounted by hand. One that cannot be deleted now stays."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    if not any(not clone.used_by for clone in objects.snapshot_mounts):
        return
    try:
        lock = _open_lock()
    except OSError:
        return  # another user's: the next command of root deletes them
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(CallRefused):
            # Read again under the lock: one of them may have been staged since.
            for node in client.tree():
                if is_snapshot_mount(node) and not node.used_by:
                    client.delete_volume(node.id)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _open_lock() -> int:
    STAGING.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(STAGING / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
