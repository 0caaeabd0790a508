"""What comes next for a VolumeRollback: every branch, from sights that differ in one thing."""

from __future__ import annotations

import pytest
from support.rollback_cases import (
    CREATED,
    HELD,
    MINE,
    NAMESPACE,
    READY,
    ROLLING,
    SAFETY_ID,
    SINCE,
    SPEC,
    TARGET,
    UID,
    WITH_SAFETY,
    done,
    earlier_safety,
    held_by,
    next_of,
    pod,
    refusal,
    safety,
    snapshot_class,
    volume,
)

from csi_driver.domain.errors import Busy, InvalidRequest, NotFound, OutOfSpace, Unavailable
from csi_driver.operator.rollback.actions import (
    AddFinalizer,
    Cleanup,
    CreateSafetySnapshot,
    Finished,
    Hold,
    RecordCompletion,
    Release,
    RollBack,
    UpdateStatus,
)
from csi_driver.operator.rollback.completed import COMPLETED_ANNOTATION, CompletionRecord, record_completed
from csi_driver.operator.rollback.planner import EXPIRY_SECONDS, RENEW_SECONDS
from csi_driver.operator.rollback.references import UnresolvedReference
from csi_driver.operator.rollback.resource import Phase
from csi_driver.service.rollbacks import RollbackRequest

UNREACHABLE = Unavailable("the agent of node n-1 does not answer")
LATE = CREATED + SPEC.timeout


def failed(action: object, reason: str, *words: str) -> None:
    assert isinstance(action, UpdateStatus)
    assert (action.phase, action.reason) == (Phase.FAILED, reason)
    for word in (*words, "The volume was not changed; create another VolumeRollback to try again"):
        assert word in action.message


def waits(action: object, phase: Phase, reason: str, *words: str) -> None:
    assert isinstance(action, UpdateStatus)
    assert (action.phase, action.reason) == (phase, reason)
    assert action.requeue_after > 0
    for word in words:
        assert word in action.message


def test_the_way_when_nothing_is_in_it() -> None:
    """Recorded, guarded, held, kept, announced, exchanged, remembered, released, told, let go: in this order."""
    fresh = {"status_phase": None, "status_volume_id": "", "status_has_finalizer": False}
    recorded = next_of(READY, **fresh)
    assert isinstance(recorded, UpdateStatus)
    assert (recorded.phase, recorded.target, recorded.requeue_after) == (Phase.WAITING, TARGET, 0)
    assert next_of(READY, status_has_finalizer=False) == AddFinalizer()
    assert next_of(READY) == Hold(TARGET.volume_id)
    assert next_of(HELD) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 1)
    waits(
        next_of(HELD, safety_snapshots=[safety(ready=False)]), Phase.SAFETY, "CreatingSafetySnapshot", f"safety-{UID}"
    )
    announced = next_of(WITH_SAFETY)
    assert isinstance(announced, UpdateStatus)
    assert (announced.phase, announced.safety_snapshot, announced.target) == (Phase.ROLLING, f"safety-{UID}", TARGET)
    assert next_of(ROLLING) == RollBack(
        RollbackRequest(TARGET.volume_id, TARGET.snapshot_id, UID, SPEC.holder, safety=SAFETY_ID)
    )
    assert next_of(ROLLING, volume_rollbacks=done()) == RecordCompletion((SINCE + 5) / 1e9)
    remembered = volume(
        metadata={"name": "pvc-1", "annotations": {COMPLETED_ANNOTATION: record_completed(volume(), SPEC, "t")}}
    )
    assert next_of(ROLLING, volume_rollbacks=done(), pv=remembered) == Release(TARGET.volume_id)
    completed_status = next_of(ROLLING, volume_rollbacks=done(), pv=remembered, volume_hold=None)
    assert isinstance(completed_status, UpdateStatus)
    assert (completed_status.phase, completed_status.reason, completed_status.safety_snapshot) == (
        Phase.COMPLETED,
        "RolledBack",
        f"safety-{UID}",
    )
    assert f"is in VolumeSnapshot safety-{UID}" in completed_status.message
    assert next_of(ROLLING, status_phase=Phase.COMPLETED, volume_rollbacks=done(), volume_hold=None) == Cleanup()
    assert next_of(ROLLING, status_phase=Phase.COMPLETED, status_has_finalizer=False) == Finished()


