"""What comes next for one VolumeRollback: a pure function from what is seen to one action.

Each action may be repeated, and after each everything is looked at again. So it does not matter where a controller was
killed, nor that two of them may be at work for a moment: what was done is seen, in the cluster or in the pool's record.
Two rules keep newer data safe:

- Rollback is sent only after the status says RollingBack, and only under the object's own unbroken hold. Whoever
  released the disk, or found the hold lapsed, thereby stopped every Rollback that is still under way: no hold lapses
  under one that has begun (service.context).
- From RollingBack on, what the record on the node says is the outcome. Nothing else ends that phase.
"""

from dataclasses import replace

from csi_driver import __version__
from csi_driver.domain.errors import NotFound, Unavailable
from csi_driver.operator.rollback.actions import (
    Action,
    AddFinalizer,
    Cleanup,
    Finished,
    Hold,
    MakeSafety,
    Object,
    ObservedRollback,
    RecordCompletion,
    Release,
    RollBack,
    Stand,
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
from csi_driver.service.rollbacks import RollbackRequest

LAPSE_SECONDS = 330.0
"""After this a hold that nobody renewed has lapsed: five minutes, and half a minute for clocks that differ."""

RENEW_SECONDS = 60.0
"""Between renewals of a hold: four may fail before it lapses."""

WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 10.0
"""Between two looks at what is waited for, at first and later."""


def next_action(seen: ObservedRollback) -> Action:
    """The next action."""
    wish, progress = seen.wish, seen.progress
    if progress.foreign:
        return Stand(
            f"phase {progress.foreign} is not one of version {__version__}: nothing is done with the disk until a controller "
            "that knows it leads again"
        )
    if progress.phase is not None and progress.phase.final:
        return _finalize(seen)
    done = seen.disk.completed_rollback(wish.uid) if isinstance(seen.disk, VolumeDescription) else None
    if done is not None:
        return _finish(seen, done.at / 1e9)
    if progress.deleted and progress.phase is not Phase.ROLLING:
        return _release_and_finish(seen, progress.deleted, Cleanup(cancelled=True))
    if seen.refused is not None:
        return _fail(seen, "Refused", str(seen.refused))
    action = _with_backoff(seen, _advance(seen))
    late = progress.phase is not Phase.ROLLING and seen.now >= progress.started + wish.timeout
    if late and not (isinstance(action, UpdateStatus) and action.phase.final):
        reason, waited = progress.reason, progress.message
        if isinstance(action, UpdateStatus):
            reason, waited = action.reason, action.message
        if reason in ("", "DiskFree"):
            waited = "nothing was in its way, but no controller saw to it in time"
        return _fail(seen, "TimedOut", f"not begun within {wish.timeout:g} s: {waited}")
    return action


def _with_backoff(seen: ObservedRollback, action: Action) -> Action:
    """Look often at first and less often later: some wait for days, and each look is ten calls."""
    if not isinstance(action, UpdateStatus) or action.wait < WAIT_SECONDS:
        return action
    waited = seen.now - seen.progress.started
    return replace(action, wait=min(max(action.wait, waited / 20), LONGEST_WAIT_SECONDS))


def _advance(seen: ObservedRollback) -> Action:
    """One step towards the rollback."""
    wish, progress, target, disk = seen.wish, seen.progress, seen.target, seen.disk
    rolling = progress.phase is Phase.ROLLING
    if wish.unknown:
        return UpdateStatus(progress.phase or Phase.PENDING, "UnknownField", _unknown(wish), WAIT_SECONDS)
    if isinstance(seen.spent, UnresolvedReference) and not progress.rolling:
        return UpdateStatus(progress.phase or Phase.PENDING, seen.spent.reason, seen.spent.message, WAIT_SECONDS)
    spent = None if isinstance(seen.spent, UnresolvedReference) else seen.spent.get(wish.key)
    if spent is not None and spent.uid != wish.uid and not progress.rolling:
        return _already_completed(seen, spent)
    if isinstance(target, UnresolvedReference):
        if target.final or rolling:
            return _fail(seen, target.reason, target.message)
        return UpdateStatus(Phase.PENDING, target.reason, target.message, WAIT_SECONDS)
    if progress.guarded and progress.volume_id not in ("", target.volume_id):
        return _fail(
            seen, "DiskChanged", f"claim {wish.namespace}/{wish.claim} has come to mean another disk meanwhile"
        )
    if isinstance(disk, NotFound):
        return _fail(seen, "DiskNotFound", f"{disk} (it is the disk of claim {wish.namespace}/{wish.claim})")
    if not isinstance(disk, VolumeDescription):
        reason = "AgentUnreachable" if isinstance(disk, Unavailable) else "AgentNotReady"
        return UpdateStatus(progress.phase or Phase.PENDING, reason, str(disk), 3)
    if target.snapshot_id not in disk.snapshots:
        return _fail(
            seen,
            "SnapshotOfAnotherDisk",
            f"VolumeSnapshot {wish.namespace}/{wish.snapshot} is not one of the disk of claim {wish.namespace}/{wish.claim}, "
            "and a rollback goes back to the disk's own only: make a new claim from it (dataSource) instead",
        )
    return _hold(seen, target, disk)


def _unknown(wish: RollbackSpec) -> str:
    named = ", ".join(f"spec.{name}" for name in wish.unknown)
    return (
        f"version {__version__} of the controller does not know {named}: nothing is done with the disk until one leads that "
        "does; or ask without that, under another name"
    )


def _hold(seen: ObservedRollback, target: ResolvedReferences, disk: VolumeDescription) -> Action:
    """Wait until nobody uses the disk, and hold it."""
    wish, progress = seen.wish, seen.progress
    mine = disk.hold is not None and disk.hold.holder == wish.holder
    safety = _valid_safety_snapshot(seen, disk) if mine else None
    class_name = ""
    if wish.safety and safety is None:
        chosen = choose_class(wish, seen.classes, seen.driver)
        if isinstance(chosen, UnresolvedReference):
            return _fail(seen, chosen.reason, chosen.message)
        class_name = chosen
    if seen.pods and not mine:
        return _waiting("DiskInUse", describe_users(seen.pods, wish.namespace, wish.claim), target)
    if disk.used_by:
        where = ", ".join(disk.used_by)
        return _waiting(
            "DiskInUse", f"the disk of claim {wish.namespace}/{wish.claim} is still in use at {where}", target
        )
    if disk.hold is not None and not mine:
        return _waiting("DiskHeld", f"the disk is held by {disk.hold.holder}: its release is waited for", target)
    if mine:
        return _when_locked(seen, target, safety, class_name)
    if progress.phase not in (Phase.WAITING, Phase.SAFETY) or progress.volume_id != target.volume_id:
        lapsed = progress.phase is Phase.ROLLING
        why = "the hold on the disk lapsed before the rollback: it is taken anew" if lapsed else "the disk is free"
        return UpdateStatus(Phase.WAITING, "HoldLapsed" if lapsed else "DiskFree", why, target=target)
    return Hold(target.volume_id) if progress.guarded else AddFinalizer()


def _when_locked(seen: ObservedRollback, target: ResolvedReferences, safety: Object | None, class_name: str) -> Action:
    """Have the safety snapshot made, and roll back."""
    wish, progress = seen.wish, seen.progress
    if seen.renewed >= RENEW_SECONDS:
        return Hold(target.volume_id)
    if wish.safety and safety is None:
        return _make_safety(seen, target, class_name)
    name = safety["metadata"]["name"] if safety else ""
    if progress.phase is not Phase.ROLLING:
        message = f"the disk goes back to VolumeSnapshot {wish.snapshot}"
        return UpdateStatus(Phase.ROLLING, "RollingBack", message, target=target, safety=name)
    handle = (seen.handles or {})[name] if name else ""
    request = RollbackRequest(
        target.volume_id, target.snapshot_id, wish.uid, wish.holder, skip_safety=not handle, safety=handle
    )
    return RollBack(request)


def _make_safety(seen: ObservedRollback, target: ResolvedReferences, class_name: str) -> Action:
    made = snapshots_of_rollback(seen.wish, seen.safeties)
    last = made[-1] if made else None
    if last is None or last["metadata"].get("deletionTimestamp") or _ready(last):
        # None yet; or it is being deleted; or it is whole no more, since the hold lapsed after it was cut.
        number = number_of(seen.wish.uid, last) + 1 if last else 1
        return MakeSafety(target.volume_id, class_name, number)
    name = last["metadata"]["name"]
    error = ((last.get("status") or {}).get("error") or {}).get("message")
    message = f"VolumeSnapshot {name} keeps what the disk holds now; it is waited for" + (f": {error}" if error else "")
    reason, wait = ("SafetySnapshotFailing", WAIT_SECONDS) if error else ("SafetySnapshotMaking", 0.5)
    return UpdateStatus(Phase.SAFETY, reason, message, wait, target, name)


def _valid_safety_snapshot(seen: ObservedRollback, disk: VolumeDescription) -> Object | None:
    """The safety snapshot that misses nothing: ready, the disk's own, cut under the hold that stands."""
    assert disk.hold is not None
    for snapshot in reversed(snapshots_of_rollback(seen.wish, seen.safeties)):
        if _ready(snapshot) and not snapshot["metadata"].get("deletionTimestamp"):
            cut = disk.snapshots.get((seen.handles or {}).get(snapshot["metadata"]["name"], ""))
            return snapshot if cut is not None and cut >= disk.hold.since else None
    return None


def _ready(snapshot: Object) -> bool:
    return bool((snapshot.get("status") or {}).get("readyToUse"))


def _waiting(reason: str, message: str, target: ResolvedReferences) -> UpdateStatus:
    return UpdateStatus(Phase.WAITING, reason, message, WAIT_SECONDS, target)


def _already_completed(seen: ObservedRollback, spent: CompletionRecord) -> UpdateStatus:
    """The same name was used up by an earlier object."""
    wish = seen.wish
    used = f"a VolumeRollback of this name took the disk to VolumeSnapshot {spent.snapshot} at {spent.at}"
    if spent.snapshot == wish.snapshot:
        return UpdateStatus(
            Phase.COMPLETED, "AlreadyDone", f"{used}: nothing was changed now; to go back again, use another name"
        )
    return UpdateStatus(
        Phase.FAILED,
        "AlreadyDone",
        f"{used}: its name is spent, use another one. The disk was not touched by this object",
    )


def _finish(seen: ObservedRollback, at: float) -> Action:
    """The exchange was made: what is left before it may be called Completed."""
    wish = seen.wish
    assert isinstance(seen.disk, VolumeDescription)
    if isinstance(seen.spent, UnresolvedReference):
        return UpdateStatus(seen.progress.phase or Phase.ROLLING, seen.spent.reason, seen.spent.message, WAIT_SECONDS)
    if seen.volume is not None:
        spent = read_completed(seen.volume).get(wish.key)
        if spent is None or spent.uid != wish.uid:
            return RecordCompletion(at)
    if seen.disk.hold is not None and seen.disk.hold.holder == wish.holder:
        return Release(seen.disk.id)
    made = snapshots_of_rollback(wish, seen.safeties)
    name = made[-1]["metadata"]["name"] if made else ""
    before = (
        f"what it held before is in VolumeSnapshot {name}" if name else "what it held before was not kept, as declined"
    )
    message = f"the disk holds what it held in VolumeSnapshot {wish.snapshot}; {before}"
    return UpdateStatus(Phase.COMPLETED, "RolledBack", message, safety=name)


def _fail(seen: ObservedRollback, reason: str, message: str) -> Action:
    """Release first. Once a Rollback may have been sent, only the record tells that it was not made."""
    disk, progress = seen.disk, seen.progress
    if progress.rolling and isinstance(disk, NotFound):
        return UpdateStatus(
            Phase.FAILED, reason, f"{message}: whether the disk had gone back before, nobody can tell any more"
        )
    say = UpdateStatus(Phase.FAILED, reason, f"{message}. The disk was not touched; another VolumeRollback may follow")
    if isinstance(disk, VolumeDescription):
        mine = disk.hold is not None and disk.hold.holder == seen.wish.holder
        return Release(disk.id) if mine else say
    if progress.rolling:
        return UpdateStatus(
            progress.phase or Phase.ROLLING, "OutcomeUnknown", f"{message}; what became of it is asked for: {disk}", 3
        )
    return say


def _finalize(seen: ObservedRollback) -> Action:
    """A final phase was written: release what is held, tidy up, let the object go."""
    if not seen.progress.guarded:
        return Finished()
    spare: tuple[Object, ...] = ()
    if seen.progress.phase is Phase.COMPLETED:
        made = snapshots_of_rollback(seen.wish, seen.safeties)
        needed = {*seen.needed, made[-1]["metadata"]["name"]} if made else seen.needed
        spare = tuple(expired_snapshots(seen.wish, seen.progress.volume_id, seen.safeties, needed))
    return _release_and_finish(seen, seen.progress.ended, Cleanup(spare))


def _release_and_finish(seen: ObservedRollback, since: float, tidy: Cleanup) -> Action:
    """Release before the finalizer goes; where the agent cannot be reached, wait until the hold has lapsed by itself."""
    disk, progress = seen.disk, seen.progress
    if not progress.guarded:
        return Finished()
    if isinstance(disk, VolumeDescription):
        mine = disk.hold is not None and disk.hold.holder == seen.wish.holder
        return Release(disk.id) if mine else tidy
    if isinstance(disk, NotFound) or seen.now >= since + LAPSE_SECONDS:
        return tidy
    return UpdateStatus(progress.phase or Phase.PENDING, progress.reason, progress.message, 3)
