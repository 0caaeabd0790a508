"""The informers of one process: one watch and one cache for all that read the same objects."""

import asyncio
from collections.abc import Callable

from csi_driver.kube.client import Api, Object
from csi_driver.kube.informer import Informer, unchanged
from csi_driver.kube.resources import Kind


class InformerFactory:
    """Starts an informer when it is first asked for, and stops all at once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._informers: dict[tuple[object, ...], Informer] = {}

    def for_kind(
        self,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        transform: Callable[[Object], Object] = unchanged,
    ) -> Informer:
        """Return the started informer of these objects, shared by all that give the same arguments (`transform` by identity).

        If the cluster may not serve the kind, ask `Api.served` first: such an informer is never synced.
        """
        key = (kind, namespace, labels, fields, transform)
        if key not in self._informers:
            self._informers[key] = Informer(self._api, kind, namespace, labels, fields, transform)
            self._informers[key].start()
        return self._informers[key]

    def ages(self) -> dict[str, float]:
        """Return the seconds since each kind was last known to be current; the oldest if a kind has several informers."""
        ages: dict[str, float] = {}
        for informer in self._informers.values():
            ages[str(informer.kind)] = max(informer.age, ages.get(str(informer.kind), 0.0))
        return ages

    async def stop(self) -> None:
        """Stop all."""
        await asyncio.gather(*(informer.stop() for informer in self._informers.values()))
