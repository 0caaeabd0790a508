"""A process starts and runs until a signal; the signal also ends a start that is under way."""

import asyncio
import os
import signal

import pytest

from csi_driver.domain.errors import Precondition
from csi_driver.lifecycle import run_until_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_process_that_has_started(number: signal.Signals) -> None:
    started = asyncio.Event()

    async def start() -> None:
        started.set()

    running = asyncio.create_task(run_until_signal(start, "agent"))
    await started.wait()
    await asyncio.sleep(0)
    assert not running.done()
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(running, 20)


async def test_a_signal_ends_a_start_which_undoes_its_work() -> None:
    begun, undone = asyncio.Event(), asyncio.Event()

    async def start() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            undone.set()

    running = asyncio.create_task(run_until_signal(start, "controller"))
    await begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 20)
    assert undone.is_set()


async def test_a_failed_start_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    async def start() -> None:
        raise Precondition("the pool is on fire")

    assert not await asyncio.wait_for(run_until_signal(start, "agent"), 20)
    said = capsys.readouterr()
    assert "agent start failed" in said.out + said.err
    assert "the pool is on fire" in said.out + said.err


async def test_an_error_of_ours_reaches_the_caller() -> None:
    async def start() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(run_until_signal(start, "agent"), 20)
