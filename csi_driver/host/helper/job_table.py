"""The jobs of helper processes: everything that may hang in the kernel. Arguments and results are plain JSON.

The fork server loads the modules that do the work once: that takes 3 MiB; loading them in each child would take 29 ms.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from csi_driver.host import commands, pool_image
from csi_driver.host.block import loop, thin_reader, thin_space
from csi_driver.host.freeze import freeze, thaw, unfrozen
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.fs import condition
from csi_driver.host.helper import device_jobs
from csi_driver.host.lvm import jobs as lvm_jobs


def ping(pause: float = 0.0) -> dict[str, int]:
    """Do nothing for `pause` seconds (fault injection: a job that takes long). Returns the child's pid."""
    if pause:
        time.sleep(pause)
    return {"pid": os.getpid()}


def sync(point: str, major: int, minor: int) -> None:
    """Write back the file system at `point`, the one on the device `major`:`minor`. Raises FreezeError NotOurs, OSError."""
    freeze_state.sync_mount(point, major, minor)


def sync_device(device: str) -> None:
    """Write back a block device node, so that all writes through it are in its image. Raises OSError."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def statvfs(point: str, major: int | None = None, minor: int | None = None) -> dict[str, int]:
    """Return the space of the file system at `point` (fields of statvfs(3)); with a device number only if it is that device's.

    `shut_down`: 1 if it refuses an open as one that was shut down; never without a number. Raises OSError; FreezeError
    NotOurs.
    """
    shut_down = 0
    if major is None or minor is None:
        status = os.statvfs(point)
    else:
        try:
            fd = freeze_state.open_mount(point, major, minor)
        except OSError as error:
            if not condition.is_of_shut_down(error):
                raise
            shut_down = 1
            fd = freeze_state.open_mount(point, major, minor, os.O_PATH)
        try:
            status = os.fstatvfs(fd)
        finally:
            os.close(fd)
    return {"shut_down": shut_down} | {name: getattr(status, name) for name in dir(status) if name.startswith("f_")}


def command(argv: Sequence[str], seconds: float) -> str:
    """Run a command and return its standard output; `seconds`: its deadline, before the job's own. Raises CommandError."""
    return commands.run(tuple(argv), seconds)


TABLE: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        freeze.cut,  # called with `states` and `answer` besides
        thaw.thaw,
        thaw.thaw_device,
        unfrozen.perform,
        ping,
        sync,
        sync_device,
        statvfs,
        command,
        pool_image.check_pool_place,
        pool_image.make_pool_image,
        pool_image.discard_pool_drafts,
        pool_image.remove_pool_image,
        pool_image.grow_pool_image,
        pool_image.mount_pool_image,
        device_jobs.loop_identities,
        device_jobs.attach,
        device_jobs.loop_detach,
        device_jobs.loop_detach_held,
        loop.detach_unverified,
        device_jobs.set_read_only,
        device_jobs.make_file_system,
        device_jobs.grow_copy,
        device_jobs.mount,
        device_jobs.bind,
        device_jobs.is_shut_down,
        device_jobs.umount,
        device_jobs.grow,
        device_jobs.content_format,
        device_jobs.complaint,
        device_jobs.zero,
        device_jobs.has_data_at_ends,
        thin_reader.probe_thin,
        thin_reader.remove_left,
        thin_space.thin_usage,
        thin_space.freed_chunks,
        lvm_jobs.find_lvm,
        lvm_jobs.lvm,
        lvm_jobs.find_pool_devices,
        lvm_jobs.resume_pool,
        lvm_jobs.remove_uncommitted,
    )
}
