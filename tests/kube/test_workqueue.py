"""The work queue, on a loop whose clock jumps to the next timer: hours pass in no time, and every time is exact."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.virtual_loop import VirtualLoop

from csi_driver.domain.errors import DriverError, Unavailable
from csi_driver.kube.workqueue import Result, WorkQueue

FIRST, LONGEST = 1.0, 30.0


def now() -> float:
    return asyncio.get_running_loop().time() - 1000.0


class Recorder:
    """A reconciler that does as `act` says, and notes when it was called for what."""

    def __init__(self, act: Callable[[str], Awaitable[Result | None]]) -> None:
        self._act = act
        self.calls: list[tuple[str, float]] = []
        self.active: Counter[str] = Counter()
        self.most_at_once = 0

    async def reconcile(self, key: str) -> Result:
        self.calls.append((key, round(now(), 6)))
        assert not self.active[key], f"{key} is worked on twice at once"
        self.active[key] += 1
        self.most_at_once = max(self.most_at_once, self.active.total())
        try:
            return await self._act(key) or Result()
        finally:
            self.active[key] -= 1

    def times(self, key: str = "a") -> list[float]:
        return [at for called, at in self.calls if called == key]


def on_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


async def nothing(key: str) -> None:
    return None


async def ran(
    act: Callable[[str], Awaitable[Result | None]],
    script: Callable[[WorkQueue[str]], Coroutine[Any, Any, None]],
    seconds: float = 1000.0,
    **options: Any,
) -> Recorder:
    """What was called for in that many seconds while the script ran beside."""
    queue: WorkQueue[str] = WorkQueue(
        "test", **({"concurrency": 2} | options), first_backoff=FIRST, longest_backoff=LONGEST
    )
    recorder = Recorder(act)
    running = asyncio.create_task(queue.run(recorder))
    beside = asyncio.create_task(script(queue))
    await asyncio.sleep(seconds)
    await beside
    assert not running.done()
    await cancelled(running)
    return recorder


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_a_key_is_reconciled_once_however_often_it_was_added() -> None:
    async def test() -> None:
        async def script(queue: WorkQueue[str]) -> None:
            for _ in range(5):
                queue.add("a")
            queue.add("b")
            assert "a" in queue
            await asyncio.sleep(1)
            assert "a" not in queue
            queue.add("a")

        recorder = await ran(nothing, script)
        assert recorder.calls == [("a", 0), ("b", 0), ("a", 1)]

    on_virtual_time(test)


def test_what_was_added_before_the_run_is_reconciled() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue("test", 1, FIRST, LONGEST)
        queue.add("a")
        recorder = Recorder(nothing)
        running = asyncio.create_task(queue.run(recorder))
        await asyncio.sleep(1)
        await cancelled(running)
        assert recorder.calls == [("a", 0)]

    on_virtual_time(test)


def test_a_key_that_is_added_while_it_is_worked_on_is_worked_on_again_afterwards() -> None:
    async def test() -> None:
        async def slow(key: str) -> None:
            await asyncio.sleep(10)

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            for second in (1, 2, 3):
                await asyncio.sleep(1)
                assert "a" in queue
                queue.add("a")
                assert second < 10

        recorder = await ran(slow, script)
        assert recorder.times() == [0, 10]

    on_virtual_time(test)


def test_a_later_time_that_was_asked_for_while_it_is_worked_on_stands() -> None:
    async def test() -> None:
        async def slow(key: str) -> None:
            await asyncio.sleep(10)

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            await asyncio.sleep(1)
            queue.add_after("a", 60)

        recorder = await ran(slow, script)
        assert recorder.times() == [0, 61]

    on_virtual_time(test)


def test_the_earliest_of_several_times_holds() -> None:
    async def test() -> None:
        async def script(queue: WorkQueue[str]) -> None:
            for seconds in (50, 20, 30):
                queue.add_after("a", seconds)
            queue.add_after("b", 100)
            await asyncio.sleep(40)
            queue.add("b")

        recorder = await ran(nothing, script)
        assert recorder.calls == [("a", 20), ("b", 40)]

    on_virtual_time(test)


def test_a_result_asks_for_the_next_time_and_a_change_comes_before_it() -> None:
    async def test() -> None:
        async def act(key: str) -> Result:
            return Result(requeue_after=100.0 if now() < 300 else None)

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            await asyncio.sleep(150)
            queue.add("a")

        recorder = await ran(act, script)
        assert recorder.times() == [0, 100, 150, 250, 350]

    on_virtual_time(test)


def test_failures_back_off_up_to_the_longest_and_a_success_forgets_them() -> None:
    async def test() -> None:
        failing = iter([True] * 8 + [False] + [True] * 2 + [False])

        async def act(key: str) -> Result:
            if next(failing, False):
                raise Unavailable("away")
            return Result()

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            await asyncio.sleep(500)
            queue.add("a")

        recorder = await ran(act, script)
        assert recorder.times() == [0, 1, 3, 7, 15, 31, 61, 91, 121, 500, 501, 503]

    with capture_logs() as logs:
        on_virtual_time(test)
    assert logs[0] == {
        "event": "reconcile failed",
        "log_level": "warning",
        "controller": "test",
        "key": "a",
        "why": "away",
        "retry_in": FIRST,
    }
    assert max(line["retry_in"] for line in logs) == LONGEST


def test_a_thousand_failures_in_a_row_are_no_overflow() -> None:
    async def test() -> None:
        async def act(key: str) -> Result:
            raise Unavailable("away")

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")

        recorder = await ran(act, script, seconds=1200 * LONGEST)
        assert 1190 < len(recorder.calls) <= 1210

    on_virtual_time(test)


def test_changes_do_not_cut_a_backoff_short_but_forget_does() -> None:
    """A run of a schedule makes a hundred changes: while the API refuses it, each would be a try of its own."""

    async def test() -> None:
        async def act(key: str) -> Result:
            if now() < 20:
                raise Unavailable("away")
            return Result()

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            for _ in range(170):
                await asyncio.sleep(0.1)
                queue.add("a")
            queue.forget("a")
            queue.add("a")

        recorder = await ran(act, script, seconds=19)
        assert recorder.times() == [0, 1, 3, 7, 15, pytest.approx(17.0), pytest.approx(18.0)]

    on_virtual_time(test)


def test_forget_leaves_the_least_interval_and_what_is_not_queued_alone() -> None:
    async def test() -> None:
        async def script(queue: WorkQueue[str]) -> None:
            queue.forget("a")
            assert "a" not in queue
            queue.add("a")
            await asyncio.sleep(1)
            queue.forget("a")
            queue.add("a")

        recorder = await ran(nothing, script, min_interval=5)
        assert recorder.times() == [0, 5]

    on_virtual_time(test)


def test_an_unknown_error_is_logged_and_waits_longest_while_others_go_on() -> None:
    async def test() -> None:
        async def act(key: str) -> Result:
            if key == "a":
                raise KeyError("shape")
            return Result(requeue_after=10)

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")
            queue.add("b")

        recorder = await ran(act, script, seconds=65)
        assert recorder.times() == [0, LONGEST, 2 * LONGEST]
        assert recorder.times("b") == [0, 10, 20, 30, 40, 50, 60]

    with capture_logs() as logs:
        on_virtual_time(test)
    assert {(line["log_level"], line["key"]) for line in logs} == {("error", "a")}


def test_a_call_that_is_cancelled_inside_is_a_failure_and_no_end() -> None:
    """Some libraries raise CancelledError of their own: the key must not be lost by it."""

    async def test() -> None:
        async def act(key: str) -> Result:
            if now() < 2:
                raise asyncio.CancelledError
            return Result()

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("a")

        recorder = await ran(act, script)
        assert recorder.times() == [0, 1, 3]

    on_virtual_time(test)


def test_the_least_interval_gathers_changes() -> None:
    async def test() -> None:
        async def act(key: str) -> None:
            await asyncio.sleep(0.1)

        async def script(queue: WorkQueue[str]) -> None:
            for _ in range(100):
                queue.add("a")
                await asyncio.sleep(0.01)

        recorder = await ran(act, script, min_interval=0.5)
        assert recorder.times() == [0, pytest.approx(0.6), pytest.approx(1.2)]

    on_virtual_time(test)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_no_more_than_that_many_at_once_and_all_in_the_end(most: int) -> None:
    async def test() -> None:
        async def act(key: str) -> None:
            await asyncio.sleep(1)

        async def script(queue: WorkQueue[str]) -> None:
            for i in range(24):
                queue.add(f"k{i}")

        recorder = await ran(act, script, concurrency=most)
        assert recorder.most_at_once == most
        assert recorder.calls == [(f"k{i}", i // most) for i in range(24)], "in the order in which they were added"

    on_virtual_time(test)


def test_a_busy_key_does_not_starve_the_others() -> None:
    async def test() -> None:
        async def act(key: str) -> Result | None:
            await asyncio.sleep(1)
            return Result(requeue_after=0) if key == "busy" else None

        async def script(queue: WorkQueue[str]) -> None:
            queue.add("busy")
            for i in range(5):
                await asyncio.sleep(10)
                queue.add(f"k{i}")

        recorder = await ran(act, script, concurrency=1, seconds=100)
        for i in range(5):
            (at,) = recorder.times(f"k{i}")
            assert at <= 10 * (i + 1) + 2, "after at most one turn of the busy one"

    on_virtual_time(test)


def test_failing_keys_do_not_starve_the_others() -> None:
    async def test() -> None:
        async def act(key: str) -> Result:
            await asyncio.sleep(0.1)
            if key.startswith("bad"):
                raise Unavailable("away")
            return Result(requeue_after=5)

        async def script(queue: WorkQueue[str]) -> None:
            for i in range(50):
                queue.add(f"bad{i}")
            queue.add("good")

        recorder = await ran(act, script, concurrency=2, seconds=100)
        gaps = [
            after - before for before, after in zip(recorder.times("good"), recorder.times("good")[1:], strict=False)
        ]
        assert len(gaps) >= 10
        assert max(gaps) < 8

    on_virtual_time(test)


def test_a_leader_that_is_replaced_ends_what_is_under_way_and_forgets_the_rest() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue("test", 2, FIRST, LONGEST)
        ended: list[str] = []

        async def act(key: str) -> None:
            if key == "failing":
                raise Unavailable("away")
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(key)

        recorder = Recorder(act)
        for key in ("failing", "a", "b", "c"):
            queue.add(key)
        queue.add_after("later", 50)
        running = asyncio.create_task(queue.run(recorder))
        await asyncio.sleep(0.5)
        queue.add("a")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert sorted(ended) == ["a", "b"], "ended before run does"
        assert not any(key in queue for key in ("failing", "a", "b", "c", "later"))
        before = len(recorder.calls)
        await asyncio.sleep(1000)
        assert len(recorder.calls) == before

        again = asyncio.create_task(queue.run(recorder))
        queue.add("failing")
        await asyncio.sleep(2)
        await cancelled(again)
        assert [key for key, _ in recorder.calls[before:]] == ["failing", "failing"], "with its first backoff again"

    on_virtual_time(test)


def test_a_process_that_is_killed_takes_the_queue_with_it() -> None:
    class Killed(BaseException):
        pass

    async def test() -> None:
        async def act(key: str) -> None:
            raise Killed

        queue: WorkQueue[str] = WorkQueue("test", 1, FIRST, LONGEST)
        queue.add("a")
        with pytest.raises(BaseExceptionGroup):
            await queue.run(Recorder(act))

    on_virtual_time(test)


def test_what_is_over_leaves_nothing_behind() -> None:
    """Objects come and go for months, and many have their next time a month from now."""

    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue("test", 4, FIRST, LONGEST, 0.5)

        async def act(key: str) -> Result:
            if key.endswith("7") and now() < 1000:
                raise DriverError("no")
            return Result(requeue_after=30 * 86400.0 if key == "monthly" else None)

        running = asyncio.create_task(queue.run(Recorder(act)))
        for i in range(2000):
            queue.add(f"k{i}")
            queue.add("monthly")
            await asyncio.sleep(1)
        await asyncio.sleep(2 * LONGEST)
        queue.add("last")
        await asyncio.sleep(1)
        assert set(queue._due) == {"monthly"}
        assert len(queue._heap) < 100
        assert len(queue._not_before) <= 1
        assert (queue._failures, queue._active) == ({}, set())
        await cancelled(running)

    on_virtual_time(test)
