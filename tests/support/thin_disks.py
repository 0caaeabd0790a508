"""Disks that hold a volume group with a thin pool, each in an image: made once, copied with all that is on it, attached one at a time.

For tests inside the machine of tests/lvm. A loop device is never a pool's disk, so that nobody serves a tenant's image as one: the
image is attached through a device of the mapper that says it is a partition.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from csi_driver.host.dm import ioctl
from csi_driver.host.lvm import program, reports

GROUP, POOL = "tmtest", "pool"
_PART = "tmtestdisk"
_SECONDS = 60.0
_disk: list[str] = []
"""The disk that is used, last."""
_ENVIRONMENT = {**os.environ, "DM_DISABLE_UDEV": "1"}
"""There is no udev: libdm makes the nodes."""


def sh(*argv: str | Path) -> str:
    """Run a program and return what it prints; one that fails is the test's failure, in its own words."""
    done = subprocess.run(argv, check=False, timeout=_SECONDS, capture_output=True, text=True, env=_ENVIRONMENT)
    assert done.returncode == 0, f"{' '.join(map(str, argv))}: {done.stderr}"
    return done.stdout.strip()


@cache
def _program() -> program.LvmProgram:
    return program.find(False)


def lvm(*argv: str, device: str = "") -> str:
    """Run lvm so that it sees one disk: `device`, or the one on which the last group was made or attached."""
    return program.run(argv, _program().configuration([device or _disk[-1]]), False, _SECONDS)[0]


def use(device: str) -> None:
    """Take a disk that has a group for the one that is looked at from now on."""
    _disk.append(device)


def make_group(device: str, extent: str, size: str, group: str = GROUP) -> None:
    """Make a volume group with a thin pool on an empty disk. `extent`: the granule of its volumes. `size`: of the pool."""
    use(device)
    lvm("pvcreate", "--yes", "--metadatasize", "64m", device, device=device)
    lvm("vgcreate", "--physicalextentsize", extent, group, device, device=device)
    argv = ("--thin", "--size", size, "--poolmetadatasize", "16m", "--chunksize", "64k", "-Zy", "--errorwhenfull", "y")
    lvm("lvcreate", "--yes", *argv, f"{group}/{POOL}", device=device)


def remove_group(device: str) -> None:
    """Remove a volume group with all that is in it, whatever state it is in, and leave the disk empty."""
    detach()
    if GROUP in lvm("vgs", "--noheadings", "-o", "vg_name", device=device).split():
        lvm("vgremove", "--force", "--yes", GROUP, device=device)
        lvm("pvremove", "--force", "--force", "--yes", device, device=device)


def make_disk_image(image: Path, size: int, extent: str, pool: str) -> None:
    """Make an image with such a group, and leave it attached."""
    with image.open("wb") as file:
        file.truncate(size)
    attach(image)
    make_group(f"/dev/mapper/{_PART}", extent, pool)


def copy(image: Path, to: Path) -> None:
    """Copy an image; what nobody wrote stays a hole."""
    sh("cp", "--sparse=always", image, to)


def attach(image: Path) -> None:
    """Show an image as the disk. Its volume group is found, and nothing in it is active."""
    device = sh("losetup", "--find", "--show", image)
    sectors = image.stat().st_size // 512
    _disk.append(f"/dev/mapper/{_PART}")
    sh("dmsetup", "create", _PART, "--uuid", f"part1-{_PART}", "--table", f"0 {sectors} linear {device} 0")


def detach() -> None:
    """Take the disk away, and all devices of its volume group before it, whatever state they are in."""
    ours = [name for name, _, _ in ioctl.names() if name.startswith(f"{GROUP}-")]
    for name in suspended():
        ioctl.resume(ioctl.info(name=name).uuid)
    # From the top: volumes, then the pool's own layers.
    layers = [f"{GROUP}-{POOL}", f"{GROUP}-{POOL}-tpool", f"{GROUP}-{POOL}_tmeta", f"{GROUP}-{POOL}_tdata"]
    volumes = [name for name in ours if name not in layers]
    if names := [*volumes, *(name for name in layers if name in ours)]:
        sh("dmsetup", "remove", "--retry", *names)
    if any(name == _PART for name, _, _ in ioctl.names()):
        backing = sh("dmsetup", "deps", "-o", "devname", _PART).partition("(")[2].rstrip(")")
        sh("dmsetup", "remove", "--retry", _PART)
        sh("losetup", "--detach", f"/dev/{backing}")


def devices() -> list[str]:
    """Devices that lvm has made for objects of the pool."""
    objects = (f"{GROUP}-v--", f"{GROUP}-s--")
    return [name for name, _, _ in ioctl.names() if name.startswith(objects)]


def suspended() -> list[str]:
    """Devices of the volume group whose writers stand still."""
    names = [name for name, _, _ in ioctl.names() if name.startswith(f"{GROUP}-")]
    return [name for name in names if ioctl.info(name=name).suspended]


def logical_volumes() -> list[reports.LogicalVolume]:
    """What lvm says that there is, the thin pool left out."""
    answer = lvm("lvs", *reports.REPORT_OPTIONS, "-o", reports.LogicalVolume.COLUMNS, GROUP)
    return [lv for lv in map(reports.logical_volume, reports.parse(answer)) if lv.name != POOL]


def group_tags() -> list[str]:
    """The tags of the volume group."""
    return lvm("vgs", "--noheadings", "-o", "vg_tags", GROUP).strip().split(",")


def sequence() -> tuple[int, list[str]]:
    """A number that each change of the volume group makes larger, and the names of its volumes."""
    row = json.loads(lvm("vgs", "--reportformat", "json", "-o", "vg_seqno,lv_name", GROUP))["report"][0]["vg"]
    return int(row[0]["vg_seqno"]), sorted(found["lv_name"] for found in row)


def is_active() -> bool:
    """Whether the thin pool has a device."""
    return any(name.startswith(f"{GROUP}-{POOL}") for name, _, _ in ioctl.names())


def thin_pool() -> ioctl.DeviceInfo:
    """The thin pool itself; a pool in which nothing was ever made has no layer of its own."""
    layer = f"{GROUP}-{POOL}-tpool"
    names = [name for name, _, _ in ioctl.names()]
    return ioctl.info(name=layer if layer in names else f"{GROUP}-{POOL}")


def kernel_ids() -> set[int]:
    """The thin ids that the kernel's own metadata has, by a snapshot of it."""
    pool = thin_pool().uuid
    ioctl.message(pool, "reserve_metadata_snap")
    try:
        tool = shutil.which("thin_ls", path="/usr/sbin:/sbin:/usr/bin") or "thin_ls"
        return set(
            map(int, sh(tool, "-m", "--no-headers", "--format", "DEV", f"/dev/mapper/{GROUP}-{POOL}_tmeta").split())
        )
    finally:
        ioctl.message(pool, "release_metadata_snap")


def show(names: Sequence[tuple[str, int, int]]) -> list[Path]:
    """Make devices, beside those of lvm, for (name, thin id, size); inactive volumes are read and written by these."""
    pool = thin_pool()
    number = f"{pool.major}:{pool.minor}"
    concise = [f"{name},,,rw,0 {size // 512} thin {number} {thin_id}" for name, thin_id, size in names]
    sh("dmsetup", "create", "--concise", ";".join(concise))
    return [Path("/dev/mapper", name) for name, _, _ in names]


def hide(paths: Sequence[Path]) -> None:
    """Remove such devices."""
    sh("dmsetup", "remove", "--retry", *(path.name for path in paths))
