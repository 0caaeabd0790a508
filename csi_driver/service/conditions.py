"""The conditions of volumes: noted by every call that inspects one, reported by metrics and lists."""

import logging
from collections.abc import Container

from csi_driver.domain.model import Volume, VolumeCondition
from csi_driver.domain.timestamps import format_timestamp

_LOG = logging.getLogger(__name__)


class Conditions:
    """The last known condition of each volume in trouble. Another thread reads it too, as a copy."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Volume, VolumeCondition]] = {}

    def note(self, volume: Volume, condition: VolumeCondition | None) -> None:
        """Note what is wrong with a volume now; None if nothing is. A change is logged once."""
        key = str(volume.id)
        before = self._known.get(key)
        if condition is None:
            self._known.pop(key, None)
            return
        self._known[key] = (volume, condition)
        if before is None or before[1].kind != condition.kind:
            _LOG.error("%s (%s) is in trouble, because %s", volume.id, pvc_of(volume) or volume.name, condition.text)

    def get(self, volume: Volume) -> VolumeCondition | None:
        """Return what was wrong with a volume when it was last inspected; None if nothing was."""
        known = self._known.get(str(volume.id))
        return known[1] if known is not None and known[0].uid == volume.uid else None

    def retain_only(self, ids: Container[str]) -> None:
        """Forget all volumes but these: the others were deleted."""
        for key in [key for key in self._known if key not in ids]:
            self._known.pop(key, None)

    def all(self) -> list[tuple[Volume, VolumeCondition]]:
        """Return every volume in trouble."""
        return list(self._known.values())


def is_damaged(said: str) -> VolumeCondition:
    """Return the condition of a volume whose file system no check repairs."""
    return VolumeCondition(
        "Damaged", f"its file system is damaged and cannot be repaired automatically ({said})", stopped=True
    )


def recorded_condition(volume: Volume) -> VolumeCondition | None:
    """Return the condition in a volume's record: it stays while the volume cannot be mounted."""
    check = volume.condition
    return is_damaged(check.said) if check is not None and check.state == "damaged" else None


def pvc_of(volume: Volume) -> str:
    """Return the PVC for which the volume was created, as NAMESPACE/NAME; empty if the sidecar did not name it."""
    labels = volume.request.labels
    name = labels.get("csi.storage.k8s.io/pvc/name", "")
    return f"{labels.get('csi.storage.k8s.io/pvc/namespace', '')}/{name}" if name else ""


def describe_condition(volume: Volume, condition: VolumeCondition | None, pool_path: str) -> str:
    """Describe a volume's condition for a person; empty if there is nothing to report."""
    if condition is not None:
        return condition.text
    check = volume.condition
    if check is None:
        return ""
    if check.state == "damaged":
        return is_damaged(check.said).text
    at = format_timestamp(check.at // 1_000_000_000)
    return f"repaired by e2fsck at {at} ({check.said}); the old content was kept at {pool_path}/{check.kept} for a week"
