"""The mutation of the admission webhook for a PVC that is being created. It never refuses one."""

from collections.abc import Callable

from csi_driver.kube.client import Object
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.data_source import DataSourceResolver, data_source_of

NodeOfOwner = Callable[[str], str | None]
"""Returns the name of an owner's node; None if there is none."""


class SelectedNodeMutator:
    """Selects the node of a PVC's data source."""

    def __init__(self, sources: DataSourceResolver, node_of: NodeOfOwner) -> None:
        self._sources = sources
        self._node_of = node_of

    async def mutate(self, pvc: Object) -> dict[str, str]:
        """Return the annotations to add: the selected node, or none. Raises DriverError if the API cannot be read."""
        source = data_source_of(pvc)
        annotations = pvc["metadata"].get("annotations") or {}
        if source is None or SELECTED_NODE in annotations or (pvc.get("spec") or {}).get("volumeName"):
            return {}
        if await self._sources.storage_class(pvc) is None:
            return {}
        location = await self._sources.find(source, pvc["metadata"].get("namespace") or "default")
        node = self._node_of(location.owner) if location is not None else None
        return {SELECTED_NODE: node} if node is not None else {}
