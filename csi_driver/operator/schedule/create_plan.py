"""What a run makes next: a snapshot of each claim, or a group of each node's claims, and why one has to wait."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from csi_driver.domain.timestamps import format_instant
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
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetClaim
from csi_driver.operator.schedule.resource import Spec
from csi_driver.operator.schedule.status_fields import ActiveRun

MAX_MEMBERS = 64
"""Claims of one group: the agents' limit."""


@dataclass(frozen=True, slots=True)
class SnapshotToCreate:
    """An object to create. `claims` are those that it is of; `handles` their disks."""

    kind: Literal["snapshot", "group"]
    name: str
    node: str
    claims: tuple[str, ...]
    handles: tuple[str, ...]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Label:
    """The label of a grouped schedule on a claim: `node`, or to be taken away where it is empty."""

    claim: str
    node: str


@dataclass(slots=True)
class CreatePlan:
    """What can be done now, in order: labels, then creations. `blocked` says of claims why nothing is made of them."""

    labels: list[Label] = field(default_factory=list)
    makes: list[SnapshotToCreate] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)

    def block(self, claims: Sequence[TargetClaim], why: str) -> None:
        """Say the same of several claims."""
        self.blocked.update((claim.name, why) for claim in claims)


@dataclass(frozen=True, slots=True)
class Limits:
    """What limits a run: `limit` snapshots and groups in flight on a node, of which `flying` are, and how many a disk has."""

    limit: int
    flying: Mapping[str, int]
    used: Mapping[str, int]
    in_flight: frozenset[str]
    """Handles of the disks of which one of this schedule is being made."""


def next_steps(
    spec: Spec, run: ActiveRun, waiting: Sequence[TargetClaim], room: Limits, labelled: Mapping[str, str]
) -> CreatePlan:
    """Steps for the claims that wait, as many as there is room for. `labelled`: claims that carry this schedule's label."""
    steps = CreatePlan()
    if spec.grouped:
        _groups(spec, run, waiting, room, labelled, steps)
    else:
        _snapshots(spec, run, waiting, room, steps)
    return steps


def _snapshots(spec: Spec, run: ActiveRun, waiting: Sequence[TargetClaim], room: Limits, steps: CreatePlan) -> None:
    flying = Counter(room.flying)
    for claim in waiting:
        if why := _blocked_reason(spec, claim, room):
            steps.block([claim], why)
        elif flying[claim.node] < room.limit:
            flying[claim.node] += 1
            steps.makes.append(_snapshot(spec, run, claim))


def _groups(
    spec: Spec,
    run: ActiveRun,
    waiting: Sequence[TargetClaim],
    room: Limits,
    labelled: Mapping[str, str],
    steps: CreatePlan,
) -> None:
    by_node: dict[str, list[TargetClaim]] = defaultdict(list)
    for claim in waiting:
        by_node[claim.node].append(claim)
    for node, members in sorted(by_node.items()):
        if len(members) > MAX_MEMBERS:
            steps.block(members, f"{len(members)} claims are on node {node}, and a group has at most {MAX_MEMBERS}")
            continue
        hindrances = {claim.name: why for claim in members if (why := _blocked_reason(spec, claim, room))}
        if hindrances:
            name, why = next(iter(sorted(hindrances.items())))
            steps.block(
                members, why if name == members[0].name and len(members) == 1 else f"claim {name} of its group: {why}"
            )
        elif room.flying.get(node, 0) < room.limit:
            wanted = {claim.name for claim in members}
            strangers = sorted(name for name, value in labelled.items() if value == node and name not in wanted)
            steps.labels += [Label(name, "") for name in strangers]
            steps.labels += [Label(name, node) for name in sorted(wanted) if labelled.get(name) != node]
            steps.makes.append(_group(spec, run, node, sorted(members, key=lambda claim: claim.name)))


def _blocked_reason(spec: Spec, claim: TargetClaim, room: Limits) -> str:
    if claim.handle in room.in_flight:
        return "the snapshot before is still being made"
    used = room.used.get(claim.handle, 0)
    if used >= spec.cap:
        return f"its disk has {used} snapshots, and maxSnapshotsPerVolume is {spec.cap}: delete some, or let retention keep fewer"
    return ""


def _snapshot(spec: Spec, run: ActiveRun, claim: TargetClaim) -> SnapshotToCreate:
    name = snapshot_name(spec.name, claim.name, run.instant)
    body: dict[str, Any] = {
        "kind": "VolumeSnapshot",
        "metadata": _metadata(
            spec,
            run,
            name,
            {VOLUME: digest(claim.handle)},
            {CLAIM: claim.name, VOLUME: claim.handle},
        ),
        "spec": {"source": {"persistentVolumeClaimName": claim.name}},
    }
    if spec.snapshot_class:
        body["spec"]["volumeSnapshotClassName"] = spec.snapshot_class
    return SnapshotToCreate("snapshot", name, claim.node, (claim.name,), (claim.handle,), body)


def _group(spec: Spec, run: ActiveRun, node: str, members: Sequence[TargetClaim]) -> SnapshotToCreate:
    name = group_name(spec.name, node, run.instant)
    disks = {claim.name: claim.handle for claim in members}
    body: dict[str, Any] = {
        "kind": "VolumeGroupSnapshot",
        "metadata": _metadata(spec, run, name, {}, {NODE: node, MEMBERS: json.dumps(disks, sort_keys=True)}),
        "spec": {"source": {"selector": {"matchLabels": {GROUP + spec.name: node}}}},
    }
    if spec.group_class:
        body["spec"]["volumeGroupSnapshotClassName"] = spec.group_class
    return SnapshotToCreate("group", name, node, tuple(disks), tuple(disks.values()), body)


def _metadata(
    spec: Spec, run: ActiveRun, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": spec.namespace,
        "labels": {**spec.labels, SCHEDULE: spec.label, **labels},
        "annotations": {
            **spec.annotations,
            SCHEDULE: spec.name,
            SCHEDULED_FOR: format_instant(run.instant),
            **annotations,
        },
    }


def busy_disks(made: Sequence[OwnedSnapshot]) -> frozenset[str]:
    """Handles of the disks of which one is being made."""
    return frozenset(handle for one in made if one.busy and not one.going for _, handle in one.disks)
