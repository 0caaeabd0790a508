"""One leader at a time; another soon, and never two. The clock is the test's."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.waiting import until

from csi_driver.kube import leader_election
from csi_driver.kube.leader_election import LeaderElector
from csi_driver.kube.resources import LEASES


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leader_election, "time", made)
    return made


class Replica:
    """A candidate whose work says when it begins and when it has ended."""

    def __init__(self, fake: FakeApi, name: str, log: list[str]) -> None:
        self.fake, self.name, self.log = fake, name, log
        self.fail: Exception | None = None

    async def start(self, renew: float = leader_election.RENEW_SECONDS) -> Replica:
        self.leader = LeaderElector(await self.fake.connect(), "ns", "op", self.name, renew=renew, retry=0.02)
        self.task = asyncio.create_task(self.leader.run(self.work))
        return self

    async def work(self) -> None:
        self.log.append(f"{self.name} begins")
        if self.fail:
            error, self.fail = self.fail, None
            raise error
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # the end of real work takes a moment
            self.log.append(f"{self.name} ended")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that is busy with other tests must not decide here.
    monkeypatch.setattr(leader_election, "RELEASE_SECONDS", 20.0)


def holder(fake: FakeApi) -> str:
    return str((fake.get(LEASES, "op", "ns") or {"spec": {}})["spec"].get("holderIdentity"))


async def test_one_leads_and_hands_over_when_it_stops(fake: FakeApi) -> None:
    log: list[str] = []
    a = await Replica(fake, "a", log).start()
    await until(lambda: log == ["a begins"])
    b = await Replica(fake, "b", log).start()
    await until(lambda: len(fake.asked("update", LEASES)) > 3)
    assert (log, holder(fake), a.leader.leading, b.leader.leading) == (["a begins"], "a", True, False)
    await a.stop()
    await until(lambda: b.leader.leading)  # with a clock that stands: nothing had to expire
    await b.stop()
    assert log == ["a begins", "a ended", "b begins", "b ended"]
    spec = (fake.get(LEASES, "op", "ns") or {})["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("", 2)


async def test_a_dead_leader_is_followed_when_its_lease_has_run_out(fake: FakeApi, clock: Clock) -> None:
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "2100-01-01T00:00:00.000000Z"}
    fake.put(LEASES, {"metadata": {"name": "op"}, "spec": spec}, "ns")
    log: list[str] = []
    replica = await Replica(fake, "a", log).start()
    await until(lambda: len(fake.asked("get", LEASES)) > 3)
    clock.now += 14
    fake.change(LEASES, "op", {"spec": {"renewTime": "2100-01-01T00:00:01.000000Z"}}, "ns")  # it lives after all
    seen = len(fake.asked("get", LEASES))
    await until(lambda: len(fake.asked("get", LEASES)) > seen + 2)
    clock.now += 14
    seen = len(fake.asked("get", LEASES))
    await until(lambda: len(fake.asked("get", LEASES)) > seen + 2)
    assert log == []
    clock.now += 2
    await until(lambda: log == ["a begins"])
    await replica.stop()


async def test_a_leader_that_cannot_renew_stops_before_its_lease_ends(fake: FakeApi, clock: Clock) -> None:
    log: list[str] = []
    replica = await Replica(fake, "a", log).start()
    await until(lambda: replica.leader.leading)

    def refuse(call: Call) -> None:
        raise Fault(503)

    fake.hooks.append(refuse)
    seen = len(fake.calls)
    await until(lambda: len(fake.calls) > seen + 3)
    assert log == ["a begins"]  # one missed renewal is no reason
    clock.now += leader_election.RENEW_SECONDS
    await until(lambda: log == ["a begins", "a ended"])
    assert leader_election.RENEW_SECONDS < leader_election.LEASE_SECONDS
    fake.hooks.clear()
    await until(lambda: log[2:] == ["a begins"])
    await replica.stop()


async def test_an_api_that_hangs_is_one_that_cannot_be_asked(fake: FakeApi) -> None:
    log: list[str] = []
    replica = await Replica(fake, "a", log).start(renew=0.3)
    await until(lambda: replica.leader.leading)

    async def hang(call: Call) -> None:
        await asyncio.Event().wait()

    fake.hooks.append(hang)
    await until(lambda: log[-1:] == ["a ended"])  # a busy machine may have had it begin twice before that
    await replica.stop()


async def test_a_lease_that_was_taken_is_given_up(fake: FakeApi) -> None:
    log: list[str] = []
    replica = await Replica(fake, "a", log).start()
    await until(lambda: replica.leader.leading)
    fake.change(LEASES, "op", {"spec": {"holderIdentity": "b"}}, "ns")
    await until(lambda: log == ["a begins", "a ended"])
    await replica.stop()
    assert holder(fake) == "b"


async def test_work_that_fails_is_begun_again(fake: FakeApi) -> None:
    log: list[str] = []
    replica = Replica(fake, "a", log)
    replica.fail = ValueError("a defect")
    await replica.start()
    await until(lambda: log == ["a begins", "a begins"])
    await replica.stop()
