"""Volume groups that cannot be served, since nobody can tell which is meant."""

import pytest
from thin_rig import sh

from csi_driver.backends.lvm.commands import Commands
from csi_driver.domain.errors import Unavailable
from csi_driver.host.helper.client import HelperPool

DISKS = ("/dev/ubdb", "/dev/ubdc")


def one(disk: str) -> list[str]:
    """Options for an lvm that sees one disk alone."""
    return ["--config", f'devices {{ filter=["a|{disk}|","r|.*|"] global_filter=["a|{disk}|","r|.*|"] }}', "-q"]


async def test_two_volume_groups_of_one_name_are_refused_with_their_disks() -> None:
    helpers = HelperPool()
    await helpers.start()
    try:
        for disk in DISKS:
            sh("pvcreate", *one(disk), disk)
            sh("vgcreate", *one(disk), "twins", disk)
        with pytest.raises(
            Unavailable, match=r"2 volume groups called twins: .*/dev/ubd[bc].*/dev/ubd[bc].*vgrename UUID"
        ):
            await Commands(helpers, "twins").open()
        with pytest.raises(Unavailable, match="no disk of this node has a volume group nowhere"):
            await Commands(helpers, "nowhere").open()
    finally:
        await helpers.stop()
        for disk in DISKS:
            sh("vgremove", *one(disk), "-f", "-y", "twins", check=False)
            sh("pvremove", *one(disk), "-y", disk, check=False)
