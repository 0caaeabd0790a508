"""Locates the data source of a new PVC: from the PVC to the handle of its snapshot or volume."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from csi_driver.domain.ids import ObjectId, owner_of_node, parse
from csi_driver.kube.client import Object
from csi_driver.kube.resources import PVCS, PVS, SNAPSHOT_CONTENTS, SNAPSHOTS, STORAGE_CLASSES, Kind
from csi_driver.operator.installation import SELECTED_NODE

Get = Callable[[Kind, str, str], Awaitable[Object | None]]
"""Reads one object: kind, name, namespace (empty if the kind has none)."""

_SNAPSHOT = ("snapshot.storage.k8s.io", "VolumeSnapshot")
_PVC = ("", "PersistentVolumeClaim")

MAX_DEPTH = 4
"""How many unbound PVCs are followed, each the data source of the one before."""


@dataclass(frozen=True, slots=True)
class Source:
    """The data source of a PVC: a VolumeSnapshot or a PVC of its own namespace."""

    snapshot: bool
    name: str

    def __str__(self) -> str:
        return f"{'VolumeSnapshot' if self.snapshot else 'PVC'} {self.name}"


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where a data source is. `pool` is empty if only the node is known, which may still change."""

    owner: str
    pool: str = ""


def data_source_of(pvc: Object) -> Source | None:
    """Return the data source of a PVC.

    None for an empty volume, for kinds that this driver does not serve, and for other namespaces: others decide whether
    their owner allows it.
    """
    spec = pvc.get("spec") or {}
    for reference in (spec.get("dataSourceRef"), spec.get("dataSource")):
        if not reference:
            continue
        if reference.get("namespace") not in {None, "", pvc["metadata"].get("namespace")}:
            return None
        kind = (reference.get("apiGroup") or "", reference.get("kind"))
        if kind in {_SNAPSHOT, _PVC} and reference.get("name"):
            return Source(kind == _SNAPSHOT, reference["name"])
        return None
    return None


class DataSourceResolver:
    """Follows PVCs of one driver. Nothing is cached: a snapshot may be a moment older than its PVC."""

    def __init__(self, get: Get, driver: str) -> None:
        self._get = get
        self._driver = driver

    async def storage_class(self, pvc: Object) -> Object | None:
        """Return the PVC's class if it is one of this driver that binds at the first consumer."""
        name = (pvc.get("spec") or {}).get("storageClassName")
        storage_class = await self._get(STORAGE_CLASSES, name, "") if name else None
        if storage_class is None or storage_class.get("provisioner") != self._driver:
            return None
        return storage_class if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer" else None

    async def find(self, source: Source, namespace: str, depth: int = MAX_DEPTH) -> SourceLocation | None:
        """Return where the source is; None if it is another driver's, does not exist, or has no place yet."""
        if source.snapshot:
            return await self._of_snapshot(source.name, namespace, depth)
        return await self._of_pvc(source.name, namespace, depth)

    async def _of_snapshot(self, name: str, namespace: str, depth: int) -> SourceLocation | None:
        snapshot = await self._get(SNAPSHOTS, name, namespace)
        if snapshot is None:
            return None
        snapshot_source = (snapshot.get("spec") or {}).get("source") or {}
        bound = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName")
        content_name = bound or snapshot_source.get("volumeSnapshotContentName")
        content = await self._get(SNAPSHOT_CONTENTS, content_name, "") if content_name else None
        if content is not None:
            spec, status = content.get("spec") or {}, content.get("status") or {}
            source = spec.get("source") or {}
            # A snapshot is where its volume is: before it has a handle, the volume's tells.
            handle = status.get("snapshotHandle") or source.get("snapshotHandle") or source.get("volumeHandle")
            return _location(handle) if spec.get("driver") == self._driver else None
        pvc = snapshot_source.get("persistentVolumeClaimName")
        return await self._of_pvc(pvc, namespace, depth) if pvc else None

    async def _of_pvc(self, name: str, namespace: str, depth: int) -> SourceLocation | None:
        pvc = await self._get(PVCS, name, namespace)
        if pvc is None:
            return None
        if volume_name := (pvc.get("spec") or {}).get("volumeName"):
            csi = ((await self._get(PVS, volume_name, "") or {}).get("spec") or {}).get("csi") or {}
            return _location(csi.get("volumeHandle")) if csi.get("driver") == self._driver else None
        if not depth or await self.storage_class(pvc) is None:
            return None
        source = data_source_of(pvc)
        if source is not None:
            return await self.find(source, namespace, depth - 1)
        # Not made yet, and most likely made there: selecting that node now saves a detour.
        selected = (pvc["metadata"].get("annotations") or {}).get(SELECTED_NODE)
        return SourceLocation(owner_of_node(selected)) if selected else None


def _location(handle: str | None) -> SourceLocation | None:
    parsed: ObjectId | None = parse(handle or "")
    return SourceLocation(parsed.owner, parsed.pool) if parsed is not None else None