def test_without_a_safety_snapshot_no_class_is_needed() -> None:
    announced = next_of(HELD, spec_safety=False, classes=[])
    assert isinstance(announced, UpdateStatus)
    assert (announced.phase, announced.safety_snapshot) == (Phase.ROLLING, "")
    rolled = next_of(ROLLING, spec_safety=False, safety_snapshots=[], classes=[])
    assert rolled == RollBack(RollbackRequest(TARGET.volume_id, TARGET.snapshot_id, UID, SPEC.holder, skip_safety=True))


# ---- waiting for people


def test_pods_are_waited_for_before_the_hold_and_named() -> None:
    action = next_of(READY, pods=[pod("web-1", owner=("StatefulSet", "web"))])
    waits(action, Phase.WAITING, "VolumeInUse", "pod web-1 (StatefulSet web)", "scale it to 0")
    assert next_of(HELD, pods=[pod()]) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 1), (
        "one that the hold keeps out"
    )


def test_who_uses_the_disk_without_a_pod_is_named_by_path() -> None:
    for base in (READY, HELD, ROLLING):
        waits(next_of(base, volume_used_by=("/mnt/by-hand",)), Phase.WAITING, "VolumeInUse", "/mnt/by-hand")


def test_what_takes_long_is_looked_at_less_often() -> None:
    waits = []
    for waited in (1, 39, 100, 1000, 10**5):
        action = next_of(READY, pods=[pod()], now=CREATED + waited, spec_timeout=10.0**6)
        assert isinstance(action, UpdateStatus)
        waits.append(action.requeue_after)
    assert waits == [2, 2, 5, 10, 10]
    assert next_of(READY, now=CREATED + 10**5, spec_timeout=10.0**6) == Hold(TARGET.volume_id)


def test_another_rollback_is_waited_for_and_named() -> None:
    action = next_of(READY, volume_hold=held_by("VolumeRollback shop/other 123", SINCE))
    waits(action, Phase.WAITING, "VolumeHeld", "VolumeRollback shop/other 123")


@pytest.mark.parametrize("phase", [None, Phase.PENDING, Phase.WAITING, Phase.SAFETY, Phase.ROLLING])
def test_an_unreachable_agent_is_waited_for_in_the_phase_that_it_was(phase: Phase | None) -> None:
    waits(next_of(ROLLING, status_phase=phase, volume=UNREACHABLE), phase or Phase.PENDING, "AgentUnreachable", "n-1")
    waits(next_of(ROLLING, status_phase=phase, volume=Busy("x")), phase or Phase.PENDING, "AgentNotReady")


def test_what_may_come_is_waited_for_what_cannot_is_refused() -> None:
    coming = UnresolvedReference("SnapshotNotReady", "waiting for VolumeSnapshot shop/s1 to be ready", final=False)
    waits(next_of(READY, target=coming), Phase.PENDING, "SnapshotNotReady", "shop/s1")
    never = UnresolvedReference("WrongDriver", "VolumeSnapshot shop/s1 was taken by x")
    failed(next_of(READY, target=never), "WrongDriver", "taken by x")


# ---- refusals


def test_another_disks_snapshot_is_refused_while_a_pod_runs_and_what_to_do_instead_is_said() -> None:
    action = next_of(READY, volume_snapshots={"n-1:default:else": 1}, pods=[pod()])
    failed(action, "SnapshotOfOtherVolume", "shop/s1", "shop/v1", "create a new PVC from it (dataSource)")


def test_classes_for_the_safety_snapshot() -> None:
    failed(next_of(READY, classes=[]), "NoDefaultSnapshotClass", "no default VolumeSnapshotClass")
    failed(next_of(READY, classes=[snapshot_class(driver="other")]), "NoDefaultSnapshotClass")
    failed(next_of(READY, classes=[snapshot_class("a"), snapshot_class("b")]), "NoDefaultSnapshotClass", "a, b")
    named = {"spec_snapshot_class": "gold"}
    failed(next_of(READY, **named), "SnapshotClassNotFound", "gold")
    failed(next_of(READY, classes=[snapshot_class("gold", driver="other")], **named), "SnapshotClassNotFound", "gold")
    both = [snapshot_class("gold", default=False), snapshot_class()]
    assert next_of(HELD, classes=both, **named) == CreateSafetySnapshot(TARGET.volume_id, "gold", 1)


def test_a_disk_that_its_agent_does_not_know_is_refused() -> None:
    failed(next_of(READY, volume=NotFound("n-1:default:aaaa does not exist")), "VolumeLost", "shop/v1", "aaaa")


