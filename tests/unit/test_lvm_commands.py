"""The queue of a pool's lvm commands: their order, batches, and what an lvm that was killed or hangs does to the pool."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from csi_driver.backends.lvm.commands import Commands
from csi_driver.domain.errors import AlreadyExists, Busy, DriverError, InUse, Unavailable
from csi_driver.host.helper.client import JobFailed, JobStuck
from csi_driver.host.helper.job import JobEnded
from csi_driver.host.lvm.uncommitted import why_not

VG = {
    "vg_name": "fast", "vg_uuid": "abc-def", "vg_size": "100", "vg_free": "50", "vg_extent_size": "4", "vg_tags": "",
    "pv_count": "1", "vg_missing_pv_count": "0", "lv_count": "1", "vg_mda_size": "10", "vg_mda_free": "5", "vg_systemid": "",
    "vg_lock_type": "",
}  # fmt: skip


class Helpers:
    """Stands where the fork server is: an lvm that does what the test says, one command at a time, or the test fails."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.configs: list[str] = []
        self.steps: list[str] = []
        self.devices = ["/dev/vdb"]
        self.answers: dict[str, Callable[[list[str]], Any]] = {}
        self.suspended: list[str] = []
        self.running = 0
        self.pause: asyncio.Event | None = None

    async def run(self, name: str, timeout: float, **args: Any) -> Any:
        if name == "find_lvm":
            return {"through_host": False, "version": [2, 3, 16], "udev": False}
        if name == "find_pool_devices":
            self.steps.append("find")
            return {"vg_uuid": "abc-def", "devices": self.devices}
        if name == "resume_pool":
            assert args["vg_uuid"] == "abc-def"
            self.steps.append("resume")
            resumed, self.suspended = self.suspended, []
            return resumed
        assert name == "lvm"
        assert self.running == 0, "two lvm commands at once"
        self.running += 1
        try:
            if self.pause:
                await self.pause.wait()
            await asyncio.sleep(0)
            command = args["args"]
            self.steps.append(command[0])
            self.commands.append(command)
            self.configs.append(args["config"])
            answer = self.answers.get(command[0], lambda _: "")(command)
            return json.dumps({"report": [{"vg": [VG]}]}) if command[0] == "vgs" and not answer else answer
        finally:
            self.running -= 1


def refused(said: str, rc: int | None = 5) -> JobFailed:
    code = errno.ETIMEDOUT if rc is None else errno.EIO
    return JobFailed("lvm", code, said, "CommandError", {"argv": ["lvm"], "rc": rc, "err": said, "out": ""})


def failing(error: Exception) -> Callable[[list[str]], Any]:
    def fail(_: list[str]) -> Any:
        raise error

    return fail


@pytest.fixture
def helpers() -> Helpers:
    return Helpers()


@pytest.fixture
async def commands(helpers: Helpers) -> AsyncIterator[Commands]:
    pool = Commands(helpers, "fast")  # type: ignore[arg-type]
    group = await pool.open()
    assert (group.name, pool.vg_uuid, pool.devices) == ("fast", "abc-def", ("/dev/vdb",))
    helpers.steps.clear()
    helpers.commands.clear()
    yield pool
    await pool.close()


async def test_what_an_earlier_agent_left_suspended_is_resumed_before_the_first_command(helpers: Helpers) -> None:
    helpers.suspended = ["fast-pool"]
    await Commands(helpers, "fast").open()  # type: ignore[arg-type]
    assert helpers.steps == ["find", "resume", "vgs"]


async def test_commands_run_one_after_the_other_in_their_order(commands: Commands, helpers: Helpers) -> None:
    await asyncio.gather(*(commands.change("lvcreate", "-n", str(at)) for at in range(20)))
    assert [command[-1] for command in helpers.commands] == [str(at) for at in range(20)]


async def test_removals_that_wait_share_one_command(commands: Commands, helpers: Helpers) -> None:
    helpers.pause = asyncio.Event()
    first = asyncio.create_task(commands.change("lvcreate"))
    removals = [asyncio.create_task(commands.remove(f"v{at}")) for at in range(40)]
    await asyncio.sleep(0.01)
    helpers.pause.set()
    await asyncio.gather(first, *removals)
    batches = [command[3:] for command in helpers.commands if command[0] == "lvremove"]
    assert [len(batch) for batch in batches] == [32, 8]
    assert {name for batch in batches for name in batch} == {f"fast/v{at}" for at in range(40)}


