"""Killed at every step of every change: what was acknowledged is there, what was not is there whole or not at all."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_killer import PATHS
from crash_rig import World, check_tidy, every_node_point, every_point, state, tree
from crash_scenarios import NODE_SCENARIOS, SCENARIOS, NodeScenario, Scenario, ext4_volume, find, two_volumes
from support.files import write_file
from support.freezing import is_frozen
from support.machine import KIND

Record = Callable[[str, object], None]
HERE = [scenario for scenario in SCENARIOS if KIND in scenario.kinds]
IDLE = [scenario for scenario in HERE if not scenario.in_use]
FEWEST = 3
"""Points that the simplest change has: fewer mean that the hooks are not reached."""


def fewest() -> int:
    return min(FEWEST, int(os.environ.get("TIDEMARK_CRASH_POINTS", FEWEST)))


def names(scenario: Scenario | NodeScenario) -> str:
    return scenario.name


@pytest.mark.slow
@pytest.mark.parametrize("scenario", HERE, ids=names)
async def test_killed_at_every_point(world: World, scenario: Scenario, record_property: Record) -> None:
    count = await every_point(world, scenario)
    assert count >= fewest()
    record_property("points", count)
    print(f"{scenario.name}: {count} of {count} points")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", IDLE, ids=names)
async def test_power_cut_at_every_point(world: World, scenario: Scenario, record_property: Record) -> None:
    """The pool's file system is shut down without its log, and mounted again: only what was synced is left."""
    count = await every_point(world, scenario, "power", deep=False)
    record_property("power points", count)
    print(f"{scenario.name}: {count} of {count} points")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", NODE_SCENARIOS, ids=names)
async def test_killed_at_every_point_on_the_node(world: World, scenario: NodeScenario, record_property: Record) -> None:
    count = await every_node_point(world, scenario)
    assert count >= FEWEST
    record_property("points", count)
    print(f"{scenario.name}: {count} of {count} points")


async def died_frozen(world: World, pool: Path, staging: str, wait: float) -> bool:
    """Kill an agent with all its processes, some time after it announced a freeze; whether it had frozen by then."""
    async with asyncio.timeout(80):
        agent = await asyncio.create_subprocess_exec(*command(world, pool), stdout=asyncio.subprocess.PIPE)
        assert agent.stdout
        server = int(await agent.stdout.readline())
        while not os.listdir(pool / ".freeze"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(wait)
        # The watchdog first, and its children, so that none of them undoes anything.
        below = [server, *children_of(server)]
        for pid in below:
            os.kill(pid, signal.SIGSTOP)
        below += [pid for child in list(below) for pid in children_of(child) if pid not in below]
        for pid in [agent.pid, *below]:
            os.kill(pid, signal.SIGKILL)
        await agent.wait()
        while any(os.path.exists(f"/proc/{pid}") and not is_zombie(pid) for pid in below):
            await asyncio.sleep(0.01)
    return is_frozen(staging)


async def test_agent_and_watchdog_die_inside_a_freeze(world: World) -> None:
    """Nobody is left to thaw: the journal entry is enough for the next start."""
    pool = await world.copy(ext4_volume)
    async with world.opened(pool) as rig:
        await rig.stage(find(rig, "m"))
        staging = rig.staging(find(rig, "m"))
    wait = 0.7
    while not await died_frozen(world, pool, staging, wait):
        assert wait < 20, "it does not freeze"
        async with world.opened(pool):
            pass
        wait *= 2  # nobody tells from outside that it froze: announced it was, and a busy machine took its time
    async with world.opened(pool) as rig:
        assert not is_frozen(staging)
        write_file(f"{staging}/after", b"1")
        assert rig.pool.snapshots == {}
        await check_tidy(pool)
        await rig.snapshot("new", find(rig, "m"))
        await rig.unstage(find(rig, "m"))


AGENT = """
import asyncio, sys
from pathlib import Path
from crash_scenarios import find
from support.node_rig import Rig
from support.pool_disk import Disk
from csi_driver.host.helper.client import HelperPool

async def main():
    children = HelperPool()
    await children.start()
    print(children.server_pid, flush=True)
    real = children.run

    async def run(job, timeout, **args):
        return await real(job, timeout, **(args | ({"test_pause": 60.0, "deadline": 60.0} if job == "cut" else {})))

    children.run = run
    rig = Rig(Path(sys.argv[2]), Disk(None, Path(sys.argv[1]), None), children, options={"init": True})
    await rig.open()
    await rig.snapshot("new", find(rig, "m"))

asyncio.run(main())
"""


def command(world: World, pool: Path) -> list[str]:
    import sys

    return [sys.executable, "-c", f"import sys; sys.path[:0] = {PATHS!r}\n{AGENT}", str(pool), str(world.place)]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_recovery_that_is_killed_again_and_again(world: World) -> None:
    """Each start gets as far as it can, and the last one ends it."""
    scenario = next(s for s in SCENARIOS if s.name == "recovery")
    pool = await world.copy(scenario.prepare)
    assert len(world.killer.run("recovery", await world.copy(scenario.prepare), world.place).points) > 5
    for number in range(1, 6):
        world.killer.run("recovery", pool, world.place, number)
    async with world.opened(pool) as rig:
        assert {v.name for v in rig.pool.volumes.values()} == {"v", "w"}
        await check_tidy(pool)


async def test_the_model_sees_what_it_should(world: World) -> None:
    """The checks of this suite can fail: each of these changes is told from the state before it."""
    pool = await world.copy(two_volumes)
    async with world.opened(pool) as rig:
        before = state(rig)
        image = rig.image(find(rig, "v"))
        with image.open("r+b") as file:
            file.seek(4096)
            file.write(b"x")
        changed = state(rig)
        assert changed != before
        await rig.rollbacks.hold(str(find(rig, "v").id), "h")
        assert state(rig) != changed
    files: Any = tree(pool)
    os.utime(image)
    assert tree(pool) != files
    (pool / ".new" / "left").mkdir()
    with pytest.raises(AssertionError, match=r"\.new"):
        await check_tidy(pool)
