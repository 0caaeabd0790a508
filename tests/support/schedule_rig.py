"""A cluster in memory for schedules: claims with disks, a snapshotter that does as it is told, an operator that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from csi_driver.domain.errors import DriverError
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.client import Api
from csi_driver.kube.errors import Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import (
    EVENTS,
    GROUP_CONTENTS,
    GROUP_SNAPSHOTS,
    PVCS,
    PVS,
    SCHEDULES,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    Kind,
)
from csi_driver.operator.schedule.cache import TRIMMERS, Key
from csi_driver.operator.schedule.dependencies import ScheduleDependencies
from csi_driver.operator.schedule.naming import CLAIM, SCHEDULED_FOR
from csi_driver.operator.schedule.objects import GROUP_IN_CREATION, SNAPSHOT_IN_CREATION
from csi_driver.operator.schedule.reconciler import ScheduleReconciler
from support.dying import Dying, KillPoint
from support.fake_api import FakeApi
from support.started import start_all

Object = dict[str, Any]
DRIVER = "csi.tidemark.dev"
START = int(datetime(2026, 6, 17, 12, tzinfo=UTC).timestamp())
"""Noon of a Wednesday, when everything here is created."""


@dataclass
class Counts:
    """Metrics that remember."""

    made_: int = 0
    failed_: int = 0
    deleted_: int = 0
    late_: dict[Key, int | None] = field(default_factory=dict)

    def snapshot_created(self, namespace: str, name: str) -> None:
        self.made_ += 1

    def snapshot_failed(self, namespace: str, name: str) -> None:
        self.failed_ += 1

    def snapshot_deleted(self, namespace: str, name: str) -> None:
        self.deleted_ += 1

    def set_overdue(self, namespace: str, name: str, since: int | None) -> None:
        self.late_[namespace, name] = since

    def remove(self, namespace: str, name: str) -> None:
        self.late_.pop((namespace, name), None)


class Operator:
    """One process: informers of its own, and a reconciler."""

    def __init__(self, world: World, api: Any, reader: Api, limit: int) -> None:
        self.world = world
        self.informers: dict[Kind, Informer] = {
            kind: Informer(reader, kind, transform=keep) for kind, keep in TRIMMERS.items()
        }
        self.counts = Counts()
        self._make: Callable[[], ScheduleReconciler] = lambda: ScheduleReconciler(
            ScheduleDependencies(
                api, self.informers, Events(api, "tidemark"), DRIVER, self.counts, limit, 10, lambda: world.now
            )
        )

    async def start(self) -> None:
        await start_all(self.informers.values())
        self.reconciler = self._make()

    async def stop(self) -> None:
        for informer in self.informers.values():
            await informer.stop()

    async def see(self) -> None:
        """Wait until the informers show what the API holds."""
        for kind, informer in self.informers.items():
            while _versions(informer.all()) != _versions(self.world.fake.all(kind)):
                await asyncio.sleep(0.002)

    async def look(self, name: str = "s", namespace: str = "default") -> Any:
        await self.see()
        return await self.reconciler.plan_and_execute((namespace, name))

    async def settle(self, name: str = "s") -> None:
        """Look and let the snapshotter work until nothing changes any more."""
        for _ in range(60):
            before = self.world.essence()
            try:
                await self.look(name)
            except Conflict:
                continue
            self.world.snapshotter()
            if self.world.essence() == before:
                return
        raise AssertionError("it does not come to rest")


class World:
    """What there is. `now` is the operator's clock; nodes in `away` give no answer, disks in `broken` cannot be snapshotted."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.now: float = START + 1
        self.away: set[str] = set()
        self.broken: set[str] = set()
        self.slow = False
        self._operators: list[Operator] = []

    async def operator(self, dies_at: int = 0, served: bool = False, limit: int = 4) -> Operator:
        reader = await self.fake.connect()
        point = KillPoint(kill_at=(dies_at, "after" if served else "before"))
        made = Operator(self, Dying(reader, point) if dies_at else reader, reader, limit)
        self._operators.append(made)
        await made.start()
        return made

    async def close(self) -> None:
        for operator in self._operators:
            await operator.stop()

    # ---- what is there

    def claim(self, name: str, node: str = "n1", disk: str = "", namespace: str = "default", **facts: Any) -> None:
        """A bound claim of ours, but for `facts`: driver, phase, labels."""
        disk = disk or f"disk-{namespace}-{name}"
        uid = f"uid-of-{name}-{disk}"
        meta = {"name": name, "namespace": namespace, "uid": uid, "labels": facts.get("labels", {"app": "db"})}
        meta["creationTimestamp"] = format_timestamp(facts.get("created", START - 3600))
        self.fake.put(
            PVCS,
            {"metadata": meta, "spec": {"volumeName": disk}, "status": {"phase": facts.get("phase", "Bound")}},
        )
        csi = {"driver": facts.get("driver", DRIVER), "volumeHandle": handle(disk, node)}
        owner = {"name": name, "namespace": namespace, "uid": uid}
        self.fake.put(PVS, {"metadata": {"name": disk}, "spec": {"csi": csi, "claimRef": owner}})

    def schedule(self, name: str = "s", **spec: Any) -> None:
        """A schedule of each hour for the claims of app=db, but for `spec`."""
        wanted: Object = {"every": "1h", "selector": {"matchLabels": {"app": "db"}}} | spec
        if "cron" in spec:
            wanted.pop("every")
        if "claimName" in spec:
            wanted.pop("selector")
        meta = {"name": name, "namespace": "default", "uid": f"uid-of-{name}", "generation": 1}
        meta["creationTimestamp"] = format_timestamp(START)
        self.fake.put(SCHEDULES, {"metadata": meta, "spec": wanted})

    def snapshotter(self) -> None:
        """One round of what snapshot-controller and csi-snapshotter do."""
        for snapshot in self.fake.all(SNAPSHOTS):
            if not (snapshot.get("status") or {}).get("readyToUse") and not snapshot["metadata"].get("ownerReferences"):
                self._cut(snapshot)
        for group in self.fake.all(GROUP_SNAPSHOTS):
            if not (group.get("status") or {}).get("readyToUse"):
                self._cut_group(group)
        present = {(s["metadata"]["namespace"], s["metadata"]["name"]) for s in self.fake.all(SNAPSHOTS)}
        groups = {g["metadata"]["uid"] for g in self.fake.all(GROUP_SNAPSHOTS)}
        for snapshot in self.fake.all(SNAPSHOTS):
            if any(owner["uid"] not in groups for owner in snapshot["metadata"].get("ownerReferences") or []):
                self.fake.remove(SNAPSHOTS, snapshot["metadata"]["name"], snapshot["metadata"]["namespace"])
        for content in self.fake.all(SNAPSHOT_CONTENTS):
            bound = content["spec"]["volumeSnapshotRef"]
            if (bound["namespace"], bound["name"]) not in present:
                self.fake.remove(SNAPSHOT_CONTENTS, content["metadata"]["name"])

    def _cut(self, snapshot: Object) -> None:
        meta = snapshot["metadata"]
        claim = self.fake.get(PVCS, snapshot["spec"]["source"]["persistentVolumeClaimName"], meta["namespace"])
        if claim is None or self.slow:
            return
        disk = claim["spec"]["volumeName"]
        volume = self.fake.get(PVS, disk)
        assert volume is not None
        of = volume["spec"]["csi"]["volumeHandle"]
        trouble = "UNAVAILABLE" if of.split(":")[0] in self.away else "INTERNAL" if disk in self.broken else ""
        content = f"snapcontent-{meta['uid']}"
        self._content(content, meta, of, {SNAPSHOT_IN_CREATION: "yes"} if trouble == "UNAVAILABLE" else {})
        status: Object = {"boundVolumeSnapshotContentName": content, "readyToUse": not trouble}
        status["error"] = {"message": f"rpc error: {trouble}"} if trouble else None
        self._say(SNAPSHOTS, snapshot, status)

    def _cut_group(self, group: Object) -> None:
        meta = group["metadata"]
        if self.slow:
            return
        wanted = group["spec"]["source"]["selector"]["matchLabels"]
        claims = [
            claim
            for claim in self.fake.all(PVCS)
            if claim["metadata"]["namespace"] == meta["namespace"]
            and wanted.items() <= (claim["metadata"].get("labels") or {}).items()
        ]
        content = f"groupsnapcontent-{meta['uid']}"
        volumes = [self.fake.get(PVS, claim["spec"]["volumeName"]) for claim in claims]
        handles = [volume["spec"]["csi"]["volumeHandle"] for volume in volumes if volume]
        nodes = {of.split(":")[0] for of in handles}
        broken = len(nodes) > 1 or any(claim["spec"]["volumeName"] in self.broken for claim in claims)
        creating = {GROUP_IN_CREATION: "yes"} if nodes & self.away else {}
        self._put(GROUP_CONTENTS, {"metadata": {"name": content, "annotations": creating}})
        status: Object = {"boundVolumeGroupSnapshotContentName": content, "readyToUse": not broken and not creating}
        status["error"] = None if status["readyToUse"] else {"message": "rpc error"}
        if status["readyToUse"]:
            for claim, of in zip(claims, handles, strict=True):
                self._member(meta, claim["metadata"]["name"], of)
        self._say(GROUP_SNAPSHOTS, group, status)

    def _member(self, group: Object, claim: str, of: str) -> None:
        name = f"snapshot-{hashlib.sha256((group['uid'] + of).encode()).hexdigest()}"
        owner = {"kind": "VolumeGroupSnapshot", "name": group["name"], "uid": group["uid"]}
        meta = {"name": name, "namespace": group["namespace"], "ownerReferences": [owner]}
        status = {"boundVolumeSnapshotContentName": f"snapcontent-{name}", "readyToUse": True}
        spec = {"source": {"persistentVolumeClaimName": claim}}
        self.fake.put(SNAPSHOTS, {"metadata": meta, "spec": spec, "status": status})
        self._content(f"snapcontent-{name}", meta, of, {})

    def _content(self, name: str, snapshot: Object, of: str, annotations: dict[str, str]) -> None:
        spec = {"driver": DRIVER, "source": {"volumeHandle": of}}
        spec["volumeSnapshotRef"] = {"namespace": snapshot["namespace"], "name": snapshot["name"]}
        status = {"snapshotHandle": f"of-{name}"}
        self._put(
            SNAPSHOT_CONTENTS, {"metadata": {"name": name, "annotations": annotations}, "spec": spec, "status": status}
        )

    def _put(self, kind: Kind, obj: Object) -> None:
        """Only a change is one: what says the same again has no new version."""
        old = self.fake.get(kind, obj["metadata"]["name"]) or {"metadata": {}}
        if any(old["metadata"].get(key) != value for key, value in obj["metadata"].items()):
            self.fake.put(kind, obj)

    def _say(self, kind: Kind, obj: Object, status: Object) -> None:
        said = {key: value for key, value in status.items() if value is not None}
        if obj.get("status") != said:
            self.fake.change(kind, obj["metadata"]["name"], {"status": status}, obj["metadata"]["namespace"])

    # ---- what a test looks at

    def status(self, name: str = "s") -> Object:
        found = self.fake.get(SCHEDULES, name)
        assert found is not None
        return found.get("status") or {}

    def condition(self, kind: str, name: str = "s") -> Object:
        return next(c for c in self.status(name)["conditions"] if c["type"] == kind)

    def snapshots(self) -> list[tuple[str, str]]:
        """Claim and nominal time of each snapshot of a schedule, oldest first."""
        said = [s["metadata"].get("annotations") or {} for s in self.fake.all(SNAPSHOTS)]
        return sorted(
            ((a[CLAIM], a[SCHEDULED_FOR][5:16]) for a in said if CLAIM in a), key=lambda pair: (pair[1], pair[0])
        )

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.fake.all(EVENTS)]

    def essence(self) -> Object:
        kinds: Iterable[Kind] = (SCHEDULES, PVCS, SNAPSHOTS, SNAPSHOT_CONTENTS, GROUP_SNAPSHOTS, GROUP_CONTENTS)
        return {str(kind): self.fake.all(kind) for kind in kinds}

    def pass_to(self, *when: int) -> None:
        """Set the clock: day, hour, minute of June 2026."""
        day, hour, minute = (*when, 0, 0)[:3]
        self.now = datetime(2026, 6, day, hour, minute, 1, tzinfo=UTC).timestamp()


def handle(disk: str, node: str = "n1") -> str:
    return f"{node}:pool:{hashlib.sha256(disk.encode()).hexdigest()[:32]}"


def _versions(objects: list[Object]) -> set[tuple[str, str, str]]:
    metas = [obj["metadata"] for obj in objects]
    return {(meta.get("namespace", ""), meta["name"], meta["resourceVersion"]) for meta in metas}


async def until_done(operator: Operator, name: str = "s") -> None:
    """Settle through refusals of the API, as the reconciler does."""
    for _ in range(50):
        try:
            return await operator.settle(name)
        except DriverError:
            continue
    raise AssertionError("the API refuses for ever")
