"""The reconciler of VolumeRollbacks: a task for each that is not finished, as long as this controller leads."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from csi_driver.kube.client import Api, Object
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.operator.rollback.reconciler import LONGEST_SECONDS, Steps
from csi_driver.operator.rollback.resource import Phase, read_progress, unfinished
from csi_driver.service.agents import RollbackAgents

AT_ONCE = 64
"""Steps at the same time: each is ten calls. Those of disks on a node that does not answer wait for seconds each, and must
not keep the others waiting."""

RESYNC_SECONDS = 30.0
"""For a change that no watch told."""

BUSY_STEPS = 25
"""Steps in a row without a pause, of which a whole rollback takes about ten: more go in circles, and are slowed down."""

log = structlog.get_logger()


class RollbackController:
    """`mirror` holds all VolumeRollbacks; it says which there are, and everything else is read anew at each step."""

    def __init__(
        self,
        api: Api,
        agents: RollbackAgents,
        mirror: Informer,
        events: Events,
        driver: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._mirror = mirror
        self._steps = Steps(api, agents, events, driver, now)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Event()
        self._wakes: dict[tuple[str, str], asyncio.Event] = {}

    def phases(self) -> dict[str, int]:
        """How many VolumeRollbacks are in each phase."""
        found = Counter(read_progress(obj).phase or Phase.PENDING for obj in self._mirror.all())
        return {str(phase): found[phase] for phase in Phase}

    async def run(self) -> None:
        """Follow all of them. Until cancelled."""
        await self._mirror.wait_synced()
        unsubscribe = self._mirror.subscribe(self._notice)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._changed.clear()
                    for obj in self._mirror.all():
                        key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
                        if key not in self._wakes and unfinished(obj):
                            self._wakes[key] = asyncio.Event()
                            tasks.create_task(self._follow(*key), name=f"rollback {'/'.join(key)}")
                    await _wait(self._changed, RESYNC_SECONDS)
        finally:
            unsubscribe()  # the mirror outlives this leader, and there is a new one with each lease
            self._wakes.clear()

    async def _follow(self, namespace: str, name: str) -> None:
        """Step until nothing is left to do."""
        wake = self._wakes[namespace, name]
        hurried = 0
        try:
            while True:
                wake.clear()
                async with self._slots:
                    wait = await self._step(namespace, name)
                if wait is None:
                    return
                hurried = 0 if wait else hurried + 1
                if hurried > BUSY_STEPS:
                    wait = 1.0
                if wait:
                    await _wait(wake, wait)
        finally:
            self._wakes.pop((namespace, name), None)
            # For an object that was made again under this name meanwhile; not at once, the mirror may lag.
            asyncio.get_running_loop().call_later(1.0, self._changed.set)

    async def _step(self, namespace: str, name: str) -> float | None:
        try:
            return await self._steps.step(namespace, name)
        except Exception:  # one object of no known shape must not keep the others from going on
            log.exception("rollback: a step failed", rollback=f"{namespace}/{name}")
            return LONGEST_SECONDS

    def _notice(self, old: Object | None, new: Object | None) -> None:
        """A change: of the status alone, which this class writes, it is none."""
        if old is not None and new is not None and _observed_fields(old) == _observed_fields(new):
            return
        obj = new or old
        assert obj is not None
        wake = self._wakes.get((obj["metadata"]["namespace"], obj["metadata"]["name"]))
        if wake is not None:
            wake.set()
        self._changed.set()


def _observed_fields(obj: Object) -> tuple[object, ...]:
    meta = obj["metadata"]
    return meta["uid"], meta.get("generation"), meta.get("deletionTimestamp")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