async def test_of_a_batch_each_caller_gets_the_answer_of_its_own(commands: Commands, helpers: Helpers) -> None:
    def lvremove(command: list[str]) -> str:
        names = command[3:]
        if "fast/used" in names:
            raise refused("Logical volume fast/used contains a filesystem in use.")
        if names == ["fast/gone"]:
            raise refused('Failed to find logical volume "fast/gone"')
        return ""

    helpers.answers["lvremove"] = lvremove
    answers = await asyncio.gather(*(commands.remove(n) for n in ("a", "used", "gone")), return_exceptions=True)
    assert answers[0] is None
    assert isinstance(answers[1], InUse)
    assert answers[2] is None


async def test_after_a_killed_lvm_devices_are_resumed_before_anything_else(
    commands: Commands, helpers: Helpers
) -> None:
    helpers.answers["lvcreate"] = failing(refused("", rc=-9))
    helpers.suspended = ["fast-pool"]
    with pytest.raises(Busy, match="killed by signal 9"):
        await commands.change("lvcreate")
    assert helpers.steps == ["lvcreate", "resume"]  # at once, and not when somebody comes next
    assert commands.killed_total == 1
    del helpers.answers["lvcreate"]
    await commands.change("lvcreate")
    assert helpers.steps == ["lvcreate", "resume", "lvcreate"]


@pytest.mark.parametrize("error", [refused("", rc=None), JobFailed("lvm", 0, "the child ended", "Crashed")])
async def test_a_deadline_and_a_crash_are_an_lvm_that_was_killed(
    commands: Commands, helpers: Helpers, error: JobFailed
) -> None:
    helpers.answers["lvchange"] = failing(error)
    with pytest.raises(Busy, match="try again"):
        await commands.change("lvchange")
    assert helpers.steps == ["lvchange", "resume"]


