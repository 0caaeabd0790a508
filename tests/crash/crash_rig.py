"""Kill, recover, check: the parent's side of the crash suite."""

import asyncio
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from crash_killer import Killed, Killer
from crash_scenarios import NodeScenario, Scenario, find
from support.freezing import is_frozen
from support.node_rig import Rig
from support.pool_disk import Disk, make_disk
from support.sizes import GIB

from csi_driver.domain.sizes import least_request
from csi_driver.host.commands import run
from csi_driver.host.fs import allocation, condition, mounts
from csi_driver.host.helper.client import HelperPool

State = dict[str, Any]
SAMPLE = int(os.environ.get("TIDEMARK_CRASH_POINTS", "0"))
"""At how many points of each scenario the agent is killed; 0: at all."""


@dataclass
class World:
    """One disk with a pool's directory for each run, copied from a template by reflink."""

    place: Path
    disk: Disk
    children: HelperPool
    killer: Killer
    runs: int = 0
    templates: dict[Callable[..., Any], Path] = field(default_factory=dict)
    before: dict[Callable[..., Any], State] = field(default_factory=dict)
    """The states of templates."""

    def rig(self, pool: Path) -> Rig:
        """A new agent, the parent's, on a pool."""
        disk = Disk(self.disk.image, pool, self.disk.device)
        return Rig(self.place, disk, self.children, options={"init": True})

    kind = "reflink"
    options: ClassVar[dict[str, Any]] = {}
    """Of Killer.run, for each run."""

    async def template(self, prepare: Callable[[Rig], Awaitable[Any]]) -> Path:
        if prepare not in self.templates:
            path = self.disk.point / f"template-{len(self.templates)}"
            path.mkdir()
            async with self.opened(path) as rig:
                await prepare(rig)
            run(("sync", "-f", str(path)), 30)
            self.templates[prepare] = path
        return self.templates[prepare]

    async def copy(self, prepare: Callable[[Rig], Awaitable[Any]]) -> Path:
        self.runs += 1
        path = self.disk.point / f"run-{self.runs}"
        run(("cp", "-a", "--reflink=always", str(await self.template(prepare)), str(path)), 30)
        for record in path.glob("volumes/*/record.json"):
            if json.loads(record.read_text())["thick"]:  # a clone leaves out what was allocated and never written
                with (record.parent / "disk.img").open("r+b") as image:
                    allocation.fill(image.fileno(), os.fstat(image.fileno()).st_size)
        return path

    @asynccontextmanager
    async def opened(self, pool: Path) -> AsyncIterator[Rig]:
        rig = self.rig(pool)
        await rig.open()
        try:
            yield rig
        finally:
            await rig.close()

    def drop(self, pool: Path) -> None:
        """Remove a pool."""
        run(("rm", "-rf", str(pool)), 30)

    def settle(self, pool: Path) -> None:
        """Have all of it on the disk, before a power cut."""
        run(("sync", "-f", str(pool)), 30)

    def tree(self, pool: Path) -> Any:
        """What a second recovery must not change."""
        return tree(pool)

    async def check_tidy(self, rig: Rig, at_end: bool = False) -> None:
        """Nothing is left that is no object's. `at_end`: after all calls of a run, and thoroughly."""
        await check_tidy(rig.disk.point)

    def remount(self, pool: Path) -> None:
        """The disk after a power cut: what was not synced is gone."""
        mounts.umount(self.disk.point)
        mounts.mount(self.disk.device.path, self.disk.point, "xfs", ["noatime"])


def make_world(place: Path, children: HelperPool, killer_: Killer) -> World:
    return World(place, make_disk(place, 8 * GIB), children, killer_)


# ---- looking -----------------------------------------------------------------------------------------------------------


def content(image: Path) -> str:
    """A digest of all bytes that are not zero, with their places."""
    digest = hashlib.blake2b(digest_size=12)
    with image.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        knows_holes = not image.is_block_device()
        at = 0
        while at < end:
            until = end
            if knows_holes:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                until = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < until:
                block = os.pread(file.fileno(), 4096, at)
                if any(block):
                    digest.update(b"%d:" % at + block)
                at += 4096
    return digest.hexdigest()


