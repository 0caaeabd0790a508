"""The configuration that every lvm command gets: it sees exactly the devices of one pool, and nothing of it is left to the host.

What is given here goes before the host's lvm.conf. So an lvm of ours neither looks into volumes, in which a tenant may have made
volume groups, nor waits for a device that does not answer, such as a dead network disk.
"""

import re
from collections.abc import Sequence

Version = tuple[int, int, int]

OLDEST: Version = (2, 3, 11)
"""Of lvm: from here on there are thin snapshots in order, reports as JSON, and volume groups of other systems are told."""

_DEVICES_FILE: Version = (2, 3, 12)
_AUTO_ACTIVATION: Version = (2, 3, 12)
_PATH = re.compile(r"/dev/[A-Za-z0-9/_.:+=@#,-]+", re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", re.ASCII)
_SPECIAL = re.compile(r"[.+]")


def parse_version(text: str) -> Version | None:
    """Return the version in the answer of `lvm version`; None: there is none in it."""
    match = re.search(r"LVM version:\s+(\d+)\.(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def version_text(version: Version) -> str:
    """Return a version as lvm writes it, e.g. 2.03.16."""
    return f"{version[0]}.{version[1]:02}.{version[2]}"


def has_auto_activation(version: Version) -> bool:
    """Return whether this lvm lets a volume group be kept from being activated at boot."""
    return version >= _AUTO_ACTIVATION


def is_usable_path(path: str) -> bool:
    """Return whether a device's path can stand in a filter."""
    return _PATH.fullmatch(path) is not None


def is_group_name(text: str) -> bool:
    """Return whether a text can be the name of a volume group."""
    return _GROUP.fullmatch(text) is not None and text not in (".", "..")


def configuration(
    devices: Sequence[str], version: Version, *, udev: bool, vg: str = "", new_disks: bool = False
) -> str:
    """Return the text for --config.

    `devices`: paths of the devices that lvm may look at, at least one. `udev`: udevd runs where this lvm runs, so that it makes
    the nodes, and lvm waits for it. `vg`: the volume group that lvm may activate, whatever volume_list the host has.
    `new_disks`: disks join the group or leave it. Raises
    ValueError for a path that no filter can hold, and for what is no name of a volume group.
    """
    if vg and not is_group_name(vg):
        raise ValueError(f"{vg!r} is not the name of a volume group")
    if bad := [path for path in devices if not is_usable_path(path)]:
        raise ValueError(f"{bad[0]!r} cannot stand in a filter of lvm")
    accepted = [f'"a|^{_SPECIAL.sub(lambda match: f"[{match.group()}]", path)}$|"' for path in devices]
    filters = ",".join([*accepted, '"r|.*|"'])
    wait = int(udev)
    sections = {
        "devices": [
            'dir="/dev"',
            'scan=["/dev"]',
            f"filter=[{filters}]",
            f"global_filter=[{filters}]",
            *(["use_devicesfile=0"] if version >= _DEVICES_FILE else []),
            "scan_lvs=0",
            # The host's own hints are of all its devices. But a disk that joins or leaves must void them: with stale ones the host's
            # lvm takes the disk for missing (measured), and its next change of the group notes that for good.
            f'hints="{"all" if new_disks else "none"}"',
            "obtain_device_list_from_udev=0",
            'external_device_info_source="none"',
            "issue_discards=0",
        ],
        "activation": [
            "monitoring=0",
            "thin_pool_autoextend_threshold=100",  # never: a pool grows when somebody says so
            "checks=0",
            f"udev_sync={wait}",
            f"udev_rules={wait}",
            f"verify_udev_operations={1 - wait}",
            *([f'volume_list=["{vg}"]'] if vg else []),
        ],
        "global": ["event_activation=0", "use_lvmpolld=0", "wait_for_locks=1", "si_unit_consistency=1"],
        "backup": ["backup=0", "archive=0"],  # an older text brought back would wedge the thin pool for good
        "log": ["verbose=0", "silent=0", "syslog=0", "report_command_log=0"],
        "report": [
            'list_item_separator=","',
            "mark_hidden_devices=0",
            "binary_values_as_numeric=0",
            "prefixes=0",
            "compact_output=0",
        ],
    }
    return " ".join(f"{name} {{ {' '.join(settings)} }}" for name, settings in sections.items())
