"""Executes the actions of rollbacks. A failed one is repeated after the next observation; nothing is remembered that matters."""

from typing import Literal

import structlog

from csi_driver.domain.errors import AlreadyExists, Busy, DriverError, NotFound, Precondition, Unavailable
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.client import Api, Object
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, PVS, ROLLBACKS, SNAPSHOTS
from csi_driver.operator.rollback import actions
from csi_driver.operator.rollback.actions import Action, ObservedRollback
from csi_driver.operator.rollback.completed import COMPLETED_ANNOTATION, record_completed
from csi_driver.operator.rollback.resource import FINALIZER, Phase
from csi_driver.operator.rollback.safety_snapshots import safety_snapshot
from csi_driver.operator.rollback.status import build_status
from csi_driver.service.agents import RollbackAgents
from csi_driver.service.rollbacks import RollbackRequest

LEFT_ALONE_SECONDS = 60.0
"""Between two observations of what another version is at work on."""

log = structlog.get_logger()


class PermanentError(Exception):
    """The agent's final answer to Rollback: the same call would be rejected again."""

    def __init__(self, error: DriverError) -> None:
        super().__init__(str(error))
        self.error = error


class ActionExecutor:
    """Executes one action at a time. Every one may be repeated."""

    def __init__(self, api: Api, agents: RollbackAgents, events: Events) -> None:
        self._api = api
        self._agents = agents
        self._events = events

    async def execute(self, action: Action, observed: ObservedRollback, rollback: Object) -> float:
        """Execute it; return the seconds until the next. Raises the errors of the API and of the agents, PermanentError."""
        spec = observed.spec
        match action:
            case actions.UpdateStatus():
                await self._update_status(action, observed, rollback)
                return action.requeue_after
            case actions.AddFinalizer():
                await self._set_finalizers(rollback, [*_finalizers(rollback), FINALIZER])
            case actions.Hold(volume_id):
                await self._agents.hold(volume_id, spec.holder)
            case actions.CreateSafetySnapshot(volume_id, class_name, number):
                await self._create(observed, rollback, safety_snapshot(spec, volume_id, class_name, number))
            case actions.RollBack(request):
                await self._roll_back(request)
            case actions.RecordCompletion(at):
                await self._record_completion(observed, at)
            case actions.Release(volume_id):
                await self._release(volume_id, spec.holder)
            case actions.LeaveAlone(message):
                log.warning("rollback left alone", rollback=spec.key, why=message)
                await self._events.emit(rollback, "Warning", "UnknownPhase", message)
                return LEFT_ALONE_SECONDS
            case actions.Cleanup():
                await self._clean_up(action, observed, rollback)
        return 0.0

    async def _update_status(self, update: actions.UpdateStatus, observed: ObservedRollback, rollback: Object) -> None:
        old = rollback.get("status") or {}
        new = build_status(rollback, observed.spec, update, observed.now)
        if new == old:
            return
        # Lists and maps are replaced whole, what is left out stays: only conditions are ever removed from a status.
        body = {"metadata": {"resourceVersion": rollback["metadata"]["resourceVersion"]}, "status": new}
        await self._api.patch(ROLLBACKS, observed.spec.name, body, observed.spec.namespace, "status")
        if (new["phase"], new["reason"]) != (old.get("phase"), old.get("reason")):
            await self._emit(observed, rollback, update)

    async def _emit(self, observed: ObservedRollback, rollback: Object, update: actions.UpdateStatus) -> None:
        spec = observed.spec
        log.info(
            "rollback changed phase or reason",
            rollback=spec.key,
            phase=str(update.phase),
            reason=update.reason,
            text=update.message,
        )
        type_: Literal["Normal", "Warning"] = "Warning" if update.phase in (Phase.FAILED, Phase.PENDING) else "Normal"
        await self._events.emit(rollback, type_, update.reason, update.message)
        await self._emit_on_pvc(observed, type_, update.reason, f"VolumeRollback {spec.name}: {update.message}")

    async def _emit_on_pvc(
        self, observed: ObservedRollback, type_: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        try:
            pvc = await self._api.get(PVCS, observed.spec.pvc, observed.spec.namespace)
        except DriverError:
            return
        if pvc is not None:
            await self._events.emit(pvc, type_, reason, message)

    async def _set_finalizers(self, rollback: Object, finalizers: list[str]) -> None:
        metadata = rollback["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers or None}}
        try:
            await self._api.patch(ROLLBACKS, metadata["name"], body, metadata["namespace"])
        except NotFound:
            return

    async def _create(self, observed: ObservedRollback, rollback: Object, body: Object) -> None:
        name, namespace = body["metadata"]["name"], observed.spec.namespace
        try:
            await self._api.create(SNAPSHOTS, body, namespace)
        except AlreadyExists:
            snapshot = await self._api.get(SNAPSHOTS, name, namespace)
            labels = ((snapshot or {}).get("metadata") or {}).get("labels") or {}
            if snapshot is not None and labels != body["metadata"]["labels"]:
                raise Precondition(
                    f"VolumeSnapshot {namespace}/{name} exists and does not belong to this rollback; delete it"
                ) from None
        else:
            message = f"created VolumeSnapshot {name} of the content before the rollback"
            await self._events.emit(rollback, "Normal", "SafetySnapshotCreated", message)

    async def _roll_back(self, request: RollbackRequest) -> None:
        try:
            await self._agents.roll_back(request)
        except (Busy, Unavailable, Precondition):
            raise
        except DriverError as error:
            raise PermanentError(error) from error

    async def _record_completion(self, observed: ObservedRollback, at: float) -> None:
        assert observed.pv is not None
        metadata = observed.pv["metadata"]
        annotations = {COMPLETED_ANNOTATION: record_completed(observed.pv, observed.spec, format_timestamp(at))}
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": annotations}}
        await self._api.patch(PVS, metadata["name"], body)

    async def _release(self, volume_id: str, holder: str) -> None:
        try:
            await self._agents.release(volume_id, holder)
        except NotFound:
            return

    async def _clean_up(self, cleanup: actions.Cleanup, observed: ObservedRollback, rollback: Object) -> None:
        for snapshot in cleanup.expired:
            metadata = snapshot["metadata"]
            name, namespace = metadata["name"], metadata["namespace"]
            version = metadata["resourceVersion"]
            try:
                await self._api.delete(SNAPSHOTS, name, namespace, uid=metadata["uid"], resource_version=version)
            except Unavailable:
                raise
            except DriverError as error:  # the next completed rollback tries again
                log.warning("delete safety snapshot failed", snapshot=f"{namespace}/{name}", why=str(error))
            else:
                message = f"deleted safety snapshot {name}: keepSafety is {observed.spec.keep_safety}"
                await self._events.emit(rollback, "Normal", "SafetySnapshotDeleted", message)
        if cleanup.cancelled:
            message = f"VolumeRollback {observed.spec.name} was deleted before it changed the volume"
            await self._emit_on_pvc(observed, "Normal", "RollbackCancelled", message)
        await self._set_finalizers(rollback, [one for one in _finalizers(rollback) if one != FINALIZER])


def _finalizers(rollback: Object) -> list[str]:
    return list(rollback["metadata"].get("finalizers") or ())