def ext4_data(image: Path) -> str:
    """The file `data` of an ext4, without a mount; its file system is checked too."""
    run(("e2fsck", "-f", "-n", str(image)), 30)
    return hashlib.blake2b(run(("debugfs", "-R", "cat data", str(image)), 10).encode(), digest_size=12).hexdigest()


def state(rig: Rig, *, by_file: bool = False) -> State:
    """Everything that a user can see of a pool, without what is random: uids and times.

    `by_file`: the volumes are mounted; of what was made of them, a file is compared.
    """
    look = ext4_data if by_file else content
    volumes, snapshots = list(rig.pool.volumes.values()), list(rig.pool.snapshots.values())
    items = [*(v for v in volumes if not (by_file and v.name in {"m", "n"})), *snapshots]
    with rig.blocks(*items) as paths:
        held = {item.id: look(path) for item, path in zip(items, paths, strict=True)}
    alive = {str(v.id): v.uid for v in volumes}
    return {
        "volumes": {
            v.name: {
                "size": v.size,
                "asked": least_request(v.requested, v.size),
                "format": v.format,
                "thick": v.thick,
                "space": not v.thick or rig.is_allocated(v),
                "source": v.request.source,
                "rollbacks": [(r.name, r.snapshot, bool(r.safety)) for r in v.rollbacks],
                "hold": v.hold.holder if v.hold else "",
                "label": v.label,
                "content": held.get(v.id),
            }
            for v in volumes
        },
        "snapshots": {
            re.sub(r"^safety-.*", "safety", s.name): {
                "size": s.size,
                "asked": least_request(s.requested, s.size),
                "source": s.source_id,
                "own": alive.get(s.source_id) == s.source_uid,
                "format": s.format,
                "group": s.group,
                "mode": rig.mode(s),
                "content": held[s.id],
            }
            for s in snapshots
        },
        "groups": {g.name: sorted(str(m.id) for m in g.members) for g in rig.pool.groups.values()},
    }


