"""The reconciler of one VolumeRollback: observe, plan, execute. It may be cut off anywhere, and the next call goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound, Precondition
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.kube.workqueue import Result
from csi_driver.operator.rollback.actions import (
    Action,
    CreateSafetySnapshot,
    Finished,
    Hold,
    ObservedRollback,
    UpdateStatus,
)
from csi_driver.operator.rollback.executor import ActionExecutor, PermanentError
from csi_driver.operator.rollback.observe import ProcessState, observe
from csi_driver.operator.rollback.planner import next_action
from csi_driver.operator.rollback.resource import Phase
from csi_driver.service.agents import RollbackAgents

Key = tuple[str, str]
"""Namespace and name."""

CHANGED_SECONDS = 0.1
"""Before the next try, where an object was changed or deleted since it was read."""

MOST_IN_A_ROW = 25
"""Actions in a row without a pause, of which a whole rollback takes about ten: more go in circles, and are slowed down."""

CIRCLE_SECONDS = 1.0
"""Between two actions of a rollback that goes in circles."""


@dataclass(slots=True)
class _Memory:
    """What is kept of one object between two calls. It spares calls and repeated events; a new process does without it.

    `rejected`: whether an event says already that the API rejects what comes next. `in_a_row`: actions without a pause.
    """

    uid: str
    renewed: float = float("-inf")
    rejection: DriverError | None = None
    rejected: bool = False
    in_a_row: int = 0


class RollbackReconciler:
    """Takes one action for each call. `now` gives seconds since the epoch, `clock` seconds that never go back."""

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
        self._executor = ActionExecutor(api, agents, events)
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, key: Key) -> Result:
        """Observe the rollback, and take the next action. Raises the errors of the API and of the agents."""
        namespace, name = key
        rollback = await self._api.get(ROLLBACKS, name, namespace)
        if rollback is None:
            self._memories.pop(key, None)
            return Result()
        memory = self._memory(key, rollback["metadata"]["uid"])
        try:
            requeue_after = await self._reconcile(rollback, memory)
        except PermanentError as error:
            memory.rejection = error.error
            requeue_after = 0.0
        except (Conflict, NotFound):
            requeue_after = CHANGED_SECONDS
        except ApiRejected as error:
            if not memory.rejected:
                # A right that is missing, a policy: its status may be just what cannot be written, and only people can help.
                memory.rejected = True
                await self._events.emit(
                    rollback, "Warning", "RequestRejected", f"the API server rejected a request: {error}"
                )
            raise
        else:
            memory.rejected = False
        if requeue_after is None:
            self._memories.pop(key, None)
        return Result(self._slowed(memory, requeue_after))

    async def _reconcile(self, rollback: Object, memory: _Memory) -> float | None:
        """Take one action; return the seconds until the next, or None where nothing is left to do."""
        state = ProcessState(self._clock() - memory.renewed, memory.rejection)
        observed = await observe(self._api, self._agents, rollback, self._driver, self._now(), state)
        action = next_action(observed)
        if isinstance(action, Finished):
            return None
        requeue_after = await self._execute(action, observed, rollback)
        if isinstance(action, Hold):
            memory.renewed = self._clock()
        return requeue_after

    async def _execute(self, action: Action, observed: ObservedRollback, rollback: Object) -> float:
        try:
            return await self._executor.execute(action, observed, rollback)
        except (AlreadyExists, Precondition, ApiRejected) as error:
            if not isinstance(action, CreateSafetySnapshot):
                raise
            message = f"cannot create the safety snapshot: {error}"
            update = UpdateStatus(Phase.SAFETY, "SafetySnapshotRejected", message, 3.0)
            return await self._executor.execute(update, observed, rollback)

    def _memory(self, key: Key, uid: str) -> _Memory:
        """Return the memory of this very object: one that was created again under the name is another."""
        if key not in self._memories or self._memories[key].uid != uid:
            self._memories[key] = _Memory(uid)
        return self._memories[key]

    @staticmethod
    def _slowed(memory: _Memory, requeue_after: float | None) -> float | None:
        memory.in_a_row = 0 if requeue_after else memory.in_a_row + 1
        return CIRCLE_SECONDS if requeue_after == 0 and memory.in_a_row > MOST_IN_A_ROW else requeue_after
