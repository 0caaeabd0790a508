"""The planner of rollbacks: a pure function from what was observed to one action.

Each action may be repeated, and after each everything is observed again. So it does not matter where a controller was
killed, nor that two of them may be at work for a moment: what was done is seen, in the cluster or in the pool's record.
Two rules keep newer data safe:

- Rollback is sent only after the status says RollingBack, and only under the object's own unbroken hold. Whoever
  released the volume, or found the hold expired, thereby stopped every Rollback that is still under way: no hold expires
  under one that has begun (service.dependencies).
- From RollingBack on, the record on the node is the outcome. Nothing else ends that phase.
"""

from dataclasses import replace

from csi_driver import __version__
from csi_driver.domain.errors import NotFound, Unavailable
from csi_driver.operator.rollback.actions import (
    Action,
    AddFinalizer,
    Cleanup,
    CreateSafetySnapshot,
    Finished,
    Hold,
    LeaveAlone,
    Object,
    ObservedRollback,
    RecordCompletion,
    Release,
    RollBack,
    UpdateStatus,
)
from csi_driver.operator.rollback.completed import CompletionRecord, read_completed
from csi_driver.operator.rollback.pods_using_claim import describe_users
from csi_driver.operator.rollback.references import ResolvedReferences, UnresolvedReference
from csi_driver.operator.rollback.resource import Phase, RollbackSpec
from csi_driver.operator.rollback.safety_snapshots import (
    choose_class,
    expired_snapshots,
    number_of,
    snapshots_of_rollback,
)
from csi_driver.service.agents import VolumeDescription
from csi_driver.service.holds import HOLD_SECONDS
from csi_driver.service.rollbacks import RollbackRequest

EXPIRY_SECONDS = HOLD_SECONDS + 30.0
"""After this a hold that nobody renewed has expired; half a minute is for clocks that differ."""

RENEW_SECONDS = 60.0
"""Between renewals of a hold: four may fail before it expires."""

SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 10.0
"""Between two reconciliations of a rollback that waits, at first and later."""

RELEASED_REASONS = ("VolumeReleased", "DiskFree")
"""Of WaitingForRelease, when nothing uses the volume. An earlier version wrote the second."""


def next_action(observed: ObservedRollback) -> Action:
    """Return the next action."""
    spec, status = observed.spec, observed.status
    if status.unknown_phase:
        return LeaveAlone(
            f"version {__version__} of the controller does not know phase {status.unknown_phase}; the volume is left alone until "
            "a version that does leads again"
        )
    if status.phase is not None and status.phase.final:
        return _finalize(observed)
    record = observed.volume.completed_rollback(spec.uid) if isinstance(observed.volume, VolumeDescription) else None
    if record is not None:
        return _finish(observed, record.at / 1e9)
    if status.deleted_at and status.phase is not Phase.ROLLING:
        return _release_and_finish(observed, status.deleted_at, Cleanup(cancelled=True))
    if observed.rejection is not None:
        return _fail(observed, "RollbackRejected", str(observed.rejection))
    action = _with_backoff(observed, _advance(observed))
    late = status.phase is not Phase.ROLLING and observed.now >= status.started_at + spec.timeout
    if late and not (isinstance(action, UpdateStatus) and action.phase.final):
        reason, message = status.reason, status.message
        if isinstance(action, UpdateStatus):
            reason, message = action.reason, action.message
        if reason in ("", *RELEASED_REASONS):
            message = "nothing blocked it, but no controller processed it before the timeout"
        return _fail(observed, "DeadlineExceeded", f"not begun within {spec.timeout:g} s: {message}")
    return action


def _with_backoff(observed: ObservedRollback, action: Action) -> Action:
    """Reconcile often at first and less often later: some wait for days, and each time takes ten calls."""
    if not isinstance(action, UpdateStatus) or action.requeue_after < SHORTEST_WAIT_SECONDS:
        return action
    waited = observed.now - observed.status.started_at
    return replace(action, requeue_after=min(max(action.requeue_after, waited / 20), LONGEST_WAIT_SECONDS))


def _advance(observed: ObservedRollback) -> Action:
    """Take one step towards the rollback."""
    spec, status, target, volume = observed.spec, observed.status, observed.target, observed.volume
    in_exchange = status.phase is Phase.ROLLING
    if spec.unknown_fields:
        return _stay(observed, "UnknownField", _unknown_fields(spec))
    if isinstance(observed.completed, UnresolvedReference) and not status.rolling_back_at:
        return _stay(observed, observed.completed.reason, observed.completed.message)
    record = None if isinstance(observed.completed, UnresolvedReference) else observed.completed.get(spec.key)
    if record is not None and record.uid != spec.uid and not status.rolling_back_at:
        return _already_completed(observed, record)
    if isinstance(target, UnresolvedReference):
        if target.final or in_exchange:
            return _fail(observed, target.reason, target.message)
        return UpdateStatus(Phase.PENDING, target.reason, target.message, SHORTEST_WAIT_SECONDS)
    if status.has_finalizer and status.volume_id not in ("", target.volume_id):
        return _fail(observed, "ClaimRebound", f"PVC {spec.pvc_key} is now bound to a different volume")
    if isinstance(volume, NotFound):
        return _fail(observed, "VolumeLost", f"volume of PVC {spec.pvc_key}: {volume}")
    if not isinstance(volume, VolumeDescription):
        reason = "AgentUnreachable" if isinstance(volume, Unavailable) else "AgentNotReady"
        return _stay(observed, reason, str(volume), 3.0)
    if target.snapshot_id not in volume.snapshots:
        return _fail(
            observed,
            "SnapshotOfOtherVolume",
            f"VolumeSnapshot {spec.namespace}/{spec.snapshot} is not a snapshot of the volume of PVC {spec.pvc_key}; to use its "
            "content, create a new PVC from it (dataSource)",
        )
    return _hold(observed, target, volume)


