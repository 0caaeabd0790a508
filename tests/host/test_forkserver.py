"""The fork server and the agent's side of it, with real children; what cannot be killed sleeps in a really frozen ext4."""

import asyncio
import errno
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from freeze_rig import ended
from support.waiting import until

import csi_driver
from csi_driver.backends.volume_helpers import translate
from csi_driver.domain import errors
from csi_driver.host.block import loop
from csi_driver.host.errors import Busy
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck

pytestmark = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root for loop devices and mounts")


hasty = pytest.mark.parametrize("children", [0.5], indirect=True)
HANG = 3.0
"""Seconds that a command has which is to hang: it must have begun to."""


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a frozen ext4: whoever writes there sleeps uninterruptibly until it is thawed."""
    image, point = tmp_path / "frozen.img", tmp_path / "frozen"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", image], check=True, timeout=20)
    device = loop.attach(image)
    try:
        subprocess.run(["mount", device.path, point], check=True, timeout=20)
        try:
            assert os.path.ismount(point)
            subprocess.run(["fsfreeze", "-f", point], check=True, timeout=20)
            yield point
        finally:
            if os.path.ismount(point):
                subprocess.run(["fsfreeze", "-u", point], check=False, timeout=20, capture_output=True)
                retry(["umount", point])
    finally:
        for attempt in range(50):  # by identity, never by number, which may be somebody else's device by now
            try:
                loop.detach(device)
            except Busy:
                if attempt == 49:
                    raise
                time.sleep(0.1)
            else:
                break


def retry(argv: list[str | Path]) -> None:
    for _ in range(50):
        if subprocess.run(argv, check=False, timeout=20, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(argv, check=True, timeout=20)


def thaw(point: Path) -> None:
    subprocess.run(["fsfreeze", "-u", point], check=True, timeout=20)


async def fails(job: Awaitable[object]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await asyncio.wait_for(job, 20)
    return caught.value


def offspring(pid: int) -> set[int]:
    found: set[int] = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found |= {int(entry)} | offspring(int(entry))
    return found


def open_files(pid: int | str = "self") -> int:
    if pid == "self":
        gc.collect()  # of this process, what earlier tests have left
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_a_job_answers_and_its_errors_keep_type_and_errno(children: HelperPool) -> None:
    answer = await children.run("ping", 5)
    assert answer["pid"] not in (os.getpid(), children.server_pid)
    assert (await children.run("statvfs", 5, point="/"))["f_blocks"] == os.statvfs("/").f_blocks
    error = await fails(children.run("statvfs", 5, point="/does/not/exist"))
    assert (error.job, error.errno, error.type) == ("statvfs", 2, "FileNotFoundError")
    assert "/does/not/exist" in error.message
    assert (await fails(children.run("no such job", 5))).type == "UnknownJob"
    assert (await fails(children.run("ping", 5, nonsense=1))).type == "TypeError"


async def test_commands_give_output_or_a_typed_error(children: HelperPool, tmp_path: Path) -> None:
    assert await children.run("command", 10, argv=["echo", "$HOME; x"], seconds=5) == "$HOME; x\n"
    large = tmp_path / "large"
    large.write_text("0123456789abcde\n" * (1 << 17))
    assert len(await children.run("command", 20, argv=["cat", str(large)], seconds=10)) == 2 << 20
    assert await children.run("command", 10, argv=["cat"], seconds=5) == "", "its input is empty"
    error = await fails(children.run("command", 10, argv=["cat", "/does/not/exist"], seconds=5))
    assert (error.type, error.details["rc"]) == ("CommandError", 1)


async def test_past_its_deadline_a_job_is_killed_with_all_that_it_started(children: HelperPool) -> None:
    begun = time.monotonic()
    with pytest.raises(JobStuck) as caught:
        await children.run("command", 0.4, argv=["sleep", "1000"], seconds=900)
    assert time.monotonic() - begun < 90
    await asyncio.wait_for(caught.value.gone.wait(), 30)
    assert not offspring(children.server_pid)
    assert (children.stuck, children.abandoned_total) == (0, 0)


async def test_past_its_own_deadline_a_command_is_killed_with_all_that_it_started(
    children: HelperPool, tmp_path: Path
) -> None:
    script = f"sleep 900 & echo $! > {tmp_path}/pid; echo begun; echo why >&2; wait"
    error = await fails(children.run("command", 60, argv=["sh", "-c", script], seconds=HANG))
    assert (error.type, error.errno, error.details["rc"]) == ("CommandError", errno.ETIMEDOUT, None)
    assert (error.details["out"], error.details["err"]) == ("begun\n", "why\n")
    await asyncio.wait_for(error.gone.wait(), 30)
    # What a shell starts in the background has no part in its input, so it may die a moment later.
    await until(lambda: not alive(int((tmp_path / "pid").read_text())))


async def test_a_helper_that_dies_takes_its_command_along(children: HelperPool) -> None:
    # A shell gives what runs in the background another standard input, and by that one they are waited for.
    script = "exec 3<&0; sleep 900 <&3 & wait"
    job = asyncio.create_task(children.run("command", 60, argv=["sh", "-c", script], seconds=50))
    await until(lambda: len(offspring(children.server_pid)) == 3)
    (helper,) = (pid for pid in offspring(children.server_pid) if parent(pid) == children.server_pid)
    commands = offspring(helper)
    os.kill(helper, signal.SIGKILL)
    error = await fails(job)
    assert (error.type, error.gone.is_set()) == ("Crashed", True)
    assert not any(alive(pid) for pid in commands), "the job counted as gone before they were"


@needs_root
async def test_a_command_that_outlives_its_helper_is_waited_for(children: HelperPool, frozen: Path) -> None:
    """Whether the fork server lives, or dies meanwhile: who asks learns of the end of all, not of the helper's alone."""
    argv = ["touch", str(frozen / "x")]
    jobs = [asyncio.create_task(children.run("command", 60, argv=argv, seconds=50)) for _ in range(2)]
    await until(lambda: len([pid for pid in offspring(children.server_pid) if waits(pid)]) == 2)
    first, second = (pid for pid in offspring(children.server_pid) if parent(pid) == children.server_pid)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not alive(first))
    lost = [*children._jobs.values()]
    os.kill(children.server_pid, signal.SIGKILL)
    await until(lambda: not alive(second))
    await asyncio.sleep(1)
    assert not any(job.gone.is_set() for job in lost)
    thaw(frozen)
    await asyncio.gather(*(asyncio.wait_for(job.gone.wait(), 30) for job in lost))
    for task in jobs:
        assert (await fails(task)).gone.is_set()


