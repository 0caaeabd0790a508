"""What the model test looks at behind the agent's back: what lies in the pool, and the kernel's devices of it."""

import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from model import KINDS, Cut, Disk, Group, Item, Kill, World
from model_bytes import has_data
from support import thin_disks
from support.agent_process import AgentRig
from support.agent_rigs import DISK

from csi_driver.host.dm import ioctl, status
from csi_driver.host.lvm import tags

SETTLE_SECONDS = 30.0
"""How long a child of a killed agent may take to die with its device, and the trash to become empty."""


def hash_of(item_id: str) -> str:
    return item_id.rsplit(":", 1)[1]


class FilePool:
    """A pool of files on XFS."""

    span = 1.0
    """By which the delays before a kill are stretched: how much longer a call takes than in such a pool."""
    mount_options = "loop,"

    def __init__(self, rig: AgentRig) -> None:
        self.rig = rig

    def freezes(self) -> list[str]:
        """The entries of the journal of freezes."""
        return [name for name in os.listdir(self.rig.pool / ".freeze") if name.endswith(".frozen.json")]

    def trace(self, item: Item, kill: Kill) -> tuple[object, ...]:
        """What a call on an object changes at the moment when it takes effect, or, for "early", before."""
        place = self.place(item)
        found: list[object] = []
        for path, field in ((place, "st_ino"), (place / "record.json", "st_ino"), (place / "disk.img", "st_size")):
            try:
                found.append(getattr(path.stat(), field))
            except OSError:
                found.append(None)
        if kill == "early":
            found += self.freezes()
            found += os.listdir(self.rig.pool / "snapshots")
        return tuple(found)

    def place(self, item: Item) -> Path:
        """The directory in the pool that holds an object, as docs/reference/pool-format.md says."""
        if isinstance(item, Cut) and item.group:
            return self.rig.pool / "groups" / hash_of(item.group)
        return self.rig.pool / f"{KINDS[type(item)]}s" / hash_of(item.id)

    def key(self, item: Disk | Cut) -> str:
        """The name of what holds an object's bytes."""
        is_member = isinstance(item, Cut) and item.group
        return str(self.place(item) / (f"{hash_of(item.id)}.img" if is_member else "disk.img"))

    def devices(self) -> dict[str, str]:
        """The names of the kernel's devices of the pool's objects, by their keys."""
        found: dict[str, str] = {}
        for device in Path("/sys/block").glob("loop*"):
            with suppress(OSError):
                backing = (device / "loop/backing_file").read_text().strip()
                if backing.startswith(f"{self.rig.pool}/"):
                    assert backing not in found, f"{backing} is attached twice: {found[backing]} and {device.name}"
                    found[backing] = device.name
        return found

    def check(self, world: World) -> None:
        """The pool holds what is listed and nothing half-made."""
        pool = self.rig.pool
        wanted: dict[str, set[str]] = {"volumes": set(), "snapshots": set(), "groups": set()}
        members: dict[str, set[str]] = {}
        for item in world.values():
            digest = hash_of(item.id)
            if isinstance(item, Cut) and item.group:
                members.setdefault(hash_of(item.group), {"record.json"}).add(f"{digest}.img")
            else:
                wanted[f"{KINDS[type(item)]}s"].add(digest)
        for name, digests in wanted.items():
            assert {entry.name for entry in (pool / name).iterdir()} == digests, f"{name}/ is not what is listed"
            for digest in digests:
                files = {entry.name for entry in (pool / name / digest).iterdir()}
                assert files == members.get(digest, {"record.json", "disk.img"}), f"{name}/{digest} holds {files}"
        for name in (".new", ".freeze"):
            assert not list((pool / name).iterdir()), f"{name} is not empty: {list((pool / name).iterdir())}"

    @contextmanager
    def opened(self, items: Sequence[Disk | Cut]) -> Iterator[list[Path]]:
        """What holds these objects' bytes, to be read."""
        yield [Path(self.key(item)) for item in items]

    def is_blank(self, path: Path) -> bool:
        """Whether nothing was ever written there."""
        return not has_data(path)

    def wait_for_trash(self) -> None:
        """Wait until what nobody sees any more is gone."""
        until = time.monotonic() + SETTLE_SECONDS
        while list((self.rig.pool / ".trash").iterdir()):
            assert time.monotonic() < until, "the trash is not emptied"
            time.sleep(0.02)

    def forget(self) -> None:
        """After a failure: nothing of this pool is found by the next."""
        for image in self.rig.root.glob("pool.img*"):
            image.unlink()


