"""What helper processes do with lvm. Arguments and results are plain JSON; errors are OSErrors with an errno."""

from collections.abc import Sequence
from typing import Any

from csi_driver.host.lvm import discovery, program, uncommitted
from csi_driver.host.lvm.recovery import resume_suspended


def find_lvm(in_container: bool) -> dict[str, Any]:
    """Find the lvm to run, as `program.find` does. Returns the fields of an LvmProgram."""
    found = program.find(in_container)
    return {"through_host": found.through_host, "version": found.version, "udev": found.udev}


def lvm(args: Sequence[str], config: str, through_host: bool, seconds: float) -> str:
    """Run an lvm command and return its standard output: see `program.run`. Raises CommandError."""
    return program.run(args, config, through_host, seconds)[0]


def find_pool_devices(vg: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the uuid of a volume group and the stable paths of its disks: see `discovery.devices_of`."""
    uuid, devices = discovery.devices_of(vg, as_program(found), seconds)
    return {"vg_uuid": uuid, "devices": devices}


def resume_pool(vg_uuid: str) -> list[str]:
    """Resume what a killed lvm left suspended: see `recovery.resume_suspended`. Returns the names of the devices."""
    return resume_suspended(vg_uuid)


def remove_uncommitted(vg_uuid: str, pool: str, thin_id: int, transaction: int, seconds: float) -> None:
    """Remove what a killed lvm has left in a thin pool, so that it takes changes again: see `uncommitted.remove_uncommitted`."""
    uncommitted.remove_uncommitted(vg_uuid, pool, thin_id, transaction, seconds)


def as_program(found: dict[str, Any]) -> program.LvmProgram:
    """Return the LvmProgram of the fields that `find_lvm` returned."""
    major, minor, patch = found["version"]
    return program.LvmProgram(bool(found["through_host"]), (major, minor, patch), bool(found["udev"]))
