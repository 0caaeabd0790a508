"""The disks of a volume group, found without looking into what may be a tenant's: only whole disks and their partitions are asked.

Left out are devices that are made of others (volumes of ours and of anybody's volume groups), network block devices that may
not answer, and parts of an array or a multipath device, which show the same label a second time.
"""

import errno
import os
import re
from contextlib import suppress

from csi_driver.host.errors import HostError
from csi_driver.host.lvm import reports
from csi_driver.host.lvm.configuration import is_usable_path
from csi_driver.host.lvm.program import LvmProgram, run

_NEVER = re.compile(r"(loop|ram|zram|nbd|rbd|drbd|sr|fd|ublkb)\d", re.ASCII)
_OWN_LABELS = ("mpath-", "CRYPT-", "part")
"""How the device mapper's uuids of a multipath device, an encrypted disk and a partition of either begin: disks as good as any."""
_LINKS = ("/dev/disk/by-id", "/dev/disk/by-path")
"""Where udev links to disks by names that stay the same, the better first."""
_RANK = ("wwn-", "nvme-eui.", "nvme-uuid.", "nvme-", "scsi-", "ata-", "virtio-", "dm-uuid-")
"""Of names by id the first that there is: those that the disk itself brings before those that a driver makes up."""


def candidates(system: str = "/sys/class/block") -> list[str]:
    """Return the kernel's names of the devices that may be disks of a volume group, sorted."""
    return sorted(filter(lambda name: _is_candidate(name, system), os.listdir(system)))


def node_of(name: str) -> str:
    """Return the node of a device by the kernel's name, in which a slash is an exclamation mark."""
    return f"/dev/{name.replace('!', '/')}"


def _is_candidate(name: str, system: str) -> bool:
    if _NEVER.match(name) or _read(f"{system}/{name}/size") in ("", "0"):
        return False
    if name.startswith("dm-") and not _read(f"{system}/{name}/dm/uuid").startswith(_OWN_LABELS):
        return False
    return not any(_is_array(holder, system) for holder in _names(f"{system}/{name}/holders"))


def _is_array(holder: str, system: str) -> bool:
    return holder.startswith("md") or _read(f"{system}/{holder}/dm/uuid").startswith("mpath-")


def devices_of(vg: str, program: LvmProgram, seconds: float) -> tuple[str, list[str]]:
    """Return the uuid of a volume group, and the stable paths of the disks that have it, sorted.

    Raises HostError ENOENT if no disk has it; EEXIST if two groups have that name, with the disks of each; CommandError.
    """
    nodes = [path for name in candidates() if is_usable_path(path := node_of(name))]
    found: dict[str, list[str]] = {}
    if nodes:
        columns = reports.PhysicalVolume.COLUMNS
        answer, _ = run(
            ("pvs", *reports.REPORT_OPTIONS, "-o", columns), program.configuration(nodes), program.through_host, seconds
        )
        for volume in map(reports.physical_volume, reports.parse(answer)):
            if volume.vg == vg and not volume.missing:
                found.setdefault(volume.vg_uuid, []).append(volume.name)
    if not found:
        raise HostError(errno.ENOENT, f"no disk of this node has a volume group {vg}: is its disk attached (`lsblk`)?")
    if len(found) > 1:
        texts = "; ".join(f"{uuid} on {', '.join(paths)}" for uuid, paths in found.items())
        raise HostError(
            errno.EEXIST,
            f"there are {len(found)} volume groups called {vg}: {texts}; rename the one that is not the pool: vgrename UUID NAME",
        )
    root = "/proc/1/root" if program.through_host else ""
    uuid, paths = next(iter(found.items()))
    return uuid, sorted(stable_path(path, root) for path in paths)


def stable_path(path: str, root: str = "") -> str:
    """Return the path of a device that is the same after a boot; `path` itself if it has none. `root`: where its /dev is."""
    target = os.path.realpath(f"{root}{path}")
    links: list[tuple[int, int, str]] = []
    for place, directory in enumerate(_LINKS):
        for name in _names(f"{root}{directory}"):
            link = f"{directory}/{name}"
            if is_usable_path(link) and os.path.realpath(f"{root}{link}") == target:
                links.append((place, _rank(name), link))
    return min(links)[2] if links else path


def _rank(name: str) -> int:
    return next((rank for rank, start in enumerate(_RANK) if name.startswith(start)), len(_RANK))


def _names(directory: str) -> list[str]:
    with suppress(OSError):
        return sorted(os.listdir(directory))
    return []


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""