def _unknown_fields(spec: RollbackSpec) -> str:
    fields = ", ".join(f"spec.{name}" for name in spec.unknown_fields)
    return (
        f"version {__version__} of the controller does not know {fields}; the volume is left alone until a version that does leads. "
        "Or create another VolumeRollback without it"
    )


def _stay(
    observed: ObservedRollback, reason: str, message: str, seconds: float = SHORTEST_WAIT_SECONDS
) -> UpdateStatus:
    """Wait in the phase that was reached."""
    return UpdateStatus(observed.status.phase or Phase.PENDING, reason, message, seconds)


def _hold(observed: ObservedRollback, target: ResolvedReferences, volume: VolumeDescription) -> Action:
    """Wait until nothing uses the volume, and hold it."""
    spec, status = observed.spec, observed.status
    mine = _holds(observed, volume)
    safety = _valid_safety_snapshot(observed, volume) if mine else None
    class_name = ""
    if spec.safety and safety is None:
        chosen = choose_class(spec, observed.classes, observed.driver)
        if isinstance(chosen, UnresolvedReference):
            return _fail(observed, chosen.reason, chosen.message)
        class_name = chosen
    if observed.pods and not mine:
        return _waiting("VolumeInUse", describe_users(observed.pods, spec.namespace, spec.pvc), target)
    if volume.used_by:
        users = ", ".join(volume.used_by)
        return _waiting("VolumeInUse", f"the volume of PVC {spec.pvc_key} is still in use at {users}", target)
    if volume.hold is not None and not mine:
        message = f"the volume is held by {volume.hold.holder}; waiting for its release"
        return _waiting("VolumeHeld", message, target)
    if mine:
        return _when_locked(observed, target, safety, class_name)
    if status.phase not in (Phase.WAITING, Phase.SAFETY) or status.volume_id != target.volume_id:
        if status.phase is Phase.ROLLING:
            message = "the hold on the volume expired before the rollback; taking a new one"
            return UpdateStatus(Phase.WAITING, "HoldExpired", message, target=target)
        return UpdateStatus(Phase.WAITING, "VolumeReleased", "nothing uses the volume", target=target)
    return Hold(target.volume_id) if status.has_finalizer else AddFinalizer()


def _when_locked(
    observed: ObservedRollback, target: ResolvedReferences, safety: Object | None, class_name: str
) -> Action:
    """Create the safety snapshot, and roll back."""
    spec, status = observed.spec, observed.status
    if observed.since_renewal >= RENEW_SECONDS:
        return Hold(target.volume_id)
    if spec.safety and safety is None:
        return _create_safety_snapshot(observed, target, class_name)
    name = safety["metadata"]["name"] if safety else ""
    if status.phase is not Phase.ROLLING:
        message = f"rolling the volume back to VolumeSnapshot {spec.snapshot}"
        return UpdateStatus(Phase.ROLLING, "RollingBack", message, target=target, safety_snapshot=name)
    handle = (observed.safety_handles or {})[name] if name else ""
    return RollBack(
        RollbackRequest(
            target.volume_id, target.snapshot_id, spec.uid, spec.holder, skip_safety=not handle, safety=handle
        )
    )


def _create_safety_snapshot(observed: ObservedRollback, target: ResolvedReferences, class_name: str) -> Action:
    snapshots = snapshots_of_rollback(observed.spec, observed.safety_snapshots)
    last = snapshots[-1] if snapshots else None
    if last is None or last["metadata"].get("deletionTimestamp") or _ready(last):
        # None yet; or it is being deleted; or it is no longer complete, since the hold expired after it was taken.
        number = number_of(observed.spec.uid, last) + 1 if last else 1
        return CreateSafetySnapshot(target.volume_id, class_name, number)
    name = last["metadata"]["name"]
    error = ((last.get("status") or {}).get("error") or {}).get("message")
    message = f"waiting for safety snapshot {name} to be ready"
    if error:
        return UpdateStatus(
            Phase.SAFETY, "SafetySnapshotFailing", f"{message}: {error}", SHORTEST_WAIT_SECONDS, target, name
        )
    return UpdateStatus(Phase.SAFETY, "CreatingSafetySnapshot", message, 0.5, target, name)


