"""Where the source of a new claim lies: from a claim to the handle of the snapshot or volume that it is made of."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from csi_driver.domain.ids import ObjectId, owner_of_node, parse
from csi_driver.kube.client import Object
from csi_driver.kube.resources import PVCS, PVS, SNAPSHOT_CONTENTS, SNAPSHOTS, STORAGE_CLASSES, Kind
from csi_driver.operator.installation import SELECTED_NODE

Get = Callable[[Kind, str, str], Awaitable[Object | None]]
"""Reads one object: kind, name, namespace (empty for what has none)."""

_SNAPSHOT = ("snapshot.storage.k8s.io", "VolumeSnapshot")
_CLAIM = ("", "PersistentVolumeClaim")

DEPTH = 4
"""Claims made of claims that are not bound themselves, one in the other, that are followed."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a claim is made of: a snapshot or a claim of its own namespace."""

    snapshot: bool
    name: str

    def __str__(self) -> str:
        return f"{'VolumeSnapshot' if self.snapshot else 'claim'} {self.name}"


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where a source lies. `pool` is empty where only the node is known, and may change still."""

    owner: str
    pool: str = ""


def data_source_of(claim: Object) -> Source | None:
    """The source of a claim; None for an empty one, for kinds that are not ours, and for other namespaces: whether their
    owner allows it, others decide.
    """
    spec = claim.get("spec") or {}
    for reference in (spec.get("dataSourceRef"), spec.get("dataSource")):
        if not reference:
            continue
        if reference.get("namespace") not in {None, "", claim["metadata"].get("namespace")}:
            return None
        kind = (reference.get("apiGroup") or "", reference.get("kind"))
        if kind in {_SNAPSHOT, _CLAIM} and reference.get("name"):
            return Source(kind == _SNAPSHOT, reference["name"])
        return None
    return None


class DataSourceResolver:
    """Follows claims of one driver. Every answer is read anew: a snapshot may be a moment older than its claim."""

    def __init__(self, get: Get, driver: str) -> None:
        self._get = get
        self._driver = driver

    async def storage_class(self, claim: Object) -> Object | None:
        """The claim's class, where it is one of this driver whose claims wait for their pod."""
        name = (claim.get("spec") or {}).get("storageClassName")
        found = await self._get(STORAGE_CLASSES, name, "") if name else None
        if found is None or found.get("provisioner") != self._driver:
            return None
        return found if found.get("volumeBindingMode") == "WaitForFirstConsumer" else None

    async def find(self, source: Source, namespace: str, depth: int = DEPTH) -> SourceLocation | None:
        """Where it lies; None where it is not ours, is not there, or lies nowhere yet."""
        if source.snapshot:
            return await self._of_snapshot(source.name, namespace, depth)
        return await self._of_claim(source.name, namespace, depth)

    async def _of_snapshot(self, name: str, namespace: str, depth: int) -> SourceLocation | None:
        snapshot = await self._get(SNAPSHOTS, name, namespace)
        if snapshot is None:
            return None
        made_of = (snapshot.get("spec") or {}).get("source") or {}
        bound = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName")
        content_name = bound or made_of.get("volumeSnapshotContentName")
        content = await self._get(SNAPSHOT_CONTENTS, content_name, "") if content_name else None
        if content is not None:
            spec, status = content.get("spec") or {}, content.get("status") or {}
            source = spec.get("source") or {}
            # Until it is cut, its volume tells: a snapshot lies where its volume does.
            handle = status.get("snapshotHandle") or source.get("snapshotHandle") or source.get("volumeHandle")
            return _spot(handle) if spec.get("driver") == self._driver else None
        claim = made_of.get("persistentVolumeClaimName")
        return await self._of_claim(claim, namespace, depth) if claim else None

    async def _of_claim(self, name: str, namespace: str, depth: int) -> SourceLocation | None:
        claim = await self._get(PVCS, name, namespace)
        if claim is None:
            return None
        if volume_name := (claim.get("spec") or {}).get("volumeName"):
            csi = ((await self._get(PVS, volume_name, "") or {}).get("spec") or {}).get("csi") or {}
            return _spot(csi.get("volumeHandle")) if csi.get("driver") == self._driver else None
        if not depth or await self.storage_class(claim) is None:
            return None
        source = data_source_of(claim)
        if source is not None:
            return await self.find(source, namespace, depth - 1)
        # Not made yet, and most likely made there: whoever follows it now is spared a detour.
        selected = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
        return SourceLocation(owner_of_node(selected)) if selected else None


def _spot(handle: str | None) -> SourceLocation | None:
    parsed: ObjectId | None = parse(handle or "")
    return SourceLocation(parsed.owner, parsed.pool) if parsed is not None else None
