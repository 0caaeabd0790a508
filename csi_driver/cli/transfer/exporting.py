"""Writes the content of a snapshot, or of a volume that is not in use, to a raw sparse image file.

The command itself reads the image in the pool. The agent cannot write the file: in a container it has other mounts than
its user, and a call that makes a root process write to a path of the caller's choice is one that nobody should have to
trust. A device staged for this would need a clone and a place among the pool's reserved bytes, just when a full pool is to
be emptied; it hides where the holes are, so that a mostly empty terabyte is read in full; and it is left behind by a kill.
So the image is opened by the pool's path, and the pool's uuid and the object's uid prove that it is the right one. That
works where the command has the pool's mount: on a machine without a cluster, and in the agent's container of a pod.

A snapshot never changes. A volume is kept out of use by a hold, as for a rollback; it lapses within five minutes if this
command is killed.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csi_driver.backends.reflink.image_files import open_image, open_pool
from csi_driver.cli.failure import Failure
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.transfer.output_file import new_file
from csi_driver.cli.transfer.progress import ProgressLine
from csi_driver.domain.errors import NotFound, Unavailable
from csi_driver.domain.ids import parse
from csi_driver.host.fs import sparse
from csi_driver.rpc.clients.cli_client import CallRefused

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node

_WHERE = "run this command where the agent runs, as root; in a cluster, in the agent's container (kubectl exec)"

RENEW_SECONDS = 60.0
"""Between two renewals of the hold, which lasts five minutes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the size of the file, its data, and whether it shares that with the pool."""

    size: int
    written: int
    shared: bool


class Hold:
    """Keeps a volume out of use for as long as its image is read."""

    def __init__(self, client: "Client", volume: "Node") -> None:
        self._client, self._volume = client, volume
        self._holder = f"export on {socket.gethostname()}, process {os.getpid()}"[:128]
        self._expires = client.hold(volume.id, self._holder)
        self._renewed = time.monotonic()

    def renew(self, interval: float = RENEW_SECONDS) -> None:
        """Renew the hold if it is due. Raises Failure if it has lapsed: then somebody may have written to the volume."""
        if time.monotonic() - self._renewed < interval:
            return
        try:
            expires = self._client.hold(self._volume.id, self._holder)
        except CallRefused as refused:
            # An agent that is restarted is away for a moment; the hold stands meanwhile.
            if refused.code != "UNAVAILABLE" or datetime.now(UTC) >= self._expires:
                raise
            return
        if datetime.now(UTC) >= self._expires:
            raise Failure(
                "the volume was free for a moment while it was read, so the file would not be one moment: retry"
            )
        self._expires, self._renewed = expires, time.monotonic()

    def release(self) -> None:
        """Let the volume be used again; a hold that cannot be released now lapses by itself."""
        try:
            self._client.release(self._volume.id, self._holder)
        except CallRefused:
            return


def in_use(objects: AgentObjects, volume: "Node") -> Failure:
    """Return the refusal to export a volume that is in use: its content changes while it is read."""
    if volume.holder and not volume.used_by:
        return objects.in_use(volume)
    name, argument = objects.name(volume), objects.argument(volume)
    return Failure(
        f"{name} is in use, and would change while it is read: `tidemark snapshot create {argument} {name}-export`, then "
        "export that snapshot"
    )


def export(client: "Client", source: "Node", name: str, path: str, force: bool) -> Exported:
    """Write the file. `name`: the source's, for messages. Raises Failure, CallRefused; then there is no new file."""
    owner = source.id.partition(":")[0]
    pool = next((pool for pool in client.pools() if (pool.owner, pool.name) == (owner, source.pool)), None)
    if pool is None:
        raise Failure(f"pool {source.pool} of {name} is gone: `tidemark pool list` lists those that exist")
    if pool.backend != "reflink":
        raise Failure(f"{name} is in a pool of kind {pool.backend}, which has no image files: it cannot be exported")
    try:
        with _opened_pool(pool.path, pool.uuid) as directory, _held(client, source) as hold:
            image = _open_image(directory, source)
            try:
                with new_file(path, force, outside=directory) as target:
                    exported = _fill(image, target, name, hold)
                    if hold:
                        hold.renew(0.0)
                    return exported
            finally:
                os.close(image)
    except NotFound as error:
        raise Failure(str(error)) from None
    except Unavailable as error:
        raise Failure(f"{error}: {_WHERE}") from None
    except OSError as error:
        raise Failure(f"{name} was not exported to {path}: {error.strerror}; nothing is left of it") from None


def _fill(image: int, target: int, name: str, hold: "Hold | None") -> Exported:
    size = os.fstat(image).st_size
    if sparse.share(image, target):
        return Exported(size, os.fstat(target).st_blocks * 512, shared=True)
    os.ftruncate(target, size)
    progress = ProgressLine(f"exporting {name}", size)

    def report(done: int, written: int) -> None:
        progress.show(done, written)
        if hold:
            hold.renew()

    try:
        written = sparse.copy(image, target, size, report)
    except sparse.SourceChanged as changed:
        raise Failure(f"the image of {name} changed while it was read ({changed}): report this") from None
    finally:
        progress.clear()
    return Exported(size, written, shared=False)


def _open_image(pool: int, source: "Node") -> int:
    item = parse(source.id)
    if item is None:
        raise Failure(f"{source.id} is not an id of this driver")
    return open_image(pool, item, source.uid, is_volume=source.kind == "volume", group_id=source.group_id)


@contextmanager
def _opened_pool(path: str, uuid: str) -> Iterator[int]:
    fd = open_pool(path, uuid)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _held(client: "Client", source: "Node") -> "Iterator[Hold | None]":
    if source.kind != "volume":
        yield None
        return
    hold = Hold(client, source)
    try:
        yield hold
    finally:
        hold.release()