class LvmPool(FilePool):
    """A pool of logical volumes."""

    span = 100.0
    mount_options = ""
    _looks = 0

    def freezes(self) -> list[str]:
        """See FilePool."""
        return [path.name for path in (self.rig.root / "run/freezes").glob("*/*.frozen.json")]

    def trace(self, item: Item, kill: Kill) -> tuple[object, ...]:
        """See FilePool: the header of the group's metadata, which each commit writes, and the kernel's devices."""
        with open(DISK, "rb", buffering=0) as disk:
            os.posix_fadvise(disk.fileno(), 0, 1 << 20, os.POSIX_FADV_DONTNEED)
            header = os.pread(disk.fileno(), 512, 4096)
        found: list[object] = [struct.unpack("<I", header[:4]), header]
        return (*found, tuple(ioctl.names()), tuple(self.freezes()) if kill == "early" else ())

    def key(self, item: Disk | Cut) -> str:
        """See FilePool. Its generation is not known from outside."""
        return f"{KINDS[type(item)][0]}-{hash_of(item.id)}"

    def devices(self) -> dict[str, str]:
        """See FilePool."""
        found: dict[str, str] = {}
        for name, _, minor in ioctl.names():
            logical = name.removeprefix(f"{thin_disks.GROUP}-").replace("--", "-")
            if name.startswith(f"{thin_disks.GROUP}-") and logical.startswith(("v-", "s-")):
                key = logical.partition(".")[0]
                assert key not in found, f"{key} has two devices: {found[key]} and dm-{minor}"
                found[key] = f"dm-{minor}"
        return found

    def check(self, world: World) -> None:
        """See FilePool."""
        wanted = sorted(self.key(item) for item in world.values() if not isinstance(item, Group))
        until = time.monotonic() + SETTLE_SECONDS
        while (found := self._keys()) != wanted and time.monotonic() < until:
            time.sleep(0.1)  # what a rollback replaced is removed in the background
        assert found == wanted, "the volume group is not what is listed"
        groups = {tagged.hash for tagged in tags.records_of(thin_disks.group_tags(), thin_disks.GROUP)}
        assert groups == {hash_of(item.id) for item in world.values() if isinstance(item, Group)}
        assert thin_disks.suspended() == []
        assert self.freezes() == []

    def _keys(self) -> list[str]:
        return sorted(lv.name.partition(".")[0] for lv in thin_disks.logical_volumes())

    @contextmanager
    def opened(self, items: Sequence[Disk | Cut]) -> Iterator[list[Path]]:
        """See FilePool. By devices that lvm knows nothing of."""
        newest: dict[str, tuple[int, int, int]] = {}
        for lv in thin_disks.logical_volumes():
            key, _, generation = lv.name.partition(".")
            newest[key] = max(newest.get(key, (0, 0, 0)), (int(generation), lv.thin_id or 0, lv.size))
        wanted = []
        for item in items:
            self._looks += 1
            wanted.append((f"look-{self._looks}", *newest[self.key(item)][1:]))
        paths = thin_disks.show(wanted) if wanted else []
        try:
            yield paths
        finally:
            if paths:
                thin_disks.hide(paths)

    def is_blank(self, path: Path) -> bool:
        """See FilePool."""
        return status.thin(ioctl.status(name=path.name)).mapped == 0

    def wait_for_trash(self) -> None:
        """See FilePool: `check` has waited."""

    def forget(self) -> None:
        """See FilePool: with the agent the group goes."""


def pool_of(rig: AgentRig) -> FilePool:
    """The pool of an agent."""
    return LvmPool(rig) if type(rig) is not AgentRig else FilePool(rig)
