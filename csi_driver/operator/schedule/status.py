"""The status of a schedule, as its reader sees it; what has not changed is written with the same words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csi_driver.domain.timestamps import format_instant
from csi_driver.operator.schedule.naming import SCHEDULE
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetClaim
from csi_driver.operator.schedule.resource import Spec
from csi_driver.operator.schedule.status_fields import StatusState

KEYS = frozenset(
    {
        "observedGeneration",
        "selector",
        "times",
        "notBefore",
        "lastScheduled",
        "lastSuccessful",
        "lastMissed",
        "nextScheduled",
        "run",
        "snapshots",
        "withoutClaim",
        "claims",
        "conditions",
    }
)
"""Of a status as this version writes it: what else is there is another version's, and stays."""

CONDITIONS = ("Ready", "Covered", "Complete")

NAMED = 10
"""Claims that a condition names; of more it tells the number."""


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """What a look has found. `blocked`: why nothing is made of a claim at present. `following`: the next nominal time."""

    claims: Sequence[TargetClaim]
    made: Sequence[OwnedSnapshot]
    living: frozenset[str]
    blocked: Mapping[str, str]
    following: int | None


def build_status(
    spec: Spec, schedule: Mapping[str, Any], state: StatusState, found: StatusInputs, now: int
) -> dict[str, Any]:
    """The whole status."""
    kept, failed = Counter[str](), Counter[str]()
    for one in found.made:
        for handle in filter(None, (handle for _, handle in one.disks)):
            kept[handle] += one.unit.ready
            failed[handle] += one.unit.failed
    status: dict[str, Any] = {
        "observedGeneration": schedule["metadata"].get("generation", 1),
        "selector": f"{SCHEDULE}={spec.label}",
        "times": spec.times,
        "notBefore": _stamp(state.not_before),
        "lastScheduled": _stamp(state.scheduled),
        "lastSuccessful": _stamp(state.successful),
        "lastMissed": _stamp(state.missed),
        "nextScheduled": _stamp(found.following),
        "snapshots": kept.total(),
        "withoutClaim": sum(count for handle, count in kept.items() if handle not in found.living),
        "claims": [_claim(claim, found, kept, failed) for claim in sorted(found.claims, key=lambda c: c.name)],
    }
    if state.run is not None:
        status["run"] = {
            "scheduledFor": format_instant(state.run.instant),
            "waiting": list(state.run.waiting),
            "making": list(state.run.making),
            "cutShort": state.run.cut_short,  # false is written, too: a patch leaves what it does not name as it was
        }
    verdicts = {"Ready": _ready(spec), "Covered": _covered(found), "Complete": _complete(state, found)}
    status["conditions"] = _conditions(schedule, verdicts, now)
    return {key: value for key, value in status.items() if value is not None}


def invalid_status(schedule: Mapping[str, Any], reason: str, message: str, now: int) -> dict[str, Any]:
    """The status of a schedule whose spec cannot be followed: as before, but for the verdict."""
    status = {key: value for key, value in (schedule.get("status") or {}).items() if key != "nextScheduled"}
    status["observedGeneration"] = schedule["metadata"].get("generation", 1)
    status["conditions"] = _conditions(schedule, {"Ready": ("False", reason, message)}, now)
    return status


_Verdict = tuple[str, str, str]


def _ready(spec: Spec) -> _Verdict:
    if spec.suspend:
        return "False", "Suspended", "nothing is made while spec.suspend is true"
    return "True", "Scheduled", f"snapshots are made at {spec.times}"


def _covered(found: StatusInputs) -> _Verdict:
    if not found.claims:
        return "False", "NoClaims", "no claim of this namespace matches"
    refused = [f"{claim.name} ({claim.refusal})" for claim in found.claims if claim.refusal]
    if refused:
        return "False", "ClaimsSkipped", _list(refused)
    if found.blocked:
        return "False", "ClaimsBlocked", _list([f"{name} ({why})" for name, why in sorted(found.blocked.items())])
    return "True", "AllClaims", f"every claim that matches, {len(found.claims)}"


def _complete(state: StatusState, found: StatusInputs) -> _Verdict:
    if state.scheduled is None:
        return "Unknown", "NotRun", "no time has come yet"
    when = format_instant(state.scheduled)
    if state.run is None:
        if state.successful == state.scheduled:
            return "True", "AllReady", f"every snapshot for {when} is ready"
        return "False", "Ended", f"the run for {when} was ended before every snapshot was ready"
    errors = [
        f"{one.name}: {one.error or 'no reason was given'}"
        for one in found.made
        if one.instant == state.run.instant and one.unit.failed
    ]
    if errors:
        return "False", "SnapshotsFailed", _list(errors)
    left = len(state.run.waiting) + len(state.run.making)
    return "False", "Running", f"{left} snapshots for {when} are not ready yet"


def _conditions(schedule: Mapping[str, Any], verdicts: Mapping[str, _Verdict], now: int) -> list[dict[str, Any]]:
    before = {c.get("type"): c for c in (schedule.get("status") or {}).get("conditions") or []}
    # Those of another version are its own to change.
    made = [condition for kind, condition in before.items() if kind not in CONDITIONS]
    for kind, (status, reason, message) in verdicts.items():
        last = before.get(kind, {})
        since = last["lastTransitionTime"] if last.get("status") == status else format_instant(now)
        made.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": since,
                "observedGeneration": schedule["metadata"].get("generation", 1),
            }
        )
    return made


def _claim(
    claim: TargetClaim, found: StatusInputs, kept: Mapping[str, int], failed: Mapping[str, int]
) -> dict[str, Any]:
    said: dict[str, Any] = {"name": claim.name, "kept": kept[claim.handle], "failed": failed[claim.handle]}
    why = claim.refusal or found.blocked.get(claim.name, "")
    return said | ({"skipped": why} if why else {})


def _stamp(instant: int | None) -> str | None:
    return None if instant is None else format_instant(instant)


def _list(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")
