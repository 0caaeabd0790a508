"""Where the volume of a PVC goes, kept on the PVC. Reads the API itself: a cache may be older than the last decision."""

from collections.abc import Mapping
from dataclasses import replace

import structlog

from csi_driver.domain.errors import NotFound, Unavailable
from csi_driver.domain.ids import owner_of_node
from csi_driver.domain.requests import KUBERNETES_PREFIX
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.resources import PVCS, STORAGE_CLASSES
from csi_driver.operator.installation import PLACED_ON, SELECTED_NODE
from csi_driver.service.placement import PvcPlacement

NAME = KUBERNETES_PREFIX + "pvc/name"
NAMESPACE = KUBERNETES_PREFIX + "pvc/namespace"

log = structlog.get_logger()


class PvcPlacementStore:
    """Implements service.placement.Claims. Finds a PVC by the labels of the provisioner's --extra-create-metadata."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._warned = False

    async def find(self, volume: str, labels: Mapping[str, str]) -> PvcPlacement:
        """Return what is known of a volume's PVC. One that was deleted, and perhaps created again, does not count."""
        name, namespace = labels.get(NAME, ""), labels.get(NAMESPACE, "")
        if not name or not namespace:
            if not self._warned:
                self._warned = True
                log.warning("provisioner sends no PVC names: set --extra-create-metadata", volume=volume)
            return PvcPlacement()
        try:
            pvc = await self._api.get(PVCS, name, namespace)
            if pvc is None or pvc["metadata"].get("uid", "") not in volume:
                return PvcPlacement()
            metadata = pvc["metadata"]
            annotations = metadata.get("annotations") or {}
            selected = annotations.get(SELECTED_NODE)
            if selected:
                return PvcPlacement(owner_of_node(selected))
            waits = await self._waits_for_consumer((pvc.get("spec") or {}).get("storageClassName") or "")
        except ApiRejected as error:
            raise Unavailable(f"PVC {namespace}/{name} or its StorageClass cannot be read: {error}") from error
        key = (namespace, name, metadata["resourceVersion"])
        return PvcPlacement(wait_for_first_consumer=waits, chosen_owner=annotations.get(PLACED_ON) or None, key=key)

    async def _waits_for_consumer(self, name: str) -> bool:
        storage_class = await self._api.get(STORAGE_CLASSES, name) if name else None
        return (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"

    async def choose(self, placement: PvcPlacement, owner: str) -> PvcPlacement:
        """Record durably which owner is asked for the volume. Raises Unavailable if the PVC cannot be changed."""
        if not placement.key:
            return replace(placement, chosen_owner=owner)
        namespace, name, version = placement.key
        patch = {"metadata": {"resourceVersion": version, "annotations": {PLACED_ON: owner}}}
        try:
            pvc = await self._api.patch(PVCS, name, patch, namespace)
        except (Conflict, NotFound, ApiRejected) as error:
            raise Unavailable(
                f"PVC {namespace}/{name}: cannot record that its volume is made on {owner}: {error}; the call is retried"
            ) from error
        return replace(placement, chosen_owner=owner, key=(namespace, name, pvc["metadata"]["resourceVersion"]))
