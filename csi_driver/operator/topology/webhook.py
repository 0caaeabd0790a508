"""What the webhook does with a claim that is about to be made. It never refuses one."""

from collections.abc import Callable

from csi_driver.kube.client import Object
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.data_source import DataSourceResolver, data_source_of

NodeOf = Callable[[str], str | None]
"""The name of the node that is an owner; None where there is no such node."""


class PinAdmission:
    """Gives the annotations that a claim is to have besides."""

    def __init__(self, sources: DataSourceResolver, node_of: NodeOf) -> None:
        self._sources = sources
        self._node_of = node_of

    async def annotate(self, claim: Object) -> dict[str, str]:
        """The pin, or nothing where there is no reason for one. Raises DriverError where the API does not tell."""
        source = data_source_of(claim)
        notes = claim["metadata"].get("annotations") or {}
        if source is None or SELECTED_NODE in notes or (claim.get("spec") or {}).get("volumeName"):
            return {}
        if await self._sources.storage_class(claim) is None:
            return {}
        spot = await self._sources.find(source, claim["metadata"].get("namespace") or "default")
        node = self._node_of(spot.owner) if spot is not None else None
        return {SELECTED_NODE: node} if node is not None else {}