async def test_a_daemon_of_a_command_is_left_alone(children: HelperPool, tmp_path: Path) -> None:
    """Such as what LVM starts: no job waits for it, and none that fails later kills it."""
    daemon = f"echo $$ > {tmp_path}/pid; exec sleep 900 </dev/null >/dev/null 2>&1"
    script = f"setsid sh -c '{daemon}' </dev/null >/dev/null 2>&1 & until [ -s {tmp_path}/pid ]; do sleep 0.01; done"
    await children.run("command", 30, argv=["sh", "-c", script], seconds=20)
    pid = int((tmp_path / "pid").read_text())
    try:
        await until(lambda: not children._jobs)
        await fails(children.run("command", 30, argv=["false"], seconds=20))
        with pytest.raises(JobStuck):
            await children.run("ping", 0.2, pause=60)
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_a_child_that_dies_is_an_error_at_once(children: HelperPool) -> None:
    job = asyncio.create_task(children.run("ping", 30, pause=60))
    await until(lambda: offspring(children.server_pid))
    os.kill(offspring(children.server_pid).pop(), signal.SIGKILL)
    error = await fails(job)
    assert error.type == "Crashed"
    assert error.gone.is_set()
    assert "signal 9" in error.message


@needs_root
@hasty
async def test_what_cannot_be_killed_is_abandoned_and_others_go_on(children: HelperPool, frozen: Path) -> None:
    with pytest.raises(JobStuck) as caught:  # an answer, while it hangs for ever
        await children.run("command", HANG, argv=["touch", str(frozen / "x")], seconds=900)
    stuck = caught.value
    assert not stuck.gone.is_set()
    assert "hangs" in str(stuck)
    assert (children.stuck, children.abandoned_total) == (1, 1)
    assert (await children.run("ping", 5))["pid"]
    await asyncio.sleep(1)
    assert not stuck.gone.is_set(), "the command that the job left behind lives on"
    thaw(frozen)
    await asyncio.wait_for(stuck.gone.wait(), 30)
    assert (children.stuck, children.abandoned_total) == (0, 1)
    assert not offspring(children.server_pid)


