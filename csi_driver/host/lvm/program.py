"""The lvm that is run: the host's where this process is in a container and the host has one, else the one beside it.

Two lvms on one machine would each believe what they know of its locks and devices; and the host's knows its udev, with which it
has to agree on who makes a device's nodes.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from csi_driver.host import commands
from csi_driver.host.errors import NOT_STARTED, CommandError, Unsupported
from csi_driver.host.lvm.configuration import OLDEST, Version, configuration, parse_version, version_text

_VERSION_SECONDS = 10.0
_ENTER = ("nsenter", "--target", "1", "--mount", "--ipc", "--")
"""Mounts: its program, its /dev and its locks; IPC: the semaphores by which lvm and udevd know of each other."""
_UDEV = "/run/udev/control"
"""The socket of a running udevd."""


@dataclass(frozen=True, slots=True)
class LvmProgram:
    """`through_host`: it is the host's. `udev`: udevd runs where it runs, and makes the nodes of devices."""

    through_host: bool
    version: Version
    udev: bool

    def configuration(self, devices: Sequence[str], vg: str = "", new_disks: bool = False) -> str:
        """Return what to give it as --config: see `configuration.configuration`."""
        return configuration(devices, self.version, udev=self.udev, vg=vg, new_disks=new_disks)


def find(in_container: bool) -> LvmProgram:
    """Find the lvm to run. Raises Unsupported for one that is too old or missing, CommandError if the host cannot be entered."""
    enters = in_container and _is_other_namespace("mnt")
    if enters and (version := _version(_ENTER)) is not None:
        udev = os.path.exists(f"/proc/1/root{_UDEV}")
        return LvmProgram(True, _new_enough(version, "the node's lvm"), udev)
    version = _version(())
    if version is None:
        raise Unsupported(errno.ENOENT, "lvm is not installed: install Debian's lvm2 and thin-provisioning-tools")
    return LvmProgram(False, _new_enough(version, "lvm"), not in_container and os.path.exists(_UDEV))


def run(args: Sequence[str], config: str, through_host: bool, seconds: float) -> tuple[str, str]:
    """Run an lvm command and return its standard output and its standard error.

    `args`: the command, e.g. lvs, and its arguments. `seconds`: then it is killed. Raises CommandError.
    """
    start = _ENTER if through_host else ()
    return commands.run_both((*start, "lvm", args[0], "--config", config, *args[1:]), seconds)


def _is_other_namespace(kind: str) -> bool:
    """Whether process 1 has another namespace than this process: it is the host's where the pod shares its pids."""
    with suppress(OSError):
        return os.readlink(f"/proc/1/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    return False


def _version(start: Sequence[str]) -> Version | None:
    """The version of the lvm that is there; None: there is none."""
    try:
        answer = commands.run((*start, "lvm", "version"), _VERSION_SECONDS)
    except CommandError as error:
        if error.rc == NOT_STARTED:  # also nsenter's, for a program that it does not find
            return None
        raise
    version = parse_version(answer)
    if version is None:
        raise Unsupported(errno.EPROTO, f"lvm does not say its version: {answer.strip()[:200]!r}")
    return version


def _new_enough(version: Version, what: str) -> Version:
    if version < OLDEST:
        raise Unsupported(
            errno.EOPNOTSUPP,
            f"{what} is {version_text(version)}, and {version_text(OLDEST)} or later is needed: upgrade lvm2 there",
        )
    return version
