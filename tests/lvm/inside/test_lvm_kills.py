"""lvm is killed in the middle of what it does, again and again: nothing is left over, nothing hangs, and what was answered is there.

TIDEMARK_LVM_KILLS=N kills it N times; TIDEMARK_LVM_SEED=S repeats the operations of such a run, but for where its kills land.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support import thin_disks
from support.files import write_at, write_file
from support.fork_servers import helper_pool
from support.lvm_rig import LvmRig
from support.node_rig import mounted
from support.pool_disk import clean, share
from support.sizes import MIB

from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.host.commands import run

KILLS = int(os.environ.get("TIDEMARK_LVM_KILLS", "6"))
CHECK_EACH = 20
"""Kills after which everything is compared."""
CHANGES = {"lvcreate", "lvremove", "lvchange", "lvextend", "vgchange"}
AT_MOST = 0.7
"""Seconds into a command at which it is killed: about what the longest take."""
WORKS = 60.0
"""Seconds that a write or a retry may take; beyond, the pool is wedged."""
DISK = "/dev/ubdb"


class Killer(threading.Thread):
    """Kills an lvm that changes the pool, some time after it began: four of five, if they have not ended by then."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._chance = chance
        self._seen: set[str] = set()
        self.kills: Counter[str] = Counter()
        self.on = threading.Event()
        self._over = False

    def run(self) -> None:
        while not self._over:
            self.on.wait()
            for pid, command in self._new():
                if self._chance.random() < 0.8:
                    time.sleep(self._chance.uniform(0, AT_MOST))
                    with suppress(OSError):
                        # A process that has ended and is not reaped takes the signal, too.
                        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                            os.kill(int(pid), signal.SIGKILL)
                            self.kills[command] += 1
            time.sleep(0.01)

    def end(self) -> None:
        self._over = True
        self.on.set()
        self.join(10)

    def _new(self) -> Iterator[tuple[str, str]]:
        pids = {entry for entry in os.listdir("/proc") if entry.isdecimal()}
        for pid in pids - self._seen:
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "lvm\n":
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if len(words) > 1 and (command := words[1].decode()) in CHANGES:
                        yield pid, command
        # A child has its parent's name until it executes lvm: only an lvm is not asked twice.
        self._seen = {pid for pid in pids if pid in self._seen or _is_lvm(pid)}


def _is_lvm(pid: str) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "lvm\n"
    return False


