"""Checks at start that the host has what every volume needs, so that no volume is the first to miss it."""

import os

import structlog

from csi_driver.agent.settings import Settings
from csi_driver.domain.errors import Precondition
from csi_driver.host.block import lvm
from csi_driver.host.block.device_users import TENANTS_DATA
from csi_driver.host.commands import missing_tools

log = structlog.get_logger()


def check_host(settings: Settings) -> None:
    """Raise Precondition if a tool or the loop driver is missing; warn if LVM reads the content of volumes."""
    if all(spec.backend == "memory" for spec in settings.pools):
        return
    if missing := missing_tools():
        raise Precondition(f"{', '.join(missing)} not found: install Debian's xfsprogs and e2fsprogs")
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        raise Precondition("/dev/loop-control cannot be opened: run as root, on a kernel with loop devices")
    if why := lvm.why_looks_into_volumes():
        log.warning("LVM of this node looks into disks of its tenants", why=why, what_to_do=TENANTS_DATA)
