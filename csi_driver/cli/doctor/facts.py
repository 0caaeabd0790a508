"""What `tidemark doctor` finds on this machine. Nothing is changed, and what cannot be seen is None."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.backends.registry import BACKENDS, DEFAULT_BACKEND
from csi_driver.host import clock
from csi_driver.host.block import lvm
from csi_driver.host.commands import missing_tools
from csi_driver.host.fs import files, filesystems, mountinfo

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A directory that is, or is to be, a pool. `fs_type`: empty if it cannot be seen; `error`: why."""

    path: str
    fs_type: str = ""
    reflink: bool | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """This machine, as far as this process can see it. None: it cannot be seen; `kubelet`: empty if there is none."""

    release: str
    root: bool
    capabilities: int | None
    file_systems: frozenset[str] | None
    missing_tools: tuple[str, ...]
    loop_control: bool | None
    lvm: str
    lvm_seen: bool
    tracefs: str | None
    clock: clock.ClockState | None
    kubelet: str
    kubelet_parts: frozenset[str]
    kubelet_shared: bool | None
    pools: tuple[PoolFacts, ...]
    agent: str
    agent_error: str


def collect(pools: Sequence[str], kubelet: str, agent: str, agent_error: str) -> Facts:
    """Look at this machine. `pools`: directories; `agent`: the version of the one that answers, or empty and the reason."""
    kind = BACKENDS[DEFAULT_BACKEND]
    there = os.path.isdir(kubelet)
    return Facts(
        release=os.uname().release,
        root=os.geteuid() == 0,
        capabilities=_seen(_capabilities),
        file_systems=_seen(_file_systems),
        missing_tools=tuple(missing_tools(kind.tools)),
        loop_control=_loop_control(kind.device_nodes),
        lvm=lvm.why_looks_into_volumes(IMAGE),
        lvm_seen=os.access("/etc/lvm/lvm.conf", os.R_OK) or not os.path.exists("/etc/lvm"),
        tracefs=_seen(_tracefs),
        clock=_seen(clock.state),
        kubelet=kubelet if there else "",
        kubelet_parts=frozenset(_seen(lambda: os.listdir(kubelet)) or ()) if there else frozenset(),
        kubelet_shared=_seen(lambda: mountinfo.holding(kubelet).shared) if there else None,
        pools=tuple(pool_facts(path) for path in pools),
        agent=agent,
        agent_error=agent_error,
    )


def pool_facts(path: str) -> PoolFacts:
    """Look at a directory that is, or is to be, a pool."""
    try:
        kind = files.file_system_type(path)
        return PoolFacts(path, kind, filesystems.xfs_has_reflink(path) if kind == "xfs" else None)
    except OSError as error:
        return PoolFacts(path, error=os.strerror(error.errno or 0))


def _capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    if match is None:
        raise OSError
    return int(match[1], 16)


def _file_systems() -> frozenset[str]:
    """Those of the running kernel, with the modules that it could load."""
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file if line.strip()}
    directory = f"/lib/modules/{os.uname().release}"
    for name in ("modules.builtin", "modules.dep"):
        try:
            with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
                known.update(re.findall(r"kernel/fs/(\w+)/\1\.ko", file.read()))
        except OSError:
            continue
    return frozenset(known)


def _loop_control(nodes: Sequence[str]) -> bool | None:
    if os.geteuid() != 0 and all(os.path.exists(node) for node in nodes):
        return None
    return all(os.access(node, os.R_OK | os.W_OK) for node in nodes)


def _tracefs() -> str:
    """Return where the kernel's tracing is mounted; empty if nowhere."""
    return next((mount.point for mount in mountinfo.read() if mount.fs_type == "tracefs"), "")


def _seen(look: Callable[[], _Found]) -> _Found | None:
    try:
        return look()
    except OSError:
        return None
