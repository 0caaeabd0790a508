"""The snapshots that a run creates next: one of each PVC, or a group of each node's PVCs, and why some cannot be created yet."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.operator.schedule.naming import (
    CLAIM,
    GROUP,
    MEMBERS,
    NODE,
    SCHEDULE,
    SCHEDULED_FOR,
    VOLUME,
    digest,
    group_name,
    snapshot_name,
)
from csi_driver.operator.schedule.observed import ObservedSchedule, TargetPvc
from csi_driver.operator.schedule.plan import GroupLabel, Plan, SnapshotToCreate
from csi_driver.operator.schedule.resource import ActiveRun, Spec

MAX_MEMBERS = 64
"""PVCs of one group: the agents' limit."""


def plan_creations(observed: ObservedSchedule, run: ActiveRun, plan: Plan) -> None:
    """Add what can be created now for the PVCs that wait, within the limit of each node."""
    by_name = {pvc.name: pvc for pvc in observed.pvcs}
    waiting = [by_name[name] for name in run.waiting if name in by_name]
    if observed.spec.grouped:
        _plan_groups(observed, run, waiting, plan)
    else:
        _plan_snapshots(observed, run, waiting, plan)


def _plan_snapshots(observed: ObservedSchedule, run: ActiveRun, waiting: Iterable[TargetPvc], plan: Plan) -> None:
    in_flight = Counter(observed.in_flight)
    in_progress = observed.handles_in_progress
    for pvc in waiting:
        if reason := _blocked_reason(observed, pvc, in_progress):
            plan.block([pvc], reason)
        elif in_flight[pvc.node] < observed.in_flight_limit:
            in_flight[pvc.node] += 1
            plan.creations.append(_snapshot(observed.spec, run, pvc))


def _plan_groups(observed: ObservedSchedule, run: ActiveRun, waiting: Iterable[TargetPvc], plan: Plan) -> None:
    in_progress = observed.handles_in_progress
    by_node: dict[str, list[TargetPvc]] = defaultdict(list)
    for pvc in waiting:
        by_node[pvc.node].append(pvc)
    for node, members in sorted(by_node.items()):
        if len(members) > MAX_MEMBERS:
            plan.block(members, f"{len(members)} PVCs are on node {node}, and a group has at most {MAX_MEMBERS}")
            continue
        reasons = {c.name: reason for c in members if (reason := _blocked_reason(observed, c, in_progress))}
        if reasons:
            name, reason = min(reasons.items())
            plan.block(members, reason if len(members) == 1 else f"PVC {name} of its group: {reason}")
        elif observed.in_flight.get(node, 0) < observed.in_flight_limit:
            plan.labels += _member_labels(observed, node, {pvc.name for pvc in members})
            plan.creations.append(_group(observed.spec, run, node, sorted(members, key=lambda pvc: pvc.name)))


def _member_labels(observed: ObservedSchedule, node: str, members: set[str]) -> list[GroupLabel]:
    labelled = observed.labelled
    unexpected = sorted(name for name, value in labelled.items() if value == node and name not in members)
    missing = [name for name in sorted(members) if labelled.get(name) != node]
    return [*(GroupLabel(name, "") for name in unexpected), *(GroupLabel(name, node) for name in missing)]


def _blocked_reason(observed: ObservedSchedule, pvc: TargetPvc, in_progress: frozenset[str]) -> str:
    if pvc.handle in in_progress:
        return "the previous snapshot is still in progress"
    count, limit = observed.snapshot_counts.get(pvc.handle, 0), observed.spec.max_snapshots
    if count >= limit:
        return f"its volume has {count} snapshots, and maxSnapshotsPerVolume is {limit}: delete some, or let retention keep fewer"
    return ""


def _snapshot(spec: Spec, run: ActiveRun, pvc: TargetPvc) -> SnapshotToCreate:
    name = snapshot_name(spec.name, pvc.name, run.instant)
    labels, annotations = {VOLUME: digest(pvc.handle)}, {CLAIM: pvc.name, VOLUME: pvc.handle}
    body: dict[str, Any] = {
        "kind": "VolumeSnapshot",
        "metadata": _metadata(spec, run, name, labels, annotations),
        "spec": {"source": {"persistentVolumeClaimName": pvc.name}},
    }
    if spec.snapshot_class:
        body["spec"]["volumeSnapshotClassName"] = spec.snapshot_class
    return SnapshotToCreate("snapshot", name, pvc.node, (pvc.name,), (pvc.handle,), body)


def _group(spec: Spec, run: ActiveRun, node: str, members: Sequence[TargetPvc]) -> SnapshotToCreate:
    name = group_name(spec.name, node, run.instant)
    handles = {pvc.name: pvc.handle for pvc in members}
    body: dict[str, Any] = {
        "kind": "VolumeGroupSnapshot",
        "metadata": _metadata(spec, run, name, {}, {NODE: node, MEMBERS: json.dumps(handles, sort_keys=True)}),
        "spec": {"source": {"selector": {"matchLabels": {GROUP + spec.name: node}}}},
    }
    if spec.group_class:
        body["spec"]["volumeGroupSnapshotClassName"] = spec.group_class
    return SnapshotToCreate("group", name, node, tuple(handles), tuple(handles.values()), body)


def _metadata(
    spec: Spec, run: ActiveRun, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> dict[str, Any]:
    own = {SCHEDULE: spec.name, SCHEDULED_FOR: format_timestamp(run.instant)}
    return {
        "name": name,
        "namespace": spec.namespace,
        "labels": {**spec.labels, SCHEDULE: spec.label, **labels},
        "annotations": {**spec.annotations, **own, **annotations},
    }
