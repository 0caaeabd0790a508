"""One step of one VolumeRollback: look, decide, act. A step may be cut off anywhere, and the next one goes on."""

import time
from collections.abc import Callable

import structlog

from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound, Precondition
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback.actions import Action, Cleanup, Finished, MakeSafety, ObservedRollback, UpdateStatus
from csi_driver.operator.rollback.executor import ActionExecutor, PermanentError
from csi_driver.operator.rollback.observe import ProcessState, observe
from csi_driver.operator.rollback.planner import next_action
from csi_driver.operator.rollback.resource import Phase
from csi_driver.service.agents import RollbackAgents

AGAIN_SECONDS = 0.5
"""After a step that failed; doubled with each failure in a row, up to LONGEST_SECONDS."""

LONGEST_SECONDS = 5.0

log = structlog.get_logger()


class Steps:
    """Takes steps. What is kept between them spares calls; a new process does without it.

    `now` gives seconds since the epoch, `clock` seconds that never go back.
    """

    def __init__(
        self,
        api: Api,
        agents: RollbackAgents,
        events: Events,
        driver: str,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._agents = agents
        self._events = events
        self._driver = driver
        self._now = now
        self._clock = clock
        self._acts = ActionExecutor(api, agents, events, self._renew)
        self._renewed: dict[str, float] = {}
        self._refused: dict[str, DriverError] = {}
        self._failures: dict[str, int] = {}

    async def step(self, namespace: str, name: str) -> float | None:
        """Take one; returns the seconds until the next is due, or None where nothing is left to do."""
        key = f"{namespace}/{name}"
        try:
            rollback = await self._api.get(ROLLBACKS, name, namespace)
        except DriverError as error:
            return self._again(key, key, error)
        self._failures.pop(key, None)
        if rollback is None:
            return None
        uid = rollback["metadata"]["uid"]
        try:
            seen = await observe(self._api, self._agents, rollback, self._driver, self._now(), self._memory(uid))
            action = next_action(seen)
            if isinstance(action, Finished):
                self._forget(uid)
                return None
            wait = await self._act(action, seen, rollback)
        except PermanentError as refusal:
            self._refused[uid] = refusal.error
            return 0.0
        except (Conflict, NotFound):
            return 0.1  # changed since it was read: look again
        except DriverError as error:
            if isinstance(error, ApiRejected) and uid not in self._failures:
                # A right that is missing, a policy: its status may be just what cannot be written, and only people can help.
                await self._events.emit(rollback, "Warning", "Refused", f"the API refuses what comes next: {error}")
            return self._again(uid, key, error)
        self._failures.pop(uid, None)
        if isinstance(action, Cleanup):
            self._forget(uid)
        return wait

    async def _act(self, action: Action, seen: ObservedRollback, rollback: Object) -> float:
        try:
            return await self._acts.act(action, seen, rollback)
        except (AlreadyExists, Precondition, ApiRejected) as error:
            if not isinstance(action, MakeSafety):
                raise
            say = UpdateStatus(Phase.SAFETY, "SafetySnapshotRefused", f"the safety snapshot cannot be made: {error}", 3)
            return await self._acts.act(say, seen, rollback)

    def _memory(self, uid: str) -> ProcessState:
        return ProcessState(self._clock() - self._renewed.get(uid, float("-inf")), self._refused.get(uid))

    def _renew(self, uid: str) -> None:
        self._renewed[uid] = self._clock()

    def _again(self, key: str, shown: str, error: DriverError) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        log.info("rollback is tried again", rollback=shown, why=str(error), failures=count)
        return float(min(AGAIN_SECONDS * 2 ** min(count - 1, 10), LONGEST_SECONDS))

    def _forget(self, uid: str) -> None:
        for kept in (self._renewed, self._refused, self._failures):
            kept.pop(uid, None)