@needs_root
async def test_stuck_jobs_hold_no_place_until_there_are_too_many(frozen: Path) -> None:
    children = HelperPool(limit=1, stuck_limit=1, grace=0.1)
    await children.start()
    try:
        stuck = []
        for number in range(2):
            with pytest.raises(JobStuck) as caught:
                await children.run("command", HANG, argv=["touch", str(frozen / f"{number}")], seconds=900)
            stuck.append(caught.value)
        error = await fails(children.run("ping", 5))
        assert error.type == "TooManyStuck"
        assert isinstance(translate(error), errors.Busy), "worth a retry"
        assert error.message.count("command") == 2
        assert "thawed" in await children.run("thaw", 5, mounts=[]), "a thaw is always possible"
        thaw(frozen)
        await asyncio.gather(*(asyncio.wait_for(each.gone.wait(), 30) for each in stuck))
        await children.run("ping", 5)
    finally:
        await children.stop()


async def test_jobs_are_bounded_and_wait_for_their_turn() -> None:
    children = HelperPool(limit=2)
    await children.start()
    try:
        long = [asyncio.create_task(children.run("ping", 60, pause=60)) for _ in range(2)]
        await asyncio.sleep(0.1)
        error = await fails(children.run("ping", 0.1))
        assert error.type == "Busy"
        assert isinstance(translate(error), errors.Busy), "worth a retry"
        waiting = asyncio.create_task(children.run("ping", 30))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "there was no place"
        long[0].cancel()
        await waiting
        assert not long[1].done()
        long[1].cancel()
        await asyncio.wait(long)
    finally:
        await children.stop()


async def test_200_jobs_at_once(children: HelperPool) -> None:
    answers = await asyncio.gather(*(children.run("ping", 30, pause=0.01) for _ in range(200)))
    assert len({answer["pid"] for answer in answers}) == 200
    await until(lambda: not offspring(children.server_pid))


async def test_cancelled_jobs_leave_no_descriptor_and_no_process(children: HelperPool) -> None:
    await ended(children)
    before, server_before = open_files(), open_files(children.server_pid)
    tasks = [
        asyncio.create_task(
            children.run("ping", 30, pause=60)
            if number % 2
            else children.run("command", 30, argv=["sleep", "900"], seconds=20)
        )
        for number in range(50)
    ]
    await until(lambda: len(offspring(children.server_pid)) >= 32)
    for task in tasks:
        task.cancel()
    done, pending = await asyncio.wait(tasks, timeout=30)
    assert not pending
    assert all(task.cancelled() for task in done)
    await until(lambda: not offspring(children.server_pid))
    await until(lambda: open_files() <= before and open_files(children.server_pid) == server_before)
    assert children.stuck == 0
    await asyncio.gather(*(children.run("ping", 5) for _ in range(64)))  # all places are free again
    await ended(children)
    assert children.abandoned_total == 0


@hasty
async def test_a_job_cancelled_before_it_was_sent_leaves_nothing(children: HelperPool) -> None:
    before = open_files()
    os.kill(children.server_pid, signal.SIGSTOP)
    try:
        # Large requests fill the socket of a server that does not read, so that the last ones wait on our side.
        tasks = [asyncio.create_task(children.run("ping", 30, filler="x" * 100_000)) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
    finally:
        os.kill(children.server_pid, signal.SIGCONT)
    await until(lambda: children.stuck == 0 and open_files() <= before)
    await children.run("ping", 5)


@hasty
async def test_a_server_that_does_not_read_keeps_no_job_past_its_deadline(children: HelperPool) -> None:
    before = open_files()
    os.kill(children.server_pid, signal.SIGSTOP)
    try:
        jobs = (children.run("ping", 0.5, filler="x" * 100_000) for _ in range(20))
        errors_ = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 20)
    finally:
        os.kill(children.server_pid, signal.SIGCONT)
    unsent = [error for error in errors_ if isinstance(error, JobFailed)]
    assert {error.type for error in unsent} == {"NoServer"}
    assert all(error.gone.is_set() for error in unsent)
    assert all(isinstance(error, JobStuck) for error in errors_ if error not in unsent), (
        "sent, and killed once it reads"
    )
    await until(lambda: children.stuck == 0 and open_files() <= before)
    await children.run("ping", 5)


async def test_a_server_without_descriptors_refuses_jobs_and_recovers(children: HelperPool) -> None:
    pid = children.server_pid
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    first_free = min(set(range(len(used) + 1)) - used)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, limits[1]))
    error = await fails(children.run("ping", 30))
    assert (error.type, error.gone.is_set()) == ("ForkFailed", True)
    assert isinstance(translate(error), errors.Busy), "worth a retry"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    await children.run("ping", 30)
    await ended(children)


