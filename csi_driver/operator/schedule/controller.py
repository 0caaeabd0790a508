"""The reconciler of SnapshotSchedules: looks at each when something of it has changed, and when a time comes."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import Kind
from csi_driver.operator.schedule.cache import Key, ScheduleCache, flying_by_node
from csi_driver.operator.schedule.executor import ExpectedObjects, PlanExecutor
from csi_driver.operator.schedule.metrics import ScheduleObserver
from csi_driver.operator.schedule.observed import OwnedSnapshot
from csi_driver.operator.schedule.planner import ObservedSchedule, Plan, decide, refuse
from csi_driver.operator.schedule.pruner import SnapshotPruner
from csi_driver.operator.schedule.resource import LEAST_PERIOD, Spec, Unacceptable, read_spec

AT_ONCE = 8
"""Schedules that are looked at at the same time: a look waits for the API, mostly."""

SETTLE_SECONDS = 0.5
"""Between two looks at one schedule: the hundred changes of a run are seen in a few looks."""

CLOCK_SECONDS = 5.0
"""The longest sleep: a wall clock that was set is noticed then."""

RESYNC_SECONDS = 600.0
"""Between two looks at all schedules, whatever was told."""

FIRST_RETRY, LONGEST_RETRY = 1.0, 30.0
"""Seconds before a look that failed is repeated; doubled each time."""

IN_FLIGHT_PER_NODE = 4
"""Snapshots and groups that schedules have under way on one node: each of them stops writes for a moment."""

log = structlog.get_logger()


class Looks:
    """One look at one schedule, from what the mirrors show to what is changed in the cluster."""

    def __init__(
        self,
        api: Api,
        mirrors: Mapping[Kind, Informer],
        events: Events,
        driver: str,
        observer: ScheduleObserver,
        limit: int = IN_FLIGHT_PER_NODE,
        least_period: int = LEAST_PERIOD,
        now: Callable[[], float] = time.time,
        changed: Callable[[Iterable[Key]], None] = lambda _: None,
    ) -> None:
        self._assumed = ExpectedObjects()
        self._events = events
        self._observer = observer
        self._mirrors = mirrors
        self._limit = limit
        self._least_period = least_period
        self._now = now
        self._written: dict[Key, tuple[set[str], Object]] = {}
        self._failures: dict[Key, set[str]] = {}
        self.view = ScheduleCache(mirrors, driver, changed)
        self._acts = PlanExecutor(
            api, events, observer, self._assumed, SnapshotPruner(api, events, observer, self.view)
        )

    async def look(self, key: Key) -> Plan | None:
        """Look once and do what is to be done; None where the schedule is gone. Raises DriverError: look again later."""
        schedule = self._newest(key)
        if schedule is None:
            self._failures.pop(key, None)
            self._written.pop(key, None)
            self._observer.gone(*key)
            return None
        while True:
            now = int(self._now())
            try:
                spec = self._read(schedule)
            except Unacceptable as error:
                decision = refuse(schedule, error, now)
                await self._write(key, schedule, decision.status)
                await self._tell(schedule, decision)
                return decision
            decision = decide(spec, self._seen(spec, schedule), now)
            if decision.begins:
                schedule = await self._write(key, schedule, decision.status)
                await self._tell(schedule, decision)
                continue
            status = await self._acts.carry_out(spec, decision, schedule)
            await self._write(key, schedule, status)
            await self._tell(schedule, decision)
            self._observer.late(*key, decision.late)
            return decision

    async def tidy(self) -> None:
        """Take the labels of grouped schedules that are gone off their claims."""
        for (namespace, claim), labels in list(self.view.stale_group_labels()):
            await self._acts.unlabel(namespace, claim, labels)

    def _read(self, schedule: Object) -> Spec:
        spec = read_spec(schedule, self._least_period)
        if spec.grouped and not self.view.groups_served:
            raise Unacceptable(
                "NoGroupSnapshots",
                "this cluster does not serve groupsnapshot.storage.k8s.io/v1: install the CRDs of group snapshots and restart "
                "the controller, or leave grouped out",
            )
        return spec

    def _seen(self, spec: Spec, schedule: Object) -> ObservedSchedule:
        view, unseen = self.view, self._assumed.unseen(self._mirrors)
        claims, made = view.claims(spec), view.made(spec)
        self._count_failures((spec.namespace, spec.name), made)
        flying = view.in_flight() | {place: make.node for place, make in unseen.items()}
        own = [make for (namespace, _), make in unseen.items() if namespace == spec.namespace]
        return ObservedSchedule(
            schedule,
            claims,
            made,
            view.living(spec.namespace),
            view.unsure(spec.namespace) if spec.delete_with_claim else frozenset(),
            {claim.handle: view.used(claim.handle) for claim in claims if claim.handle},
            view.labelled(spec),
            frozenset(make.name for make in own),
            frozenset(handle for make in own for handle in make.handles),
            flying_by_node(flying),
            self._limit,
        )

    def _newest(self, key: Key) -> Object | None:
        """The schedule as the mirror shows it, or as it was written here, where the mirror has not come so far."""
        shown = self.view.schedule(key)
        older, written = self._written.get(key, (set(), None))
        if shown is None or shown["metadata"]["resourceVersion"] not in older:
            self._written.pop(key, None)
            return shown
        return written

    async def _write(self, key: Key, schedule: Object, status: Mapping[str, object]) -> Object:
        written = await self._acts.write(schedule, status)
        if written is not schedule:
            older, _ = self._written.get(key, (set(), None))
            self._written[key] = (older | {schedule["metadata"]["resourceVersion"]}, written)
        return written

    async def _tell(self, schedule: Object, decision: Plan) -> None:
        for event in decision.events:
            await self._events.emit(schedule, event.type, event.reason, event.message)

    def _count_failures(self, key: Key, made: Iterable[OwnedSnapshot]) -> None:
        """Those that are there when a schedule is first looked at were counted by whoever led before."""
        failed = {one.uid for one in made if one.unit.failed}
        for _ in failed - self._failures.get(key, failed):
            self._observer.failed(*key)
        self._failures[key] = failed


class Schedules:
    """Runs Looks. `mirrors` holds those of schedule_view.KEPT, but for optional kinds that the cluster does not serve.

    `least_period` is in seconds, and below a minute for tests alone; `now` is the wall clock.
    """

    def __init__(
        self,
        api: Api,
        mirrors: Mapping[Kind, Informer],
        events: Events,
        driver: str,
        observer: ScheduleObserver,
        limit: int = IN_FLIGHT_PER_NODE,
        least_period: int = LEAST_PERIOD,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._mirrors = mirrors
        self._make = partial(Looks, api, mirrors, events, driver, observer, limit, least_period, now, self._mark)
        self._now = now
        self._something = asyncio.Event()
        self._dirty: set[Key] = set()
        self._wakes: dict[Key, float] = {}
        self._not_before: dict[Key, float] = {}
        self._retries: dict[Key, float] = {}
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()

    async def run(self) -> None:
        """Follow all schedules. Until cancelled."""
        for mirror in self._mirrors.values():
            await mirror.wait_synced()
        looks = self._make()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync(looks))
                while True:
                    self._something.clear()
                    for key in self._due():
                        self._running.add(key)
                        tasks.create_task(self._look(looks, key), name=f"schedule {'/'.join(key)}")
                    await _wait(self._something, self._pause())
        finally:
            looks.view.close()

    async def _resync(self, looks: Looks) -> None:
        while True:
            self._mark(looks.view.keys())
            try:
                await looks.tidy()
            except DriverError as error:
                log.warning("schedules: labels are taken away later", why=str(error))
            await asyncio.sleep(RESYNC_SECONDS)

    async def _look(self, looks: Looks, key: Key) -> None:
        wait = SETTLE_SECONDS
        try:
            decision = await looks.look(key)
            self._retries.pop(key, None)
            self._plan(key, decision)
        except Conflict:
            self._dirty.add(key)
        except DriverError as error:
            self._dirty.add(key)
            wait = self._retries[key] = min(self._retries.get(key, FIRST_RETRY / 2) * 2, LONGEST_RETRY)
            log.warning("schedule: to be looked at again", schedule="/".join(key), why=str(error), again_in=wait)
        except Exception:  # one object of no known shape must not keep the others from going on
            log.exception("schedule: a look failed", schedule="/".join(key))
            self._dirty.add(key)
            wait = LONGEST_RETRY
        finally:
            self._running.discard(key)
            self._not_before[key] = time.monotonic() + wait
            self._something.set()

    def _plan(self, key: Key, decision: Plan | None) -> None:
        self._wakes.pop(key, None)
        self._waiting.discard(key)
        if decision is None:
            return
        if decision.wake is not None:
            self._wakes[key] = decision.wake
        if (decision.status.get("run") or {}).get("waiting"):
            self._waiting.add(key)

    def _mark(self, keys: Iterable[Key]) -> None:
        """Something of these has changed; and whoever waits for room on a node may have it now."""
        self._dirty.update(keys)
        self._dirty.update(self._waiting)
        self._something.set()

    def _due(self) -> list[Key]:
        now = self._now()
        self._dirty.update(key for key, wake in self._wakes.items() if wake <= now)
        beginning = time.monotonic()
        due: list[Key] = []
        for key in sorted(self._dirty - self._running, key=lambda key: self._not_before.get(key, 0.0)):
            if len(self._running) + len(due) >= AT_ONCE or self._not_before.get(key, 0.0) > beginning:
                break
            due.append(key)
        for key in due:
            self._dirty.discard(key)
            self._wakes.pop(key, None)
            self._not_before.pop(key, None)
        return due

    def _pause(self) -> float:
        """Seconds until something may be due without being told."""
        pauses = [CLOCK_SECONDS, *(wake - self._now() for wake in self._wakes.values())]
        if len(self._running) < AT_ONCE:
            beginning = time.monotonic()
            pauses += [self._not_before.get(key, 0.0) - beginning for key in self._dirty - self._running]
        return max(0.0, min(pauses))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
