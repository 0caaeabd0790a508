"""The claims for which volumes are made, read from the API itself: a copy may be older than the choice it is asked for."""

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
    """PersistentVolumeClaims by the labels that the provisioner's --extra-create-metadata adds. See PvcPlacements."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._warned = False

    async def find(self, volume: str, labels: Mapping[str, str]) -> PvcPlacement:
        """See PvcPlacements. A claim that was deleted, and perhaps made again under its name, is none."""
        name, namespace = labels.get(NAME, ""), labels.get(NAMESPACE, "")
        if not name or not namespace:
            if not self._warned:
                self._warned = True
                log.warning("the provisioner names no claims: give it --extra-create-metadata", volume=volume)
            return PvcPlacement()
        try:
            found = await self._api.get(PVCS, name, namespace)
            if found is None or found["metadata"].get("uid", "") not in volume:
                return PvcPlacement()
            metadata = found["metadata"]
            notes = metadata.get("annotations") or {}
            selected = notes.get(SELECTED_NODE)
            if selected:
                return PvcPlacement(owner_of_node(selected))
            waits = await self._waits((found.get("spec") or {}).get("storageClassName") or "")
        except ApiRejected as error:
            raise Unavailable(f"claim {namespace}/{name} or its class cannot be read: {error}") from error
        key = (namespace, name, metadata["resourceVersion"])
        return PvcPlacement(wait_for_first_consumer=waits, chosen_owner=notes.get(PLACED_ON) or None, key=key)

    async def _waits(self, storage_class: str) -> bool:
        found = await self._api.get(STORAGE_CLASSES, storage_class) if storage_class else None
        return (found or {}).get("volumeBindingMode") == "WaitForFirstConsumer"

    async def choose(self, placement: PvcPlacement, owner: str) -> PvcPlacement:
        """See PvcPlacements."""
        if not placement.key:
            return replace(placement, chosen_owner=owner)
        namespace, name, version = placement.key
        note = {"metadata": {"resourceVersion": version, "annotations": {PLACED_ON: owner}}}
        try:
            written = await self._api.patch(PVCS, name, note, namespace)
        except (Conflict, NotFound, ApiRejected) as error:
            raise Unavailable(
                f"claim {namespace}/{name} does not take the note that its volume is made on {owner}: {error}; "
                "the call succeeds when it is repeated"
            ) from error
        return replace(placement, chosen_owner=owner, key=(namespace, name, written["metadata"]["resourceVersion"]))