def test_a_disk_that_is_lost_while_it_goes_back_ends_it_without_a_word_of_what_it_held() -> None:
    lost = NotFound("n-1:default:aaaa was lost with node n-1, which was decommissioned")
    said = next_of(ROLLING, volume=lost)
    assert isinstance(said, UpdateStatus)
    assert (said.phase, said.reason) == (Phase.FAILED, "VolumeLost")
    assert "lost with node n-1" in said.message
    assert "not changed" not in said.message


def test_a_claim_that_has_come_to_mean_another_disk_is_refused_after_the_release() -> None:
    changed = {"target": TARGET.__class__("n-2:default:zzzz", "n-2:default:yyyy", "pvc-2")}
    assert next_of(HELD, **changed) == Release(TARGET.volume_id)
    failed(next_of(READY, **changed), "ClaimRebound", "shop/v1")


@pytest.mark.parametrize("kind", [InvalidRequest, NotFound, OutOfSpace])
def test_the_agents_final_no_is_told_after_the_release(kind: type[InvalidRequest]) -> None:
    no = refusal(kind)
    assert next_of(ROLLING, rejection=no) == Release(TARGET.volume_id)
    failed(next_of(ROLLING, rejection=no, volume_hold=None), "RollbackRejected", "words of the agent")
    assert next_of(ROLLING, rejection=no, volume_rollbacks=done()) == RecordCompletion((SINCE + 5) / 1e9), (
        "the record has the last word"
    )


# ---- names that were used before


def test_a_name_is_used_once_whatever_uid_the_next_object_has() -> None:
    spent = {f"{NAMESPACE}/back": CompletionRecord("another-uid", "s1", "2027-01-01T00:00:00Z")}
    action = next_of(READY, status_phase=None, status_has_finalizer=False, completed=spent, pods=[pod()])
    assert isinstance(action, UpdateStatus)
    assert (action.phase, action.reason) == (Phase.COMPLETED, "AlreadyCompleted")
    assert "2027-01-01T00:00:00Z" in action.message
    gone = UnresolvedReference("SnapshotNotFound", "gone since", final=False)
    assert next_of(READY, completed=spent, target=gone) == action, "also when the snapshot is gone since"
    other = {f"{NAMESPACE}/back": CompletionRecord("another-uid", "s0", "2027-01-01T00:00:00Z")}
    refused = next_of(READY, completed=other)
    assert isinstance(refused, UpdateStatus)
    assert (refused.phase, refused.reason) == (Phase.FAILED, "AlreadyCompleted")
    assert "s0" in refused.message
    own = {f"{NAMESPACE}/back": CompletionRecord(UID, "s1", "t")}
    assert next_of(READY, completed=own) == Hold(TARGET.volume_id)
    assert next_of(READY, completed={"elsewhere/back": CompletionRecord("x", "s1", "t")}) == Hold(TARGET.volume_id)


# ---- the timeout


@pytest.mark.parametrize("base", [READY, HELD, WITH_SAFETY])
def test_the_timeout_counts_until_rolling_back(base: object) -> None:
    held = base is not READY
    action = next_of(base, now=LATE)  # type: ignore[arg-type]
    if held:
        assert action == Release(TARGET.volume_id)
    else:
        failed(action, "DeadlineExceeded", "not begun within 600 s")
    assert not isinstance(next_of(base, now=LATE - 1), Release)  # type: ignore[arg-type]
    assert isinstance(next_of(ROLLING, now=LATE + 10**6), RollBack)


def test_a_timeout_says_what_was_waited_for() -> None:
    failed(next_of(READY, now=LATE, pods=[pod("web-1")]), "DeadlineExceeded", "pod web-1")
    coming = UnresolvedReference("ClaimNotFound", "waiting for PVC shop/v1 to be created", final=False)
    failed(
        next_of(READY, now=LATE, target=coming, volume=NotFound("x")),
        "DeadlineExceeded",
        "waiting for PVC shop/v1",
    )
    failed(next_of(READY, now=LATE, volume=UNREACHABLE), "DeadlineExceeded", "n-1")
    never = UnresolvedReference("WrongDriver", "taken by x")
    failed(next_of(READY, now=LATE, target=never), "WrongDriver", "taken by x")


