"""The mirrors of one process, each shared by all who want the same objects: one watch and one copy for all of them."""

import asyncio
from collections.abc import Callable

from csi_driver.kube.client import Api, Object
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import Kind


def whole(obj: Object) -> Object:
    """Keep all of an object."""
    return obj


class Mirrors:
    """Begins a mirror when it is first asked for, and ends all at once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._mirrors: dict[tuple[object, ...], Informer] = {}

    def of(
        self,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        keep: Callable[[Object], Object] = whole,
    ) -> Informer:
        """The mirror of these objects, already begun. Shared where all arguments are the same, `keep` by identity.

        Of a kind that the cluster may not serve, ask `Api.served` first: such a mirror is never synced.
        """
        key = (kind, namespace, labels, fields, keep)
        if key not in self._mirrors:
            made = self._mirrors[key] = Informer(self._api, kind, namespace, labels, fields, keep)
            made.start()
        return self._mirrors[key]

    def ages(self) -> dict[str, float]:
        """Seconds since each kind was last known to be up to date; the oldest where a kind has several mirrors."""
        ages: dict[str, float] = {}
        for mirror in self._mirrors.values():
            ages[str(mirror.kind)] = max(mirror.age, ages.get(str(mirror.kind), 0.0))
        return ages

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(mirror.stop() for mirror in self._mirrors.values()))
