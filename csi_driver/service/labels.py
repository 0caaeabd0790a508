"""Labels: the names by which people know volumes, where these are no longer the ones of their creation."""

from dataclasses import replace

from csi_driver.domain.errors import AlreadyExists, InvalidRequest
from csi_driver.domain.ids import parse
from csi_driver.domain.model import Volume
from csi_driver.domain.requests import check_name
from csi_driver.service.dependencies import ServiceDependencies


class Labels:
    """Serves SetLabel."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools

    async def set_label(self, volume_id: str, label: str) -> Volume:
        """Show a volume by another name; empty, or its CSI name: by that again. Id and CSI name stay, so a repeated
        CreateVolume still finds it. Raises NotFound, InvalidRequest, AlreadyExists.
        """
        if label:
            check_label(label)
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.hold(pool, f"SetLabel of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            wanted = "" if label == volume.name else label
            if wanted == volume.label:
                return volume
            # Two renames at once may still meet in one name. That does no harm: a command that gets it asks for an id.
            self._ensure_free(volume, label or volume.name)
            labelled = replace(volume, label=wanted)
            await pool.backend.save_volume(labelled)
            pool.put_volume(labelled)
            return labelled

    def _ensure_free(self, volume: Volume, label: str) -> None:
        for pool in self._pools.all_for_name_lookup():
            for other in pool.volumes.values():
                if other.id != volume.id and shown_as(other) == label:
                    raise AlreadyExists(
                        f"volume {shown_as(volume)} cannot be renamed to {label!r}: {other.id} has that name; rename that one "
                        "first, or choose another name"
                    )


def shown_as(volume: Volume) -> str:
    """Return the name by which people know a volume."""
    return volume.label or volume.name


def check_label(label: str) -> None:
    """Raise InvalidRequest for a name that cannot be shown on a line of its own, or that would be taken for an id."""
    check_name(label, "the new name")
    if not label.isprintable():
        raise InvalidRequest(f"the new name {label!r} has control characters: leave them out")
    if parse(label):
        raise InvalidRequest(f"the new name {label!r} has the form of an id: choose another name")
