"""Inside the machine: what holds the bytes of what an agent serves, and what lies in its pool beside that."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from support import thin_disks

from csi_driver.rpc.clients.cli_client import Node

_TRASH_SECONDS = 20.0
_PLACE = Path("/run/pool")
_DISK = "/dev/ubda"


class PowerPool(Protocol):
    """One kind of pool."""

    options: Sequence[str]
    """What tells an agent of it."""

    def opened(self, node: Node) -> "Iterator[Path]":
        """The file or device with an object's bytes, while the block runs."""
        ...

    def strange(self, nodes: Sequence[Node]) -> list[str]:
        """What is there and belongs to none of these."""
        ...

    def devices(self) -> list[str]:
        """The kernel's devices of volumes."""
        ...


class FilePool:
    """A directory on XFS, which the machine has mounted."""

    options = ("--pool", f"default=reflink:{_PLACE}")

    @contextmanager
    def opened(self, node: Node) -> Iterator[Path]:
        """See PowerPool."""
        yield self._image(node)

    def _image(self, node: Node) -> Path:
        digest = node.id.rsplit(":", 1)[1]
        if node.group_id:
            return _PLACE / "groups" / node.group_id.rsplit(":", 1)[1] / f"{digest}.img"
        return _PLACE / f"{node.kind}s" / digest / "disk.img"

    def strange(self, nodes: Sequence[Node]) -> list[str]:
        """See PowerPool."""
        reported = {_PLACE / ".lock", _PLACE / "pool.json"}
        for node in nodes:
            image = self._image(node)
            reported |= {image, image.parent / "record.json"}
        until = time.monotonic() + _TRASH_SECONDS
        while list((_PLACE / ".trash").iterdir()) and time.monotonic() < until:
            time.sleep(0.02)
        return [str(path) for path in _PLACE.rglob("*") if path.is_file() and path not in reported]

    def devices(self) -> list[str]:
        """See PowerPool."""
        return [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]


class LvmPool:
    """A volume group on the machine's disk, made at the first boot."""

    options = ("--pool", f"default=lvm:{thin_disks.GROUP}/{thin_disks.POOL}", "--pool-init")

    def __init__(self) -> None:
        self._numbers = itertools.count()
        if thin_disks.GROUP not in thin_disks.lvm("vgs", "--noheadings", "-o", "vg_name", device=_DISK).split():
            thin_disks.make_group(_DISK, "4k", "3g")
        thin_disks.use(_DISK)

    @contextmanager
    def opened(self, node: Node) -> Iterator[Path]:
        """See PowerPool."""
        name = f"{node.kind[0]}-{node.id.rsplit(':', 1)[1]}"
        found = [lv for lv in thin_disks.logical_volumes() if lv.name.partition(".")[0] == name]
        newest = max(found, key=lambda lv: int(lv.name.partition(".")[2]))
        paths = thin_disks.show([(f"look-{next(self._numbers)}", newest.thin_id or 0, newest.size)])
        try:
            yield paths[0]
        finally:
            thin_disks.hide(paths)

    def strange(self, nodes: Sequence[Node]) -> list[str]:
        """See PowerPool."""
        wanted = sorted(f"{node.kind[0]}-{node.id.rsplit(':', 1)[1]}" for node in nodes)
        until = time.monotonic() + _TRASH_SECONDS
        while True:
            lvs = thin_disks.logical_volumes()
            found = sorted(lv.name.partition(".")[0] for lv in lvs)
            if found == wanted or time.monotonic() > until:
                break
            time.sleep(0.1)
        more = [name for name in found if name not in wanted or found.count(name) > 1]
        ids = {lv.thin_id for lv in lvs} ^ thin_disks.kernel_ids()
        return [*more, *(f"thin id {number}" for number in ids), *thin_disks.suspended()]

    def devices(self) -> list[str]:
        """See PowerPool."""
        return thin_disks.devices()
