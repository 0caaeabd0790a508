"""Schedules in this process against a real API server: the leader changes, the clock moves, the API goes away for a minute.

Every 10 seconds, which only tests may ask for. Nothing is made twice, nothing is left out that could be made, no storm follows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rig.bare_api import BareApi, why_not

from csi_driver.domain.errors import DriverError
from csi_driver.domain.timestamps import parse_timestamp
from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.leader_election import LeaderElector
from csi_driver.kube.resources import NAMESPACES, PVCS, PVS, SCHEDULES, SNAPSHOTS
from csi_driver.operator.schedule.cache import TRIMMERS
from csi_driver.operator.schedule.controller import ScheduleController
from csi_driver.operator.schedule.dependencies import ScheduleDependencies

pytestmark = [pytest.mark.slow(seconds=120), pytest.mark.xdist_group("schedule clock")]

DRIVER = "csi.tidemark.dev"
PERIOD = 10
CLAIM_NAMES = ("a", "b", "c")
AWAY_SECONDS = float(os.environ.get("TIDEMARK_API_AWAY_SECONDS") or 60)
"""For which the API is away in its test; `make soak` has ten minutes."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"no API server can be had here, and CI is set: {reason}")
        pytest.skip(f"no API server can be had here: {reason}")
    made = BareApi(tmp_path_factory.mktemp("api"))
    try:
        made.up()
        yield made
    finally:
        made.down()


class Silent:
    """An observer that counts nothing but how late a schedule is said to be."""

    def __init__(self) -> None:
        self.since: int | None = None

    def snapshot_created(self, namespace: str, name: str) -> None: ...

    def snapshot_failed(self, namespace: str, name: str) -> None: ...

    def snapshot_deleted(self, namespace: str, name: str) -> None: ...

    def remove(self, namespace: str, name: str) -> None: ...

    def set_overdue(self, namespace: str, name: str, since: int | None) -> None:
        self.since = since


