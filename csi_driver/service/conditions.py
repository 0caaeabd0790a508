"""Which volumes are in trouble, as far as it is known: noted by whoever looks, told by metrics and lists."""

import logging
from collections.abc import Container

from csi_driver.domain.model import Trouble, Volume
from csi_driver.domain.timestamps import format_timestamp

_LOG = logging.getLogger(__name__)


class Conditions:
    """The last that is known of each volume that is not well. Read from another thread too, which takes a copy."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Volume, Trouble]] = {}

    def note(self, volume: Volume, trouble: Trouble | None) -> None:
        """What was found of a volume just now; None: nothing is wrong with it. A change is logged, once."""
        key = str(volume.id)
        before = self._known.get(key)
        if trouble is None:
            self._known.pop(key, None)
            return
        self._known[key] = (volume, trouble)
        if before is None or before[1].kind != trouble.kind:
            _LOG.error("%s (%s) is in trouble, since %s", volume.id, claim_of(volume) or volume.name, trouble.text)

    def of(self, volume: Volume) -> Trouble | None:
        """What was found of a volume at the last look; None: nothing was wrong with it."""
        known = self._known.get(str(volume.id))
        return known[1] if known is not None and known[0].uid == volume.uid else None

    def keep(self, ids: Container[str]) -> None:
        """Forget those that are none of these: they were deleted."""
        for key in [key for key in self._known if key not in ids]:
            self._known.pop(key, None)

    def all(self) -> list[tuple[Volume, Trouble]]:
        """Every volume that is not well."""
        return list(self._known.values())


def is_damaged(said: str) -> Trouble:
    """The trouble of a volume whose file system no check mends."""
    return Trouble("Damaged", f"its file system is damaged and is not mended by itself ({said})", stopped=True)


def of_record(volume: Volume) -> Trouble | None:
    """The trouble that a volume's record tells of: it stays while the volume cannot be mounted."""
    condition = volume.condition
    return is_damaged(condition.said) if condition is not None and condition.state == "damaged" else None


def claim_of(volume: Volume) -> str:
    """The claim for which the volume was made, as NAMESPACE/NAME; empty where the sidecar did not say."""
    labels = volume.request.labels
    name = labels.get("csi.storage.k8s.io/pvc/name", "")
    return f"{labels.get('csi.storage.k8s.io/pvc/namespace', '')}/{name}" if name else ""


def in_words(volume: Volume, trouble: Trouble | None, pool_path: str) -> str:
    """What a person is told of a volume's condition; empty where there is nothing to tell."""
    if trouble is not None:
        return trouble.text
    condition = volume.condition
    if condition is None:
        return ""
    if condition.state == "damaged":
        return is_damaged(condition.said).text
    at = format_timestamp(condition.at // 1_000_000_000)
    return f"mended by e2fsck at {at} ({condition.said}); what it held before was kept at {pool_path}/{condition.kept} for a week"