async def test_too_many_arguments_are_refused(children: HelperPool) -> None:
    assert (await fails(children.run("ping", 5, filler="x" * 200_000))).type == "TooLarge"
    await children.run("ping", 5)


async def test_a_dead_fork_server_is_replaced(children: HelperPool, caplog: pytest.LogCaptureFixture) -> None:
    first, before = children.server_pid, open_files()
    job = asyncio.create_task(children.run("command", 30, argv=["sleep", "900"], seconds=20))
    idle = asyncio.create_task(children.run("ping", 30, pause=60))
    await until(lambda: len(offspring(first)) == 3)
    lost = offspring(first)
    with caplog.at_level(logging.ERROR):
        os.kill(first, signal.SIGKILL)
        assert {(await fails(job)).type, (await fails(idle)).type} == {"ServerDied"}
        await children.run("ping", 10)
    assert children.server_pid not in (0, first)
    assert "fork server" in caplog.text
    await until(lambda: open_files() <= before)
    await until(lambda: not any(alive(pid) for pid in lost))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def waits(pid: int) -> bool:
    """Whether the process sleeps in the kernel where nothing can kill it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    return False


def alive(pid: int) -> bool:
    """Whether the process does anything any more; a zombie that init has not reaped yet does not, and neither does what ends.

    On its way out a process closes its files before it becomes a zombie: what waits for them sees it run for a moment.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and bool(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


async def test_the_fork_server_ignores_polite_signals_and_holds_nothing_of_the_agent(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)  # the worst case
        children = HelperPool()
        await children.start()
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(children.server_pid, number)
            await children.run("ping", 5)
            held = {
                os.readlink(f"/proc/{children.server_pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{children.server_pid}/fd")
            }
            assert str(tmp_path / "lock") not in held
            assert os.getsid(children.server_pid) == children.server_pid
            mask = int(
                next(
                    line
                    for line in Path(f"/proc/{children.server_pid}/status").read_text().splitlines()
                    if "SigIgn" in line
                ).split()[1],
                16,
            )
            assert mask >> (signal.SIGTERM - 1) & 1
        finally:
            await children.stop()


async def test_stop_ends_the_server_and_the_running_jobs() -> None:
    before = open_files()
    children = HelperPool()
    await children.start()
    pid = children.server_pid
    job = asyncio.create_task(children.run("ping", 30, pause=60))
    await until(lambda: offspring(pid))
    running = offspring(pid)
    await asyncio.wait_for(children.stop(), 30)
    assert (await fails(job)).type == "Stopped"
    assert not Path(f"/proc/{pid}").exists()
    await until(lambda: not any(alive(each) for each in running))
    assert (await fails(children.run("ping", 5))).type == "Stopped"
    await children.stop()
    await until(lambda: open_files() <= before)
    await children.start()
    await children.run("ping", 5)
    await children.stop()


async def test_latency_and_memory_for_the_record(
    children: HelperPool, record_property: Callable[[str, object], None]
) -> None:
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        await children.run("ping", 5)
        times.append(time.perf_counter() - begun)
    times.sort()
    status = Path(f"/proc/{children.server_pid}/status").read_text().splitlines()
    rss = next(line.split()[1] for line in status if line.startswith("VmRSS"))
    facts = {"p50_ms": times[100] * 1e3, "p99_ms": times[198] * 1e3, "rss_kib": int(rss)}
    record_property("forkserver", json.dumps(facts))
    print(facts)
    assert int(rss) < 24 << 10


AGENT_AS_PROCESS_ONE = """
import asyncio, os
from pathlib import Path
from csi_driver.host.helper.client import HelperPool, JobStuck
from csi_driver.host.pid1 import run_as_child_of_pid1

async def main():
    children = HelperPool(grace=20)
    await children.start()
    for job in range(3):
        try:
            await children.run("command", 1, argv=["sh", "-c", "sleep 900 & wait"], seconds=900)
        except JobStuck as error:
            assert error.gone.is_set()
    await children.stop()
    for attempt in range(1000):
        left = [pid for pid in os.listdir("/proc") if pid.isdecimal() and int(pid) not in (1, os.getpid())]
        if not left:
            break
        await asyncio.sleep(0.01)
    print("left:", *left)

run_as_child_of_pid1()
asyncio.run(main())
"""


@needs_root
def test_process_one_reaps_what_killed_helpers_leave() -> None:
    """In a container nobody else does: neither the agent nor its fork server is their parent."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", AGENT_AS_PROCESS_ONE],
        env=os.environ | {"PYTHONPATH": str(Path(csi_driver.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "left:"), done.stderr