def test_a_rollback_that_began_again_counts_from_the_beginning() -> None:
    again = {"status_started_at": LATE + 50, "status_rolling_back_at": CREATED + 4}
    assert next_of(READY, now=LATE + 60, **again) == Hold(TARGET.volume_id)
    failed(next_of(READY, now=LATE + 50 + SPEC.timeout, **again), "DeadlineExceeded")


# ---- holds that lapse


def test_a_hold_is_renewed_while_the_safety_snapshot_is_waited_for() -> None:
    making = {"safety_snapshots": [safety(ready=False)]}
    assert next_of(HELD, since_renewal=RENEW_SECONDS, **making) == Hold(TARGET.volume_id)
    assert isinstance(next_of(HELD, since_renewal=RENEW_SECONDS - 1, **making), UpdateStatus)
    for base in (HELD, WITH_SAFETY, ROLLING):
        assert next_of(base, since_renewal=float("inf")) == Hold(TARGET.volume_id), "a new process renews first"


def test_after_a_lapse_there_is_a_new_safety_snapshot() -> None:
    """Somebody may have written between: what was cut before the hold that stands may miss that."""
    held_again = held_by(SPEC.holder, SINCE + 2)
    assert next_of(WITH_SAFETY, volume_hold=held_again) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 2)
    assert next_of(ROLLING, volume_hold=held_again) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 2)
    waits(
        next_of(ROLLING, volume_hold=held_again, safety_snapshots=[safety(), safety(2, ready=False)]),
        Phase.SAFETY,
        "CreatingSafetySnapshot",
    )
    second = {
        "safety_snapshots": [safety(), safety(2)],
        "safety_handles": {f"safety-{UID}": SAFETY_ID, f"safety-{UID}-2": "n-1:default:dddd"},
        "volume_snapshots": {**WITH_SAFETY.volume.snapshots, "n-1:default:dddd": SINCE + 2},  # type: ignore[union-attr]
    }
    rolled = next_of(ROLLING, volume_hold=held_again, **second)
    assert isinstance(rolled, RollBack)
    assert rolled.request.safety == "n-1:default:dddd"
    stale = next_of(ROLLING, volume_hold=held_by(SPEC.holder, SINCE + 3), **second)
    assert stale == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 3)


def test_a_lapse_during_rolling_back_begins_again() -> None:
    again = next_of(ROLLING, volume_hold=None)
    assert isinstance(again, UpdateStatus)
    assert (again.phase, again.reason, again.requeue_after) == (Phase.WAITING, "HoldExpired", 0)
    waits(next_of(ROLLING, volume_hold=None, pods=[pod()]), Phase.WAITING, "VolumeInUse", "web-1")


@pytest.mark.parametrize(
    "spoilt",
    [
        {"safety_snapshots": [safety(deletionTimestamp="2027-01-01T00:00:00Z")]},
        {"safety_handles": {f"safety-{UID}": "n-1:default:not-of-this-disk"}},
        {"safety_handles": {}},
    ],
)
def test_a_safety_snapshot_that_is_not_whole_is_never_used(spoilt: dict[str, object]) -> None:
    for base in (WITH_SAFETY, ROLLING):
        assert next_of(base, **spoilt) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 2)


def test_of_other_rollbacks_safety_snapshots_none_is_used() -> None:
    others = [earlier_safety(1, "11111111-0000-4000-8000-000000000001")]
    assert next_of(HELD, safety_snapshots=others) == CreateSafetySnapshot(TARGET.volume_id, "tidemark", 1)


def test_what_keeps_the_safety_snapshot_from_being_made_is_told() -> None:
    broken = safety(ready=False)
    broken["status"]["error"] = {"message": "the cap is 256"}
    waits(next_of(HELD, safety_snapshots=[broken]), Phase.SAFETY, "SafetySnapshotFailing", "the cap is 256")
    assert next_of(HELD, safety_snapshots=[broken], now=LATE) == Release(TARGET.volume_id)
    status = {"status_reason": "SafetySnapshotFailing", "status_message": "the cap is 256"}
    failed(next_of(READY, safety_snapshots=[broken], now=LATE, **status), "DeadlineExceeded", "the cap is 256")


# ---- the outcome


