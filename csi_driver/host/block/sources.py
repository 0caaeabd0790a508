"""How a helper process gets a volume's block device: from the image behind it, or as the device that it is already.

A source is plain JSON, with its `kind` and what that kind needs. Whatever the kind, the device is open to the end of the block,
so that its number is nobody else's meanwhile, and nothing is looked for, or verified, twice.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from csi_driver.host.block import device, loop, loop_ioctl
from csi_driver.host.block.device import BlockDevice, OpenDevice
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.errors import Busy, Mismatch
from csi_driver.host.fs import mountinfo

Source = Mapping[str, Any]


def image(path: str, thick: bool, names: str = "") -> dict[str, Any]:
    """Return the source of a volume that is an image file on a loop device.

    `thick`: the device refuses discards, so that what is allocated stays so. `names`: see `loop.find`.
    """
    return {"kind": "image", "path": path, "thick": thick, "names": names}


def present(bound: BlockDevice) -> dict[str, Any]:
    """Return the source of a volume that has its block device already, known by its identity."""
    return {"kind": "device", "name": bound.name, "identity": bound.identity}


@contextmanager
def attached(source: Source) -> Iterator[OpenDevice]:
    """Yield the device of a source, attached if it is an image without one. It stays attached after the block.

    Raises Mismatch for a device that is not the source's, or that somebody attached otherwise; Busy if a new device's number
    is still shown for its last owner; OSError.
    """
    arguments = {key: value for key, value in source.items() if key != "kind"}
    with _KINDS[source["kind"]](**arguments) as opened:
        yield opened


@contextmanager
def _image(path: str, thick: bool, names: str) -> Iterator[OpenDevice]:
    with loop.opened(_attached(path, thick, names)) as opened:
        yield opened


@contextmanager
def _present(name: str, identity: str) -> Iterator[OpenDevice]:
    with device.held(name, identity) as opened:
        yield opened


_KINDS: dict[str, Callable[..., AbstractContextManager[OpenDevice]]] = {"image": _image, "device": _present}


def described(opened: OpenDevice) -> dict[str, Any]:
    """Return an open device as JSON, for whoever asks next; `backing`: the file behind it, (0, 0) if there is none."""
    bound = opened.device
    loop_device = loop_ioctl.describe(opened.fd, bound.minor) if bound.major == loop_ioctl.MAJOR else None
    return {
        "path": bound.path,
        "name": bound.name,
        "major": bound.major,
        "minor": bound.minor,
        "identity": bound.identity,
        "backing": loop_device.backing if loop_device else (0, 0),
    }


def _attached(path: str, thick: bool, names: str) -> LoopDevice:
    """Return the device of an image. An adopted one may be what an attach left that ended half-way, so it is set as a new one is."""
    found = loop.find(path, names=names)
    fresh = found is None
    if found is None:
        found = loop.attach(path, names=names)
    else:
        _check_adopted(found)
        if loop.size(found) != os.stat(path).st_size:
            loop.resize(found)
    try:
        loop.tune(found)
        if thick:
            loop.refuse_discard(found)
        if fresh:
            _reject_stale_mounts(found)
    except BaseException:
        if fresh:
            loop.detach(found, mounted=lambda _: [])  # what shows the number is not of this image
        raise
    return found


def _reject_stale_mounts(found: LoopDevice) -> None:
    """Raise Busy if a new device is shown somewhere: a bind of the number's last owner would hand it this volume's data."""
    stale = [mount.point for mount in mountinfo.mounts_of(found.major, found.minor, found.name)]
    if stale:
        raise Busy(f"{found.path} is still shown at {', '.join(stale)} for its last owner: unmount it there")


def _check_adopted(found: LoopDevice) -> None:
    block, direct = (
        loop_ioctl.sysfs(found.number, "queue/logical_block_size"),
        loop_ioctl.sysfs(found.number, "loop/dio"),
    )
    if (block, direct) != (str(loop.BLOCK_SIZE), "1"):
        raise Mismatch(
            errno.EINVAL,
            f"{found.path} was attached by another program with {block}-byte blocks and dio={direct}: detach it",
        )
