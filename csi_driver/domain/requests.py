"""What a request may say: names, class parameters, file systems, mount flags. Everything else is refused by name."""

from collections.abc import Mapping

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.ids import MAX_NAME_BYTES, is_pool_name
from csi_driver.domain.model import AccessMode, Capability, VolumeRequest
from csi_driver.domain.mount_flags import check_known_flags, check_mount_flags

KUBERNETES_PREFIX = "csi.storage.k8s.io/"
"""Sidecars add keys under this prefix to any call: kept as labels, never compared, never refused."""

FS_TYPE_LABEL = KUBERNETES_PREFIX + "fstype"
"""A class's file system. The provisioner moves it into the capability; a caller without one leaves it where it is."""

MAX_MAP_BYTES = 4096
FILE_SYSTEMS = ("ext4", "xfs")


def check_name(name: str, what: str) -> None:
    """Refuse a name that the protocol or the ids cannot carry."""
    if not name:
        raise InvalidRequest(f"{what} is missing: give a name of 1 to {MAX_NAME_BYTES} bytes")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"{what} has {len(name.encode())} bytes: at most {MAX_NAME_BYTES} are allowed, use a shorter one"
        )
    if "\0" in name:
        raise InvalidRequest(f"{what} holds a NUL character: leave it out")


def check_map(values: Mapping[str, str], what: str) -> None:
    """Refuse a map that is larger than the protocol allows."""
    size = sum(len(k.encode()) + len(v.encode()) for k, v in values.items())
    if size > MAX_MAP_BYTES:
        raise InvalidRequest(f"{what} take {size} bytes: at most {MAX_MAP_BYTES} are allowed, shorten them")


def split_labels(values: Mapping[str, str], what: str) -> tuple[dict[str, str], dict[str, str]]:
    """Part what the class says from what the sidecars add: (parameters, labels)."""
    check_map(values, what)
    labels = {k: v for k, v in values.items() if k.startswith(KUBERNETES_PREFIX)}
    return {k: v for k, v in values.items() if k not in labels}, labels


def check_volume_parameters(parameters: Mapping[str, str]) -> None:
    """Refuse an unknown key or value of a StorageClass by name."""
    for key, value in parameters.items():
        if key == "pool":
            if not is_pool_name(value):
                raise InvalidRequest(
                    f"parameter pool={value!r} is no pool's name: use a name given to the agent by --pool"
                )
        elif key == "provisioning":
            if value not in {"thin", "thick"}:
                raise InvalidRequest(f"parameter provisioning={value!r} is unknown: use thin or thick")
        else:
            raise InvalidRequest(f"parameter {key!r} is unknown: this driver knows pool and provisioning; remove it")


def refuse_parameters(parameters: Mapping[str, str], what: str) -> None:
    """Refuse any parameter, for calls that know none."""
    for key in parameters:
        raise InvalidRequest(f"parameter {key!r} is unknown: {what} take no parameters; remove it")


def check_capability(capability: Capability, made_before: bool = False) -> None:
    """Refuse a file system or a mount flag that this driver does not serve.

    `made_before`: for a volume that exists, whose mount flags may be of an earlier version's list.
    """
    if capability.access == "block":
        return
    if capability.fs_type == "btrfs":
        raise InvalidRequest(
            "file system btrfs is refused: a clone has its origin's identity, and the kernel takes both for one; "
            "use ext4 or xfs"
        )
    if capability.fs_type and capability.fs_type not in FILE_SYSTEMS:
        raise InvalidRequest(f"file system {capability.fs_type!r} is unknown: use {' or '.join(FILE_SYSTEMS)}")
    if made_before:
        check_known_flags(capability.mount_flags, capability.fs_type)
    else:
        check_mount_flags(capability.mount_flags, capability.fs_type)


def check_volume_request(request: VolumeRequest) -> None:
    """Everything about a CreateVolume that can be judged without looking into a pool."""
    check_name(request.name, "the volume's name")
    if not request.capabilities:
        raise InvalidRequest("volume capabilities are missing: say how the volume is to be used (mount or block)")
    for capability in request.capabilities:
        check_capability(capability)
    kinds = {c.fs_type for c in request.capabilities if c.access == "mount" and c.fs_type}
    if len(kinds) > 1:
        raise InvalidRequest(f"one volume cannot be formatted as {' and '.join(sorted(kinds))}: name one file system")
    check_volume_parameters(request.parameters)
    label = request.labels.get(FS_TYPE_LABEL, "")
    if label and any(c.access == "mount" for c in request.capabilities):
        check_capability(Capability("mount", AccessMode.MULTI_WRITER, label))


def asked_file_system(request: VolumeRequest) -> str:
    """The file system that a volume was asked for, by a capability or by its class; empty where by neither."""
    named = next((c.fs_type for c in request.capabilities if c.access == "mount" and c.fs_type), "")
    label = request.labels.get(FS_TYPE_LABEL, "")
    return named or (label if label in FILE_SYSTEMS else "")


def difference(new: VolumeRequest, old: VolumeRequest) -> str:
    """What two requests for the same name disagree about besides the size, in words; empty if nothing."""
    parts = []
    if set(new.capabilities) != set(old.capabilities):
        parts.append("its capabilities")
    for key in sorted(new.parameters.keys() | old.parameters.keys()):
        if new.parameters.get(key) != old.parameters.get(key):
            parts.append(f"parameter {key} ({old.parameters.get(key)!r} then, {new.parameters.get(key)!r} now)")
    if new.source != old.source:
        parts.append(
            f"its source ({old.source.id if old.source else 'none'} then, {new.source.id if new.source else 'none'} now)"
        )
    return ", ".join(parts)