async def test_while_an_lvm_hangs_everything_is_busy_and_then_goes_on(
    commands: Commands, helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi_driver.backends.lvm.commands._EXIT_SECONDS", 0.01)
    gone = JobEnded()
    helpers.answers["lvcreate"] = failing(JobStuck("lvm", 120, gone))
    waiting = asyncio.create_task(commands.remove("v1"))  # behind it in the queue
    with pytest.raises(Busy, match="did not end within 120 s"):
        await commands.change("lvcreate")
    for call in (commands.change("lvremove"), commands.read("lvs"), commands.remove("v2")):
        with pytest.raises(Busy, match=r"takes no changes: .*hangs in the kernel: lvcreate in pool fast \(\d+ s\)"):
            await call
    await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(Busy):
        async with commands.exclusive():
            pytest.fail("a snapshot would send messages to a pool that an lvm is changing")
    assert "lvcreate" in commands.hung
    helpers.answers.clear()
    helpers.steps.clear()
    gone.set()
    commands.ensure_usable()
    await commands.change("lvchange")
    assert commands.hung == ""
    assert helpers.steps[0] == "resume"  # what it did after it was given up
    assert helpers.steps[-1] == "lvchange"


async def test_a_device_that_does_not_resume_keeps_the_pool_from_changes(commands: Commands, helpers: Helpers) -> None:
    helpers.answers["lvcreate"] = failing(refused("", rc=-9))
    run = helpers.run

    async def broken(name: str, timeout: float, **args: Any) -> Any:
        if name == "resume_pool":
            raise JobFailed(name, errno.EINVAL, "Invalid argument", "OSError")
        return await run(name, timeout, **args)

    helpers.run = broken  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(Busy):
            await commands.change("lvcreate")
    assert helpers.steps == ["lvcreate"]
    helpers.run = run  # type: ignore[method-assign]
    helpers.answers.clear()
    await commands.change("lvcreate")
    assert helpers.steps == ["lvcreate", "resume", "lvcreate"]


async def test_a_disk_that_came_since_the_start_is_found(commands: Commands, helpers: Helpers) -> None:
    def lvcreate(_: list[str]) -> str:
        if "vdc" not in helpers.configs[-1]:
            raise refused("Cannot change VG fast while PVs are missing.")
        return ""

    helpers.answers["lvcreate"] = lvcreate
    helpers.devices = ["/dev/vdb", "/dev/vdc"]
    await commands.change("lvcreate")
    assert commands.devices == ("/dev/vdb", "/dev/vdc")
    helpers.answers["lvcreate"] = failing(refused("Cannot change VG fast while PVs are missing."))
    with pytest.raises(Unavailable, match="away"):
        await commands.change("lvcreate")


async def test_a_caller_that_goes_away_leaves_its_change_running(commands: Commands, helpers: Helpers) -> None:
    helpers.pause = asyncio.Event()
    change = asyncio.create_task(commands.change("lvcreate"))
    await asyncio.sleep(0.01)
    change.cancel()
    await asyncio.sleep(0.01)
    assert not change.done()
    helpers.pause.set()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert helpers.steps == ["lvcreate"]
    assert commands.killed_total == 0


async def test_a_refusal_is_no_kill(commands: Commands, helpers: Helpers) -> None:
    helpers.answers["lvcreate"] = failing(refused('Logical Volume "v" already exists in volume group "fast"'))
    with pytest.raises(AlreadyExists):
        await commands.change("lvcreate")
    assert helpers.steps == ["lvcreate"]


@pytest.mark.parametrize("answer", ["", "no json", '{"report": [{"lv": [{"lv_name": "x"}]}]}'])
async def test_a_report_that_cannot_be_read_is_a_refusal(commands: Commands, helpers: Helpers, answer: str) -> None:
    helpers.answers["lvs"] = lambda _: answer
    with pytest.raises(DriverError, match="pool fast: lvm's report"):
        await commands.logical_volumes()


WEDGED = """  device-mapper: message ioctl on  (254:2) failed: File exists
  Failed to process message "create_snap 3 1".
  Thin pool fast-pool-tpool (254:2) already contain thin device with device_id 3.
  Manual intervention may be required to remove device dev_id=3 in thin pool metadata.
  Failed to suspend fast/pool with queued messages.
"""


@pytest.mark.parametrize("refusal", [None, JobFailed("x", errno.ESTALE, "it may hold data", "Mismatch")])
async def test_what_a_killed_lvm_left_in_the_kernel_is_removed_if_it_is_nobody_s(
    commands: Commands, helpers: Helpers, refusal: JobFailed | None
) -> None:
    removed: list[dict[str, Any]] = []
    run = helpers.run

    async def healing(name: str, timeout: float, **args: Any) -> Any:
        if name != "remove_uncommitted":
            return await run(name, timeout, **args)
        if refusal:
            raise refusal
        removed.append(args)
        return None

    def lvcreate(_: list[str]) -> str:
        if not removed:
            raise refused(WEDGED)
        return ""

    helpers.run = healing  # type: ignore[method-assign]
    helpers.answers["lvcreate"] = lvcreate
    rows = [
        {"lv_name": name, "lv_attr": kind, "transaction_id": "4"} for name, kind in (("pool", "twi"), ("v-1", "Vwi"))
    ]
    helpers.answers["lvs"] = lambda _: json.dumps({"report": [{"lv": rows}]})
    if refusal:
        with pytest.raises(Unavailable, match=r"needs repair.*it may hold data"):
            await commands.change("lvcreate")
        return
    await commands.change("lvcreate")
    assert [(args["pool"], args["thin_id"], args["transaction"]) for args in removed] == [("fast-pool-tpool", 3, 4)]
    assert commands.healed_total == 1


@pytest.mark.parametrize(
    ("made_in", "kernel", "group", "words"),
    [
        (3, 3, 4, ""),
        (2, 3, 4, "may hold data"),  # of an object that the volume group has lost
        (3, 3, 3, "which no killed lvm leaves"),
        (3, 3, 5, "which no killed lvm leaves"),
        (None, 3, 4, "none of that number"),
    ],
)
def test_only_what_the_last_transaction_made_is_nobody_s(
    made_in: int | None, kernel: int, group: int, words: str
) -> None:
    why = why_not(made_in, kernel, group)
    assert bool(why) == bool(words)
    assert words in why
