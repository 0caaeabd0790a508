"""Whoever dies in the middle of a freeze, at whatever point: the survivor thaws, or the journal entry is enough."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from freeze_rig import (
    LONG,
    PAUSE,
    TIMEOUT,
    Disk,
    Pool,
    alive,
    cloning,
    cut,
    fails,
    freeze_mount,
    in_pause,
    offspring,
    paused,
    sh,
)
from support.waiting import until, wait_until

import csi_driver
from csi_driver.host.freeze import journal
from csi_driver.host.freeze.state import FIFREEZE
from csi_driver.host.helper.client import HelperPool, JobStuck
from csi_driver.host.helper.messages import HelperExited

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root for loop devices, mounts and freezes"),
]


async def test_a_snapshot_killed_inside_its_freeze_is_thawed_by_the_watchdog(children: HelperPool, pool: Pool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    task = await paused(children, pool, *disks)
    (child,) = offspring(children.server_pid)
    (cloner,) = offspring(child)
    os.kill(child, signal.SIGKILL)
    error = await fails(task)
    for disk in disks:
        disk.takes_writes()
    assert error.type == "Crashed"
    assert error.gone.is_set()
    assert not alive(cloner)
    assert not offspring(children.server_pid)


async def test_a_cancelled_snapshot_is_thawed(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=30)
    assert done
    assert task.cancelled()
    disk.takes_writes()
    await until(lambda: not offspring(children.server_pid))


async def test_a_snapshot_past_the_agents_own_deadline_is_thawed(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    with pytest.raises(JobStuck) as caught:
        await children.run(
            "cut", 3.0, mounts=[disk.mount], action=cloning([pool.clone(disk)]), deadline=LONG, test_pause=PAUSE
        )
    assert caught.value.gone.is_set()
    disk.takes_writes()


async def test_a_freeze_that_the_watchdog_gave_up_differs_from_one_that_it_undid(children: HelperPool) -> None:
    """Whatever the job has answered before: what it froze must stay announced."""
    task = asyncio.create_task(children.run("ping", 30, pause=30))
    await until(lambda: children._jobs)
    (run,) = children._jobs.values()
    children._on_message(children._supervisor.server, HelperExited(run.number, 1, thawed=False))  # type: ignore[arg-type]
    error = await fails(task)
    assert (error.type, error.gone.is_set(), error.gone.frozen) == ("StillFrozen", False, True)
    (child,) = offspring(children.server_pid)
    os.kill(child, signal.SIGKILL)  # what was said of it becomes true
    await asyncio.wait_for(error.gone.wait(), 30)
    assert error.gone.frozen


async def test_stop_thaws_a_running_snapshot(pool: Pool) -> None:
    children = HelperPool()
    await children.start()
    disk = pool.disk()
    task = await paused(children, pool, disk)
    await asyncio.wait_for(children.stop(), 30)
    disk.takes_writes()
    error = await fails(task)
    assert error.type == "Stopped"
    assert error.gone.is_set(), "the server was left before it had ended"


async def test_a_stopped_child_is_late_and_thawed_by_the_watchdog(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk, deadline=5.0)
    (child,) = offspring(children.server_pid)
    os.kill(child, signal.SIGSTOP)
    assert (await fails(task)).type == "Crashed"
    disk.takes_writes()


async def test_a_snapshot_outlives_its_fork_server(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    server = children.server_pid
    (child,) = offspring(server)
    (cloner,) = offspring(child)
    os.kill(server, signal.SIGKILL)
    await until(lambda: children.server_pid != server)
    os.kill(cloner, signal.SIGUSR1)
    assert (await asyncio.wait_for(task, 30))["action_seconds"] > 0
    disk.takes_writes()
    await cut(children, disk, clones=[pool.clone(disk)])


async def test_a_snapshot_that_its_fork_server_never_took_fails_and_freezes_nothing(
    children: HelperPool, pool: Pool
) -> None:
    disk = pool.disk()
    server = children.server_pid
    os.kill(server, signal.SIGSTOP)
    task = asyncio.create_task(cut(children, disk, clones=[pool.clone(disk)]))
    await until(lambda: children._jobs)
    os.kill(server, signal.SIGKILL)
    error = await fails(task)
    await asyncio.wait_for(error.gone.wait(), 30)
    assert not error.gone.frozen
    disk.takes_writes()
    await cut(children, disk, clones=[pool.clone(disk)])


async def test_without_its_fork_server_a_snapshot_that_dies_is_thawed_by_the_agent(
    children: HelperPool, pool: Pool
) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    server = children.server_pid
    (child,) = offspring(server)
    for pid in (server, child, *offspring(child)):
        os.kill(pid, signal.SIGKILL)
    error = await fails(task)
    await asyncio.wait_for(error.gone.wait(), 30)
    disk.takes_writes()


IOCTL, SYNCFS = "16", "306"
"""System calls of x86-64, as /proc names them."""

AGENT = """
import asyncio, json, sys
from csi_driver.host.freeze import journal
from csi_driver.host.helper.client import HelperPool
async def main():
    arguments = json.loads(sys.argv[1])
    children = HelperPool()
    await children.start()
    if arguments["announce"]:
        journal.record(arguments["announce"], "volume", arguments["facts"])
    print(children.server_pid, flush=True)
    await children.run("cut", arguments["timeout"], **arguments["cut"])