def test_once_a_rollback_may_have_been_sent_only_the_record_tells_that_it_was_not_made() -> None:
    gone = UnresolvedReference("SnapshotTerminating", "VolumeSnapshot shop/s1 is being deleted")
    assert next_of(ROLLING, target=gone) == Release(TARGET.volume_id)
    waits(next_of(ROLLING, target=gone, volume=UNREACHABLE), Phase.ROLLING, "OutcomeUnknown", "n-1")
    failed(next_of(ROLLING, target=gone, volume_hold=None), "SnapshotTerminating", "shop/s1")
    assert next_of(ROLLING, target=gone, volume_rollbacks=done()) == RecordCompletion((SINCE + 5) / 1e9)
    back = {"status_phase": Phase.WAITING, "now": LATE, "volume": UNREACHABLE}
    waits(next_of(ROLLING, **back), Phase.WAITING, "OutcomeUnknown")


def test_a_claim_that_vanishes_during_the_rollback_does_not_hide_its_outcome() -> None:
    gone = UnresolvedReference("ClaimNotFound", "waiting for PVC shop/v1 to be created", final=False)
    assert next_of(ROLLING, target=gone) == Release(TARGET.volume_id)
    ended = next_of(ROLLING, target=gone, pv=None, volume_hold=None, volume_rollbacks=done())
    assert isinstance(ended, UpdateStatus)
    assert ended.phase is Phase.COMPLETED


# ---- deletion


@pytest.mark.parametrize("base", [READY, HELD, WITH_SAFETY])
def test_deleted_before_rolling_back_it_is_cancelled_after_the_release(base: object) -> None:
    action = next_of(base, status_deleted_at=CREATED + 4)  # type: ignore[arg-type]
    assert action == (Cleanup(cancelled=True) if base is READY else Release(TARGET.volume_id))
    assert next_of(base, status_deleted_at=CREATED + 4, status_has_finalizer=False) == Finished()  # type: ignore[arg-type]


def test_deleted_during_rolling_back_it_ends_first() -> None:
    deleted = {"status_deleted_at": CREATED + 5}
    assert isinstance(next_of(ROLLING, **deleted), RollBack)
    assert next_of(ROLLING, volume_rollbacks=done(), **deleted) == RecordCompletion((SINCE + 5) / 1e9)
    waits(next_of(ROLLING, volume=UNREACHABLE, **deleted), Phase.ROLLING, "AgentUnreachable")
    ended = {"status_phase": Phase.COMPLETED, "volume_rollbacks": done(), "volume_hold": None}
    assert next_of(ROLLING, **ended, **deleted) == Cleanup()


def test_the_finalizer_goes_when_the_hold_is_released_or_has_lapsed_by_itself() -> None:
    cancelled = {"status_deleted_at": CREATED, "volume": UNREACHABLE}
    assert isinstance(next_of(HELD, now=CREATED + EXPIRY_SECONDS - 1, **cancelled), UpdateStatus)
    assert next_of(HELD, now=CREATED + EXPIRY_SECONDS, **cancelled) == Cleanup(cancelled=True)
    over = {"status_phase": Phase.FAILED, "status_completed_at": CREATED, "status_reason": "DeadlineExceeded"}
    still = next_of(HELD, now=CREATED + 1, volume=UNREACHABLE, **over)
    assert isinstance(still, UpdateStatus)
    assert (still.phase, still.reason) == (Phase.FAILED, "DeadlineExceeded"), "the status stays as it is"
    assert next_of(HELD, now=CREATED + EXPIRY_SECONDS, volume=UNREACHABLE, **over) == Cleanup()
    assert next_of(HELD, now=CREATED + 1, **over) == Release(TARGET.volume_id)
    assert next_of(READY, now=CREATED + 1, **over) == Cleanup()


def test_failed_or_cancelled_deletes_no_safety_snapshot() -> None:
    many = [earlier_safety(i, f"1111111{i}-0000-4000-8000-000000000001") for i in range(6)]
    assert next_of(READY, safety_snapshots=many, status_phase=Phase.FAILED) == Cleanup()
    assert next_of(READY, safety_snapshots=many, status_deleted_at=CREATED) == Cleanup(cancelled=True)
    completed = next_of(READY, safety_snapshots=many, status_phase=Phase.COMPLETED)
    assert isinstance(completed, Cleanup)
    assert len(completed.expired) == 3


def test_an_own_hold_is_recognised_by_the_uid_alone() -> None:
    assert SPEC.holder.endswith(UID)
    long = SPEC.__class__("n" * 63, "x" * 253, UID, "v1", "s1", CREATED)
    assert len(long.holder.encode()) <= 128
    assert long.holder.endswith(UID)
    assert MINE.holder == SPEC.holder
