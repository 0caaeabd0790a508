"""Checks at start that the host has what every volume needs, so that no volume is the first to miss it."""

import os

import structlog

from csi_driver.agent.settings import Settings
from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.backends.registry import BACKENDS
from csi_driver.domain.errors import Precondition
from csi_driver.host.block import lvm
from csi_driver.host.block.device_users import TENANTS_DATA
from csi_driver.host.commands import missing_tools

log = structlog.get_logger()


def check_host(settings: Settings) -> None:
    """Raise Precondition if a tool or a device node is missing; warn if LVM reads the content of volumes."""
    kinds = [BACKENDS[name] for name in dict.fromkeys(spec.backend for spec in settings.pools)]
    for kind in kinds:
        if missing := missing_tools(kind.tools):
            raise Precondition(f"{', '.join(missing)} not found: install Debian's {kind.packages}")
        for node in kind.device_nodes:
            if not os.access(node, os.R_OK | os.W_OK):
                raise Precondition(f"{node} cannot be opened: run as root, on a kernel that has that device")
    if any(kind.block for kind in kinds) and (why := lvm.why_looks_into_volumes(IMAGE)):
        log.warning("LVM of this node looks into disks of its tenants", why=why, what_to_do=TENANTS_DATA)