asyncio.run(main())
"""


def agent_with(
    pool: Pool, work: dict[str, Any], announce: str = "", facts: Sequence[dict[str, object]] = ()
) -> tuple["subprocess.Popen[str]", int]:
    """Start an agent of its own with this cut to do; returns it and its fork server's pid."""
    arguments = json.dumps({"announce": announce, "facts": list(facts), "cut": work, "timeout": TIMEOUT})
    root = str(Path(csi_driver.__file__).parent.parent)
    process = pool.popen(sys.executable, "-c", AGENT, arguments, env=os.environ | {"PYTHONPATH": root})
    assert process.stdout
    return process, int(process.stdout.readline())


def agent(pool: Pool, *disks: Disk, announce: str = "") -> tuple["subprocess.Popen[str]", int]:
    """Start an agent of its own that freezes the disks and stays inside; returns it and its fork server's pid."""
    work = {
        "mounts": [disk.mount for disk in disks],
        "action": cloning([pool.clone(disk) for disk in disks]),
        "deadline": LONG,
        "test_pause": PAUSE,
    }
    process, server = agent_with(pool, work, announce, [disk.facts for disk in disks])
    wait_until(lambda: in_pause(server))
    assert all(disk.is_frozen() for disk in disks)
    return process, server


def test_a_killed_agents_freeze_is_thawed_by_the_watchdog(pool: Pool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    process, server = agent(pool, *disks)
    process.kill()
    process.wait(30)
    for disk in disks:
        disk.takes_writes()
    wait_until(lambda: not alive(server))


def hangs(server: int) -> bool:
    """Whether a snapshot job sleeps uninterruptibly in its freeze, or in the syncfs before it."""
    with suppress(OSError):
        for child in offspring(server):
            for thread in Path(f"/proc/{child}/task").iterdir():
                state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
                call = (thread / "syscall").read_text().split()
                if state == "D" and (call[0] == SYNCFS or (call[0] == IOCTL and int(call[2], 16) == FIFREEZE)):
                    return True
    return False


def test_a_killed_agents_hanging_freeze_is_thawed_when_it_returns(pool: Pool) -> None:
    disk = pool.disk()
    sh("sync", "-f", disk.point)
    freeze_mount(pool.path)
    process, server = agent_with(pool, {"mounts": [disk.mount], "action": cloning([]), "deadline": LONG})
    wait_until(lambda: hangs(server))
    process.kill()
    process.wait(30)
    time.sleep(0.3)
    assert alive(server)
    sh("fsfreeze", "-u", pool.path)
    wait_until(lambda: not alive(server))
    disk.takes_writes()
    assert not disk.is_frozen()


@pytest.mark.parametrize("unmounted", [False, True], ids=["mounted", "unmounted"])
async def test_when_all_die_the_journal_entry_is_enough_to_thaw(
    children: HelperPool, pool: Pool, unmounted: bool
) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    directory = pool.path / "frozen"
    directory.mkdir()
    process, server = agent(pool, *disks, announce=str(directory))
    (child,) = offspring(server)
    victims = [server, process.pid, child, *offspring(child)]
    for pid in (*victims, *victims):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)
    wait_until(lambda: not any(alive(pid) for pid in victims))
    assert all(disk.is_frozen() for disk in disks)
    if unmounted:
        for disk in disks:
            sh("umount", disk.point)
            assert not disk.is_mounted()

    found = journal.read_entries(str(directory))
    assert list(found) == ["volume"]
    facts: Any = found["volume"]
    assert [fact["boot"] for fact in facts] == [journal.boot_id()] * 2
    strangers = [fact | {"backing": [1, 2]} for fact in facts]
    assert (await children.run("thaw", 10, mounts=strangers)) == {"thawed": [False, False]}
    assert (await children.run("thaw", 10, mounts=facts)) == {"thawed": [True, True]}
    assert (await children.run("thaw", 10, mounts=facts)) == {"thawed": [False, False]}
    journal.remove(str(directory), "volume")
    assert journal.read_entries(str(directory)) == {}
    for disk in disks:
        if unmounted:
            wait_until(lambda disk=disk: not Path(f"/sys/fs/{disk.fs}/{Path(disk.device).name}").exists())  # type: ignore[misc]
            sh("mount", "-o", "nouuid" if disk.fs == "xfs" else "defaults", disk.device, disk.point)
        disk.takes_writes()


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_device_without_a_mount_is_thawed_privately(children: HelperPool, pool: Pool, fs: str) -> None:
    disk = pool.disk(fs)

    def mounts() -> list[str]:
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {disk.device} " in line]

    before = mounts()
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": False}
    freeze_mount(disk.point)
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": True}
    assert mounts() == before
    sh("mount", "-o", "remount,ro", disk.point)
    freeze_mount(disk.point)
    sh("umount", disk.point)
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": True}
    wait_until(lambda: not Path(f"/sys/fs/{fs}/{Path(disk.device).name}").exists())
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": False}


async def test_a_frozen_disk_covered_by_another_mount_is_thawed(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    freeze_mount(disk.point)
    sh("mount", "-t", "tmpfs", "none", disk.point)
    try:
        assert (await children.run("thaw", 10, mounts=[disk.mount])) == {"thawed": [True]}
    finally:
        sh("umount", disk.point)
    disk.takes_writes()
