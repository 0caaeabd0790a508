"""The few lines that act. Whatever fails here is tried again after the next look; nothing is remembered that matters."""

from collections.abc import Callable
from typing import Any

import structlog

from csi_driver.domain.errors import AlreadyExists, Busy, DriverError, NotFound, Precondition, Unavailable
from csi_driver.kube.client import Api, Object
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, PVS, ROLLBACKS, SNAPSHOTS
from csi_driver.operator.rollback import actions as decided
from csi_driver.operator.rollback.actions import Action, ObservedRollback
from csi_driver.operator.rollback.completed import SPENT_ANNOTATION, record_completed
from csi_driver.operator.rollback.resource import FINALIZER, Phase, stamp
from csi_driver.operator.rollback.safety_snapshots import safety_snapshot
from csi_driver.operator.rollback.status import status_of
from csi_driver.service.agents import RollbackAgents
from csi_driver.service.rollbacks import RollbackRequest

STAND_SECONDS = 60.0
"""Between two looks at what another version is at."""

log = structlog.get_logger()


class PermanentError(Exception):
    """The agent's final no to Rollback: the same call would be refused again."""

    def __init__(self, error: DriverError) -> None:
        super().__init__(str(error))
        self.error = error


class ActionExecutor:
    """Carries out actions. `renewed` is called with each hold that was taken or renewed."""

    def __init__(self, api: Api, agents: RollbackAgents, events: Events, renewed: Callable[[str], None]) -> None:
        self._api = api
        self._agents = agents
        self._events = events
        self._renewed = renewed

    async def act(self, action: Action, seen: ObservedRollback, rollback: Object) -> float:
        """Do it; returns the seconds after which to look again. Raises the errors of the API and of the agents, Refusal."""
        wish = seen.wish
        match action:
            case decided.UpdateStatus():
                await self._say(action, seen, rollback)
                return action.wait
            case decided.AddFinalizer():
                await self._finalizers(rollback, [*_finalizers(rollback), FINALIZER])
            case decided.Hold(volume_id):
                await self._agents.hold(volume_id, wish.holder)
                self._renewed(wish.uid)
            case decided.MakeSafety(volume_id, class_name, number):
                await self._make_safety(seen, rollback, safety_snapshot(wish, volume_id, class_name, number))
            case decided.RollBack(request):
                await self._roll_back(request)
            case decided.RecordCompletion(at):
                await self._spend(seen, at)
            case decided.Release(volume_id):
                await self._release(volume_id, wish.holder)
            case decided.Stand(message):
                log.warning("rollback is left alone", rollback=wish.key, why=message)
                await self._events.emit(rollback, "Warning", "OtherVersion", message)
                return STAND_SECONDS
            case decided.Cleanup():
                await self._tidy(action, seen, rollback)
        return 0.0

    async def _say(self, say: decided.UpdateStatus, seen: ObservedRollback, rollback: Object) -> None:
        old = rollback.get("status") or {}
        new = status_of(rollback, seen.wish, say, seen.now)
        if new == old:
            return
        # Lists and maps are replaced whole, what is left out stays: nothing is ever taken out of a status.
        body = {"metadata": {"resourceVersion": rollback["metadata"]["resourceVersion"]}, "status": new}
        await self._api.patch(ROLLBACKS, seen.wish.name, body, seen.wish.namespace, "status")
        if (new["phase"], new["reason"]) != (old.get("phase"), old.get("reason")):
            await self._tell(seen, rollback, say)

    async def _tell(self, seen: ObservedRollback, rollback: Object, say: decided.UpdateStatus) -> None:
        wish = seen.wish
        log.info("rollback", rollback=wish.key, phase=str(say.phase), reason=say.reason, text=say.message)
        troubled = say.phase is Phase.FAILED or say.phase is Phase.PENDING
        kind: Any = "Warning" if troubled else "Normal"
        await self._events.emit(rollback, kind, say.reason, say.message)
        await self._tell_claim(seen, kind, say.reason, f"VolumeRollback {wish.name}: {say.message}")

    async def _tell_claim(self, seen: ObservedRollback, kind: Any, reason: str, message: str) -> None:
        try:
            claim = await self._api.get(PVCS, seen.wish.claim, seen.wish.namespace)
        except DriverError:
            return
        if claim is not None:
            await self._events.emit(claim, kind, reason, message)

    async def _finalizers(self, rollback: Object, wanted: list[str]) -> None:
        meta = rollback["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": wanted or None}}
        try:
            await self._api.patch(ROLLBACKS, meta["name"], body, meta["namespace"])
        except NotFound:
            return

    async def _make_safety(self, seen: ObservedRollback, rollback: Object, body: Object) -> None:
        name = body["metadata"]["name"]
        try:
            await self._api.create(SNAPSHOTS, body, seen.wish.namespace)
        except AlreadyExists:
            there = await self._api.get(SNAPSHOTS, name, seen.wish.namespace)
            labels = ((there or {}).get("metadata") or {}).get("labels") or {}
            if there is not None and labels != body["metadata"]["labels"]:
                raise Precondition(
                    f"VolumeSnapshot {seen.wish.namespace}/{name} exists and was not made for this rollback: delete it"
                ) from None
        else:
            await self._events.emit(rollback, "Normal", "SafetySnapshot", f"VolumeSnapshot {name} is made first")

    async def _roll_back(self, request: RollbackRequest) -> None:
        try:
            await self._agents.roll_back(request)
        except (Busy, Unavailable, Precondition):
            raise
        except DriverError as error:
            raise PermanentError(error) from error

    async def _spend(self, seen: ObservedRollback, at: float) -> None:
        assert seen.volume is not None
        meta = seen.volume["metadata"]
        annotations = {SPENT_ANNOTATION: record_completed(seen.volume, seen.wish, stamp(at))}
        body = {"metadata": {"resourceVersion": meta["resourceVersion"], "annotations": annotations}}
        await self._api.patch(PVS, meta["name"], body)

    async def _release(self, volume_id: str, holder: str) -> None:
        try:
            await self._agents.release(volume_id, holder)
        except NotFound:
            return

    async def _tidy(self, tidy: decided.Cleanup, seen: ObservedRollback, rollback: Object) -> None:
        for snapshot in tidy.surplus:
            meta = snapshot["metadata"]
            try:
                await self._api.delete(
                    SNAPSHOTS,
                    meta["name"],
                    meta["namespace"],
                    uid=meta["uid"],
                    resource_version=meta["resourceVersion"],
                )
            except Unavailable:
                raise
            except DriverError as error:  # the next Completed tries again
                log.warning("a safety snapshot stays", snapshot=meta["name"], why=str(error))
            else:
                message = f"safety snapshot {meta['name']} is deleted: keepSafety is {seen.wish.keep}"
                await self._events.emit(rollback, "Normal", "SafetySnapshotDeleted", message)
        if tidy.cancelled:
            text = f"VolumeRollback {seen.wish.name} was deleted before the disk was touched: it is cancelled"
            await self._tell_claim(seen, "Normal", "RollbackCancelled", text)
        await self._finalizers(rollback, [f for f in _finalizers(rollback) if f != FINALIZER])


def _finalizers(rollback: Object) -> list[str]:
    return list(rollback["metadata"].get("finalizers") or ())