def tree(pool: Path) -> list[tuple[Any, ...]]:
    """Every file of a pool with its inode and times: what a second recovery must not touch."""
    return sorted(
        (str(path.relative_to(pool)), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path in pool.rglob("*")
        if not path.is_dir()
        for status in [path.lstat()]
    )


def has_errors(image: Path) -> bool:
    return bool(condition.complaint(image, is_ext4=True))


async def check_tidy(pool: Path) -> None:
    """After a recovery nothing is left where things are made and thrown away; the trash is emptied in the background."""
    until = time.monotonic() + 30
    while os.listdir(pool / ".trash") and time.monotonic() < until:
        await asyncio.sleep(0.005)
    for name in (".new", ".trash", ".freeze"):
        assert os.listdir(pool / name) == [], name
    strange = [
        str(path)
        for path in pool.rglob("*")
        if path.is_file()
        and not {".check", ".kept"} & set(path.relative_to(pool).parts)  # of these there is something left to find
        and path.name not in {"record.json", "disk.img", "pool.json", ".lock"}
        and not re.fullmatch(r"[0-9a-f]{32}\.img", path.name)
    ]
    assert strange == []


async def check_second_recovery(world: World, pool: Path) -> None:
    before = world.tree(pool)
    async with world.opened(pool):
        pass
    assert world.tree(pool) == before


# ---- one scenario, every point -----------------------------------------------------------------------------------------


async def states_of(world: World, scenario: Scenario) -> tuple[State, State, list[State]]:
    """The state before, the one after, and those that may be seen between, made without any kill."""
    by_file = bool(scenario.mounted)

    async def after(step: Callable[[Rig], Awaitable[Any]] | None) -> State:
        pool = await world.copy(scenario.prepare)
        async with world.opened(pool) as rig:
            for name in scenario.in_use:
                await rig.stage(find(rig, name))
            if step:
                await step(rig)
            found = state(rig, by_file=by_file)
            for name in scenario.in_use:
                await rig.unstage(find(rig, name))
            return found

    if scenario.in_use:
        before = await after(None)  # of this scenario alone: what is in use is recorded as such
    else:
        if scenario.prepare not in world.before:
            world.before[scenario.prepare] = await after(None)
        before = world.before[scenario.prepare]
    return before, await after(scenario.operate), [await after(step) for step in scenario.between]


async def every_point(world: World, scenario: Scenario, how: str = "kill", *, deep: bool = True) -> int:
    """Kill at each point, recover, check, repeat the call; returns the number of points."""
    before, after, between = await states_of(world, scenario)
    busy = bool(scenario.in_use)
    options: dict[str, Any] = {"deep": deep, "children": busy, "kind": world.kind} | world.options

    async def prepared() -> Path:
        pool = await world.copy(scenario.prepare)
        if busy:
            async with world.opened(pool) as rig:
                for name in scenario.in_use:
                    await rig.stage(find(rig, name))
        if how == "power":
            world.settle(pool)
        return pool

    async def put_away(pool: Path) -> None:
        if busy:
            async with world.opened(pool) as rig:
                for name in scenario.in_use:
                    await rig.unstage(find(rig, name))

    pool = await prepared()
    points = world.killer.run(scenario.name, pool, world.place, **options).points
    await put_away(pool)
    world.drop(pool)
    assert points[-1] != "acknowledged" or scenario.recovers or "acknowledged" in points
    picked = chosen(scenario.name, points)
    killed_first = picked[0][0]
    for number, point in picked:
        where = f"{scenario.name}: killed at point {number} of {len(points)}, {point}"
        pool = await prepared()
        killed = world.killer.run(scenario.name, pool, world.place, number, how=how, **options)
        assert len(killed.points) == number, where
        if how == "power":
            world.remount(pool)
        try:
            twice = number == killed_first if SAMPLE else recovers_twice(f"{how} {scenario.name}", number, len(points))
            await recovered(world, scenario, pool, killed, before, after, between, twice)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        await put_away(pool)
        world.drop(pool)
    return len(picked)


def chosen(name: str, points: list[str]) -> list[tuple[int, str]]:
    """The points at which a scenario is killed, with their numbers: all, or as many as TIDEMARK_CRASH_POINTS says, spread evenly.

    Which these are goes by the name, so that scenarios with the same steps are killed at different ones.
    """
    numbered = list(enumerate(points, 1))
    most = SAMPLE or len(numbered)
    if most >= len(numbered):
        return numbered
    shift = zlib.crc32(name.encode()) % len(numbered)
    return sorted(numbered[(shift + index * len(numbered) // most) % len(numbered)] for index in range(most))


def recovers_twice(name: str, number: int, of: int) -> bool:
    """Whether a second recovery is looked at after the kill at a point: at the first, the last, and a third of the others.

    It costs two more openings of the pool, beside one. Whether a recovery leaves something for the next one to do seldom
    depends on one point alone: neighbours leave the same files, or differ by one. Which third it is goes by the name, so
    that it is the same in each run, and what the scenarios have in common is met at each of its points by some of them.
    """
    return number in {1, of} or number % 3 == zlib.crc32(name.encode()) % 3


async def recovered(
    world: World,
    scenario: Scenario,
    pool: Path,
    killed: Killed,
    before: State,
    after: State,
    between: list[State],
    twice: bool,
) -> None:
    """Check what a kill left. Without a check of a second recovery, the agent that recovered is the one that is called again."""
    by_file = bool(scenario.mounted)

    async def call_again(rig: Rig) -> None:
        # Whoever was not answered calls again, and gets what it asked for.
        await scenario.operate(rig)
        found = state(rig, by_file=by_file)
        assert found == after, f"after the same call again: {difference(found, before, after)}"
        if twice or not SAMPLE:
            await scenario.operate(rig)
            assert state(rig, by_file=by_file) == after, "the second call changed something"
        await world.check_tidy(rig, at_end=True)

    async with world.opened(pool) as rig:
        found = state(rig, by_file=by_file)
        if killed.acknowledged:
            assert found == after, "what was acknowledged is not there"
        else:
            assert found in [before, after, *between], f"neither before nor after: {difference(found, before, after)}"
        await world.check_tidy(rig)
        for name in scenario.mounted:
            assert not is_frozen(rig.staging(find(rig, name))), "still frozen"
        if not scenario.in_use:
            assert rig.devices() == []
        if not twice:
            await call_again(rig)
            return
    if not scenario.in_use:
        await check_second_recovery(world, pool)
    async with world.opened(pool) as rig:
        await call_again(rig)


def difference(found: State, *others: State) -> str:
    return " / ".join(
        ", ".join(
            f"{kind} {name}: {found[kind].get(name)} for {other[kind].get(name)}"
            for kind in found
            for name in found[kind].keys() | other[kind].keys()
            if found[kind].get(name) != other[kind].get(name)
        )
        or "nothing"
        for other in others
    )


# ---- node operations ---------------------------------------------------------------------------------------------------


async def every_node_point(world: World, scenario: NodeScenario) -> int:
    """As `every_point`, for what changes the kernel: afterwards the volume is staged or not, never half."""

    async def prepared() -> Path:
        pool = await world.copy(scenario.prepare)
        async with world.opened(pool) as rig:
            for step in scenario.before:
                await step(rig)
        return pool

    async def put_away(pool: Path) -> None:
        async with world.opened(pool) as rig:
            await rig.put_away()
            assert rig.devices() == []
        run(("rm", "-rf", str(pool)), 30)

    pool = await prepared()
    points = world.killer.run(scenario.name, pool, world.place, children=True, jobs=True, deep=False).points
    await put_away(pool)
    number = 0
    # Which of a job's `during` points are passed depends on the job's time: a run that passes fewer points ends the search.
    for number in range(1, len(points) + 1):
        pool = await prepared()
        killed = killed_at(world, scenario, pool, number)
        where = f"{scenario.name}: killed at point {number}, {killed.points[-1] if killed else 'none'}"
        try:
            await node_recovered(world, scenario, pool)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        await put_away(pool)
    return number


def killed_at(world: World, scenario: NodeScenario, pool: Path, number: int) -> Killed | None:
    try:
        return world.killer.run(scenario.name, pool, world.place, number, children=True, jobs=True, deep=False)
    except AssertionError as error:
        if "'status': 0" in str(error):  # it was quicker this time, and through before that point
            return None
        raise


async def node_recovered(world: World, scenario: NodeScenario, pool: Path) -> None:
    async with world.opened(pool) as rig:
        volume = find(rig, scenario.volume)
        await check_tidy(pool)
        use = await rig.access.use(volume)
        assert bool(use.paths) == bool(use.device), "a device that is shown nowhere was left attached"
        assert len(rig.devices()) <= 1
        formats = {"b": {"blank", "raw"}, "x": {"blank", "formatting(xfs)", "xfs"}}
        allowed = formats.get(scenario.volume, {"blank", "formatting(ext4)", "ext4", "xfs"})
        if scenario.name == "mount of what was a block device":
            allowed = {"raw", "ext4"}
        assert volume.format in allowed
        was = volume.format
        made: list[str] = []
        real = rig.children.run

        async def run_(job: str, timeout: float, **args: Any) -> Any:
            made.append(job)
            return await real(job, timeout, **args)

        rig.children.run = run_  # type: ignore[method-assign]
        try:
            for _ in range(2):
                await scenario.operate(rig)
        finally:
            rig.children.run = real  # type: ignore[method-assign]
        volume = find(rig, scenario.volume)
        assert ("make_file_system" in made) == (was not in {"ext4", "xfs", "raw"} and volume.format != "raw"), (
            "formatted though it was, or not though it was not"
        )
        use = await rig.access.use(volume)
        assert bool(use.paths) == scenario.finished
        if not scenario.finished:
            assert rig.devices() == []
            return
        staging = Path(rig.staging(volume))
        assert volume.format == {"b": "raw", "x": "xfs"}.get(scenario.volume, volume.format)
        assert "formatting" not in volume.format
        if scenario.name == "stage of one with errors":
            assert (staging / "data").read_bytes() == b"kept"
            assert volume.condition is not None
            assert os.listdir(pool / ".check") == []
            (kept,) = (pool / ".kept").iterdir()
            assert str(kept).endswith(volume.condition.kept)
            assert has_errors(kept / "disk.img")
            assert not has_errors(rig.image(volume))
        if scenario.name.startswith("stage that grows"):
            assert (staging / "data").read_bytes() == b"kept"
            assert os.statvfs(staging).f_blocks * 4096 > 300 << 20
        if scenario.name == "unpublish":
            assert not os.path.lexists(rig.target(volume))
            assert (staging / "data").read_bytes() == b"kept"
        if scenario.volume != "b":
            (staging / "written").write_bytes(b"x" * 100_000)
        if scenario.volume == "t":
            assert os.stat(rig.image(volume)).st_blocks * 512 >= volume.size