class Scene:
    """A namespace with three claims, a snapshotter, and as many candidates for the lease as a test wants."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.kubeconfig, self.namespace = str(kubeconfig), namespace
        self.ahead = 0.0
        self.hold = False
        """While it is set, no snapshot becomes ready."""
        self.seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        """Claim and nominal time -> the UIDs of all snapshots that were ever there for them."""
        self.tasks: list[asyncio.Task[None]] = []
        self.observer = Silent()

    async def begin(self, **spec: Any) -> None:
        self.api = await Api.connect(self.kubeconfig)
        await self.api.create(NAMESPACES, {"kind": "Namespace", "metadata": {"name": self.namespace}})
        for name in CLAIM_NAMES:
            await self._claim(name)
        meta = {"name": "s", "namespace": self.namespace}
        body = {"kind": "SnapshotSchedule", "metadata": meta, "spec": {"selector": {}, "every": f"{PERIOD}s", **spec}}
        await self.api.create(SCHEDULES, body)
        self.tasks.append(asyncio.create_task(self._snapshotter()))

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.api.delete(SCHEDULES, "s", self.namespace)
        await self.api.close()

    async def candidate(self, name: str) -> asyncio.Task[None]:
        """A replica of the controller, as far as schedules go; cancel it, and it hands the lease over."""
        api = await Api.connect(self.kubeconfig)
        leader = LeaderElector(api, self.namespace, "operator", name, lease=6, renew=4, retry=0.5)

        async def lead() -> None:
            informers = {kind: Informer(api, kind, transform=keep) for kind, keep in TRIMMERS.items()}
            for informer in informers.values():
                informer.start()
            try:
                events = Events(api, "test", name)
                dependencies = ScheduleDependencies(
                    api, informers, events, DRIVER, self.observer, 1, PERIOD, lambda: time.time() + self.ahead
                )
                await ScheduleController(dependencies).run()
            finally:
                for informer in informers.values():
                    await informer.stop()

        async def life() -> None:
            try:
                await leader.run(lead)
            finally:
                await api.close()

        task = asyncio.create_task(life())
        self.tasks.append(task)
        return task

    async def _claim(self, name: str) -> None:
        disk = f"{self.namespace}-{name}"
        size = {"requests": {"storage": "1Gi"}}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": size, "volumeName": disk, "storageClassName": ""}
        meta = {"name": name, "namespace": self.namespace}
        claim = await self.api.create(PVCS, {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})
        await self.api.patch(PVCS, name, {"status": {"phase": "Bound"}}, self.namespace, "status")
        owner = meta | {"uid": claim["metadata"]["uid"]}
        # A node of its own: what another test has left in flight is not in the way.
        csi = {"driver": DRIVER, "volumeHandle": f"{self.namespace}:pool:{claim['metadata']['uid'].replace('-', '')}"}
        spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "claimRef": owner, "csi": csi}
        await self.api.create(PVS, {"kind": "PersistentVolume", "metadata": {"name": disk}, "spec": spec})

    async def _snapshotter(self) -> None:
        while True:
            with suppress(DriverError):
                for snapshot in await self.api.list(SNAPSHOTS, self.namespace):
                    meta = snapshot["metadata"]
                    said = meta["annotations"]
                    self.seen[said["tidemark.dev/claim"], said["tidemark.dev/scheduled-for"]].add(meta["uid"])
                    if not (snapshot.get("status") or {}).get("readyToUse") and not self.hold:
                        await self.api.patch(
                            SNAPSHOTS, meta["name"], {"status": {"readyToUse": True}}, self.namespace, "status"
                        )
            await asyncio.sleep(0.1)

    async def until(self, holds: Callable[[], object], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.05)

    def times(self, claim: str) -> list[int]:
        return sorted(parse_timestamp(when) or 0 for name, when in self.seen if name == claim)

    def whole(self) -> list[int]:
        """The nominal times for which every claim has a snapshot."""
        return sorted(set.intersection(*(set(self.times(claim)) for claim in CLAIM_NAMES)))

    def twice(self) -> list[tuple[str, str]]:
        return [what for what, uids in self.seen.items() if len(uids) > 1]


@pytest.fixture
async def scene(bare: BareApi, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    made = Scene(bare.kubeconfig, f"s-{os.urandom(3).hex()}")
    try:
        yield made
    finally:
        await made.end()


async def test_the_leader_changes_in_the_middle_of_a_run(scene: Scene) -> None:
    """One at a time is in flight, and the leader goes away between the first claim and the second; also without a word."""
    await scene.begin(retention={"keepLast": 2})
    leaders = [await scene.candidate("first"), await scene.candidate("second"), await scene.candidate("third")]
    await scene.until(scene.whole)
    for round_ in (1, 2):
        scene.hold = True
        done = len(scene.whole())
        await scene.until(lambda: len(scene.seen) > 3 * done)  # noqa: B023  waited for in this round
        leaders[round_ - 1].cancel()
        scene.hold = False
        await scene.until(lambda: len(scene.whole()) > done)  # noqa: B023
    assert scene.twice() == []
    for claim in CLAIM_NAMES:
        found = scene.times(claim)
        assert found == list(range(found[0], found[-1] + 1, PERIOD)), f"of {claim} one was left out"


@pytest.mark.timeout(300 + AWAY_SECONDS)
async def test_the_api_is_away(scene: Scene, bare: BareApi) -> None:
    await scene.begin()
    await scene.candidate("one")
    await scene.until(scene.whole)
    before = scene.whole()
    await asyncio.to_thread(bare.cut)
    away = time.time()
    await asyncio.sleep(AWAY_SECONDS)
    returns = time.time()
    await asyncio.to_thread(bare.resume)
    back = time.time()
    await scene.until(lambda: len([when for when in scene.whole() if when > back]) >= 2, 90)
    assert scene.twice() == []
    # It may answer some seconds before it says that it is ready, and the last time before that is made up for then.
    missed = [when for claim in CLAIM_NAMES for when in scene.times(claim) if away < when < returns - PERIOD]
    assert missed == [], "times that had long passed were made up for"
    assert scene.whole()[: len(before)] == before
    made = [when for when in scene.whole() if when > back + 2 * PERIOD]
    assert made == list(range(made[0], made[-1] + 1, PERIOD)) if made else True


async def test_the_clock_jumps_a_day_ahead_and_back(scene: Scene) -> None:
    await scene.begin(retention={"keepLast": 4})
    await scene.candidate("one")
    await scene.until(scene.whole)
    scene.ahead = 86400.0
    await scene.until(lambda: [when for when in scene.whole() if when > time.time() + 80000])
    scene.ahead = 0.0
    back = time.time()
    await scene.until(lambda: len([when for when in scene.whole() if back < when < back + 3600]) >= 2)
    assert scene.twice() == []
    # At most those of the seconds that the day ahead has lasted here, and not those of the day between.
    assert len(scene.whole()) <= 8
    found = await scene.api.get(SCHEDULES, "s", scene.namespace)
    assert found is not None
    assert abs((parse_timestamp(found["status"]["lastScheduleTime"]) or 0) - time.time()) < 2 * PERIOD + 5
