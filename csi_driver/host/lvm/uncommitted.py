"""The way out for a thin pool that refuses everything, since an lvm was killed between two of its steps.

lvm first notes in the volume group that it will make a thin device, then the kernel makes it, then both raise the number of the
transaction. Killed after the second step, the next lvm tells the kernel to make the device again, which refuses ("already contain
thin device with device_id 3. Manual intervention may be required"), and so does every later change of the pool (measured: once in 40
kills). Nobody was promised that device, so it is removed, and lvm makes it again.
"""

import errno

from csi_driver.host import commands
from csi_driver.host.block import device as block_device
from csi_driver.host.dm import ioctl, status
from csi_driver.host.errors import Mismatch

_POOL = "-tpool"


def remove_uncommitted(vg_uuid: str, pool: str, thin_id: int, transaction: int, seconds: float) -> None:
    """Remove a thin device that the kernel has made and the volume group does not yet count.

    `pool`: name of the thin pool's device. `transaction`: that of the volume group. `seconds`: for reading the pool's metadata. Raises
    Mismatch, with nothing changed, for any other device: it may hold somebody's data.
    """
    device = ioctl.info(name=pool)
    if not device.uuid.startswith(f"LVM-{vg_uuid.replace('-', '')}") or not device.uuid.endswith(_POOL):
        raise Mismatch(errno.ESTALE, f"{pool} is not a thin pool of the volume group {vg_uuid}")
    found = status.thin_pool(ioctl.status(uuid=device.uuid, commit=True))
    made_in = _made_in(device.uuid, thin_id, seconds)
    if why := why_not(made_in, found.transaction, transaction):
        raise Mismatch(errno.ESTALE, f"thin device {thin_id} of {pool} is not removed: {why}")
    ioctl.message(device.uuid, f"delete {thin_id}")


def why_not(made_in: int | None, kernel: int, group: int) -> str:
    """Return why a thin device may be somebody's; empty: it is what a killed lvm has left.

    `made_in`: the transaction of the kernel in which it was made, None: there is none. `kernel`, `group`: the transactions of both.
    """
    if made_in is None:
        return "the kernel has none of that number"
    if group != kernel + 1:
        return f"the volume group is at transaction {group} and the kernel at {kernel}, which no killed lvm leaves"
    if made_in != kernel:
        return f"it was made in transaction {made_in} and the kernel is at {kernel}: it may hold data"
    return ""


def _made_in(pool_uuid: str, thin_id: int, seconds: float) -> int | None:
    """The transaction in which a thin device was made, from a snapshot of the pool's metadata."""
    major, minor = map(int, ioctl.table(uuid=pool_uuid)[0].text.split()[0].split(":"))
    node = f"/dev/{block_device.name_of(major, minor)}"
    ioctl.message(pool_uuid, "reserve_metadata_snap")
    try:
        answer = commands.run(
            ("thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV,TRANSACTION", node), seconds
        )
    finally:
        ioctl.message(pool_uuid, "release_metadata_snap")
    found = dict(line.split() for line in answer.splitlines() if line.strip())
    return int(found[str(thin_id)]) if str(thin_id) in found else None