class Model:
    """The pool and what it must hold: a stamp at the beginning of each raw volume, a numbered file on the mounted one."""

    def __init__(self, rig: LvmRig, chance: random.Random, killer: Killer) -> None:
        self.rig, self._chance, self._killer = rig, chance, killer
        self.held: dict[str, int] = {}
        """The stamps of raw volumes and of their snapshots, by name."""
        self.files: dict[str, int] = {}
        """The least number on snapshots of the mounted one."""
        self.counts: Counter[str] = Counter()
        self._number = 0

    def volume(self, name: str) -> Volume:
        return next(v for v in self.rig.pool.volumes.values() if v.name == name)

    def snapshot(self, name: str) -> Snapshot:
        return next(s for s in self.rig.pool.snapshots.values() if s.name == name)

    @property
    def _volumes(self) -> list[str]:
        return [v.name for v in self.rig.pool.volumes.values() if v.name != "m"]

    async def mount(self) -> None:
        """The volume that is mounted throughout."""
        volume = await self.rig.volume("m", "ext4", 64 * MIB)
        self._place = Path(await self.rig.stage(volume, mounted("ext4")))
        await self.write_file()

    async def write_file(self) -> None:
        """Write a file durably; a device that was left suspended hangs here."""
        self._number += 1
        number = self._number
        async with asyncio.timeout(WORKS):
            await asyncio.to_thread(write_file, self._place / "data", b"%d\n" % number)

    async def until_done(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call as a client does whose call was cut off: again, until it is answered."""
        until = time.monotonic() + WORKS * 3
        while True:
            self._killer.on.set()
            try:
                answer = await call()
            except DriverError as error:
                if time.monotonic() > until or "Manual intervention" in str(error):
                    pytest.fail(f"{what} is refused for good: {type(error).__name__}: {error}")
                self.counts["refused"] += 1
                self._killer.on.clear()  # the next one may end
                await asyncio.sleep(0.05)
                with suppress(DriverError):
                    answer = await call()
                    break
            else:
                break
        self._killer.on.clear()
        self.counts[what] += 1
        return answer

    async def step(self) -> None:
        """One random operation."""
        rig, chance = self.rig, self._chance
        self._number += 1
        number = self._number
        raw = [s.name for s in rig.pool.snapshots.values() if s.name in self.held]
        steps: list[Callable[[], Awaitable[None]]] = [self._create(f"v{number}")] * 2
        if self._volumes:
            steps += [self._snapshot(f"s{number}", chance.choice(self._volumes))] * 2
            steps += [self._expand(chance.choice(self._volumes))]
        if raw:
            steps += [self._restore(f"c{number}", chance.choice(raw)), self._delete_snapshot(chance.choice(raw))]
        if own := [name for name in raw if self.snapshot(name).source_id in {str(v.id) for v in self._own()}]:
            steps += [self._roll_back(chance.choice(own), f"r{number}")]
        steps += [self._snapshot_mounted(f"f{number}")] * 2
        if len(self._volumes) > 3:
            steps = [self._delete(chance.choice(self._volumes))]
        elif len(rig.pool.snapshots) > 6:
            steps = [self._delete_snapshot(chance.choice([s.name for s in rig.pool.snapshots.values()]))]
        await chance.choice(steps)()

    def _own(self) -> list[Volume]:
        return [v for v in self.rig.pool.volumes.values() if v.name != "m"]

    def _create(self, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            volume = await self.until_done("create", lambda: self.rig.volume(name, "block", MIB))
            number = self._number
            with self.rig.blocks(volume) as (path,):
                write_at(path, 0, number.to_bytes(8, "little") * 512)
            self.held[name] = number

        return do

    def _snapshot(self, name: str, of: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            await self.until_done("snapshot", lambda: self.rig.snapshot(name, self.volume(of)))
            self.held[name] = self.held[of]

        return do

    def _snapshot_mounted(self, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            await self.write_file()
            least = self._number
            await self.until_done("snapshot mounted", lambda: self.rig.snapshot(name, self.volume("m")))
            self.files[name] = least

        return do

    def _restore(self, name: str, of: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            source = self.snapshot(of)
            larger = source.size + self._chance.choice([0, MIB])
            await self.until_done("restore", lambda: self.rig.volume(name, "block", larger, source))
            self.held[name] = self.held[of]

        return do

    def _expand(self, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            size = self.volume(name).size + MIB
            await self.until_done("expand", lambda: self.rig.expand(self.volume(name), size))

        return do

    def _roll_back(self, of: str, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            snapshot = self.snapshot(of)
            volume = next(v for v in self._own() if str(v.id) == snapshot.source_id)
            await self.until_done("rollback", lambda: self.rig.roll_back(self.volume(volume.name), snapshot, name))
            self.held[volume.name] = self.held[of]

        return do

    def _delete(self, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            volume = self.volume(name)
            await self.until_done("delete", lambda: self.rig.delete(volume))
            del self.held[name]

        return do

    def _delete_snapshot(self, name: str) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            snapshot = self.snapshot(name)
            await self.until_done("delete snapshot", lambda: self.rig.delete(snapshot))
            self.held.pop(name, None)
            self.files.pop(name, None)

        return do

    async def compare(self) -> None:
        """Nothing is left over, in the group or in the kernel; nothing stands still; and the bytes are the model's."""
        await self.write_file()
        items = [*self.rig.pool.volumes.values(), *self.rig.pool.snapshots.values()]
        until = time.monotonic() + WORKS
        while True:  # what nobody sees any more is removed in the background
            found = thin_disks.logical_volumes()
            wanted = {self.rig.backend.table.of(item).name for item in items}
            if {lv.name for lv in found} == wanted or time.monotonic() > until:
                break
            await self.rig.backend.changes.remove([])  # what is in doubt is settled before the next change
            await asyncio.sleep(0.2)
        assert {lv.name for lv in found} == wanted, "logical volumes of no object, or objects without one"
        assert thin_disks.kernel_ids() == {lv.thin_id for lv in found}, (
            "thin volumes in the kernel of which lvm has none"
        )
        assert thin_disks.suspended() == []
        with self.rig.blocks(*items) as paths:
            for item, path in zip(items, paths, strict=True):
                if item.name in self.held:
                    number = int.from_bytes(path.read_bytes()[:8], "little")
                    assert number == self.held[item.name], f"{item.name} holds {number}, not {self.held[item.name]}"
                elif item.name in self.files:
                    run(("e2fsck", "-f", "-n", str(path)), 60)
                    number = int(run(("debugfs", "-R", "cat data", str(path)), 60))
                    assert number >= self.files[item.name], f"{item.name} has file {number}"
                self.counts["contents compared"] += 1


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[LvmRig]:
    share(tmp_path)
    thin_disks.make_group(DISK, "1m", "4g")
    try:
        async with helper_pool() as helpers:
            made = LvmRig(tmp_path, None, helpers, options={"init": True})  # type: ignore[arg-type]
            await made.open()
            try:
                yield made
            finally:
                await made.put_away()
                await made.close()
    finally:
        thin_disks.remove_group(DISK)
        clean(tmp_path)


@contextmanager
def killing(chance: random.Random) -> Iterator[Killer]:
    killer = Killer(chance)
    killer.start()
    try:
        yield killer
    finally:
        killer.end()


@pytest.mark.timeout(0)
async def test_lvm_is_killed_again_and_again(rig: LvmRig, record_property: Callable[[str, object], None]) -> None:
    seed = int(os.environ.get("TIDEMARK_LVM_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"TIDEMARK_LVM_SEED={seed}")
    with killing(random.Random(seed + 1)) as killer:
        model = Model(rig, random.Random(seed), killer)
        await model.mount()
        checked = 0
        try:
            while killer.kills.total() < KILLS:
                await model.step()
                if killer.kills.total() >= checked + CHECK_EACH:
                    checked = killer.kills.total()
                    await model.compare()
                    if checked % (CHECK_EACH * 5) < CHECK_EACH:
                        await rig.reopen()  # a restart finds the same
                        await model.compare()
            await model.compare()
            await rig.reopen()
            await model.compare()
        finally:
            print(dict(sorted(killer.kills.items())), dict(sorted(model.counts.items())))
            record_property("lvm kills", killer.kills.total())
            record_property("contents compared", model.counts["contents compared"])