def _valid_safety_snapshot(observed: ObservedRollback, volume: VolumeDescription) -> Object | None:
    """Return the safety snapshot that misses nothing: ready, of this volume, taken under the hold that stands."""
    assert volume.hold is not None
    for snapshot in reversed(snapshots_of_rollback(observed.spec, observed.safety_snapshots)):
        if _ready(snapshot) and not snapshot["metadata"].get("deletionTimestamp"):
            handle = (observed.safety_handles or {}).get(snapshot["metadata"]["name"], "")
            taken_at = volume.snapshots.get(handle)
            return snapshot if taken_at is not None and taken_at >= volume.hold.since else None
    return None


def _ready(snapshot: Object) -> bool:
    return bool((snapshot.get("status") or {}).get("readyToUse"))


def _holds(observed: ObservedRollback, volume: VolumeDescription) -> bool:
    return volume.hold is not None and volume.hold.holder == observed.spec.holder


def _waiting(reason: str, message: str, target: ResolvedReferences) -> UpdateStatus:
    return UpdateStatus(Phase.WAITING, reason, message, SHORTEST_WAIT_SECONDS, target)


def _already_completed(observed: ObservedRollback, record: CompletionRecord) -> UpdateStatus:
    """An earlier object of this name was completed."""
    earlier = f"a VolumeRollback of this name rolled the volume back to VolumeSnapshot {record.snapshot} at {record.at}"
    if record.snapshot == observed.spec.snapshot:
        message = f"{earlier}. Nothing was changed now; to roll back again, use another name"
        return UpdateStatus(Phase.COMPLETED, "AlreadyCompleted", message)
    message = f"{earlier}; use another name. The volume was not changed by this object"
    return UpdateStatus(Phase.FAILED, "AlreadyCompleted", message)


def _finish(observed: ObservedRollback, at: float) -> Action:
    """The content was exchanged: do what remains before the phase may be Completed."""
    spec = observed.spec
    assert isinstance(observed.volume, VolumeDescription)
    if isinstance(observed.completed, UnresolvedReference):
        phase = observed.status.phase or Phase.ROLLING
        return UpdateStatus(phase, observed.completed.reason, observed.completed.message, SHORTEST_WAIT_SECONDS)
    if observed.pv is not None:
        record = read_completed(observed.pv).get(spec.key)
        if record is None or record.uid != spec.uid:
            return RecordCompletion(at)
    if _holds(observed, observed.volume):
        return Release(observed.volume.id)
    snapshots = snapshots_of_rollback(spec, observed.safety_snapshots)
    name = snapshots[-1]["metadata"]["name"] if snapshots else ""
    before = (
        f"its content before is in VolumeSnapshot {name}"
        if name
        else "no safety snapshot was taken (safetySnapshot: false)"
    )
    message = f"the volume has the content of VolumeSnapshot {spec.snapshot}; {before}"
    return UpdateStatus(Phase.COMPLETED, "RolledBack", message, safety_snapshot=name)


def _fail(observed: ObservedRollback, reason: str, message: str) -> Action:
    """Release first. Once a Rollback may have been sent, only the record tells that it was not carried out."""
    volume, status = observed.volume, observed.status
    if status.rolling_back_at and isinstance(volume, NotFound):
        return UpdateStatus(Phase.FAILED, reason, f"{message}. It is unknown whether the rollback completed")
    update = UpdateStatus(
        Phase.FAILED, reason, f"{message}. The volume was not changed; create another VolumeRollback to try again"
    )
    if isinstance(volume, VolumeDescription):
        return Release(volume.id) if _holds(observed, volume) else update
    if status.rolling_back_at:
        message = f"{message}; checking the outcome with the agent: {volume}"
        return UpdateStatus(status.phase or Phase.ROLLING, "OutcomeUnknown", message, 3.0)
    return update


def _finalize(observed: ObservedRollback) -> Action:
    """A final phase was written: release the hold, clean up, remove the finalizer."""
    status = observed.status
    assert status.phase is not None
    if not status.has_outcome:  # the controller before wrote it, and whoever waits for Complete would wait for ever
        return UpdateStatus(status.phase, status.reason, status.message)
    if not status.has_finalizer:
        return Finished()
    expired: tuple[Object, ...] = ()
    if status.phase is Phase.COMPLETED:
        snapshots = snapshots_of_rollback(observed.spec, observed.safety_snapshots)
        needed = {*observed.needed_snapshots, *(snapshot["metadata"]["name"] for snapshot in snapshots[-1:])}
        expired = tuple(expired_snapshots(observed.spec, status.volume_id, observed.safety_snapshots, needed))
    return _release_and_finish(observed, status.completed_at, Cleanup(expired))


def _release_and_finish(observed: ObservedRollback, since: float, cleanup: Cleanup) -> Action:
    """Release before the finalizer goes; if the agent cannot be reached, wait until the hold has expired."""
    volume, status = observed.volume, observed.status
    if not status.has_finalizer:
        return Finished()
    if isinstance(volume, VolumeDescription):
        return Release(volume.id) if _holds(observed, volume) else cleanup
    if isinstance(volume, NotFound) or observed.now >= since + EXPIRY_SECONDS:
        return cleanup
    return UpdateStatus(status.phase or Phase.PENDING, status.reason, status.message, 3.0)
