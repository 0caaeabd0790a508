"""When the certificates are reconciled: at once, every half minute, every five seconds while peers are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from certificates_rig import AGENT, CONTROLLER, CertificatesRig
from support.fake_api import Call, FakeApi, Fault
from support.virtual_loop import VirtualLoop

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.workqueue import Result
from csi_driver.operator.certificates import external, reconciler
from csi_driver.operator.certificates.controller import KEY, CertificateController


class Scripted:
    """A reconciler with these outcomes, the last of them again and again; notes when it was called."""

    def __init__(self, *outcomes: float | Exception) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[float] = []

    async def reconcile(self, _: str) -> Result:
        self.calls.append(asyncio.get_running_loop().time() - 1000.0)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return Result(outcome)


def at_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


async def run_for(seconds: float, scripted: Scripted, retry_seconds: float) -> list[float]:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await CertificateController(scripted, retry_seconds).run()
    return scripted.calls


def test_the_result_says_when_the_next_is_due() -> None:
    async def work() -> None:
        calls = await run_for(100, Scripted(5.0, 5.0, 30.0), reconciler.WAITING_SECONDS)
        assert calls == [0, 5, 10, 40, 70]

    at_virtual_time(work())


@pytest.mark.parametrize("failure", [Unavailable("the API is away"), KeyError("shape")])
@pytest.mark.parametrize("retry_seconds", [reconciler.WAITING_SECONDS, external.PERIOD_SECONDS])
def test_what_fails_is_repeated_at_one_pace(failure: Exception, retry_seconds: float) -> None:
    """However long: a certificate that is due must not wait for a backoff that has grown."""

    async def work() -> None:
        calls = await run_for(3 * retry_seconds - 1, Scripted(failure), retry_seconds)
        assert calls == [number * retry_seconds for number in range(3)]

    at_virtual_time(work())


async def test_what_the_next_reconciliation_waits_for(fake: FakeApi) -> None:
    trusting = CertificatesRig(fake)
    keeper = await trusting.replica()
    assert await keeper.reconcile(KEY) == Result(30.0)
    trusting.peers.load_all()
    trusting.ask_for_rotation()
    assert await keeper.reconcile(KEY) == Result(5.0)
    trusting.peers.load_all()
    assert await keeper.reconcile(KEY) == Result(5.0)
    trusting.peers.load_all()
    assert await keeper.reconcile(KEY) == Result(30.0)
    trusting.check_rest()


async def test_the_process_ends_in_the_middle_of_a_reconciliation(fake: FakeApi) -> None:
    """Cancelled in one write, it leaves what the next process goes on from."""
    trusting = CertificatesRig(fake)
    writing = asyncio.Event()

    async def hang(call: Call) -> None:
        if call.verb == "create" and call.body["metadata"]["name"] == AGENT:
            writing.set()
            await asyncio.sleep(0.2)
            raise Fault(503, "ServiceUnavailable", "away")

    fake.hooks.append(hang)
    running = asyncio.create_task(CertificateController(await trusting.replica(), 5.0).run())
    async with asyncio.timeout(60):
        await writing.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    fake.hooks.clear()
    trusting.secret(CONTROLLER)
    assert await (await trusting.replica()).reconcile(KEY) == Result(30.0)
    trusting.check_rest()
