"""The one place that names backends: how a pool of each kind is written down, what it needs of the node, and how it is opened.

A new backend is one more entry, and a rig in tests/contract/contract_rig.py. Implementations are imported when they are opened:
the command line reads this module too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csi_driver.backends.lvm import names as lvm_names
from csi_driver.backends.options import PoolOptions
from csi_driver.host.commands import FILE_SYSTEM_TOOLS

if TYPE_CHECKING:
    from csi_driver.backends.base import Backend
    from csi_driver.host.helper.client import HelperPool


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A technology of which pools are made.

    `path_error`: why a pool's path cannot be one of this kind, with what to do; empty: it can. `make`: make the backend, which
    opens nothing yet. `tools`: programs that must be installed, in the Debian packages `packages`. `device_nodes`: what
    must be readable and writable below /dev. `block`: volumes are block devices of this node, which its LVM may look into.
    """

    path_error: Callable[[str], str]
    make: "Callable[[PoolOptions, HelperPool], Backend]"
    tools: tuple[str, ...] = ()
    packages: str = ""
    device_nodes: tuple[str, ...] = ()
    block: bool = False


def _absolute(path: str) -> str:
    return "" if path.startswith("/") else f"{path!r} is not an absolute path: give the directory of the pool"


def _reflink(options: PoolOptions, helpers: "HelperPool") -> "Backend":
    from csi_driver.backends.reflink import ReflinkBackend

    return ReflinkBackend(options, helpers)


def _lvm(options: PoolOptions, helpers: "HelperPool") -> "Backend":
    from csi_driver.backends.lvm.backend import LvmBackend

    return LvmBackend(options, helpers)


def _memory(options: PoolOptions, _: "HelperPool") -> "Backend":
    from csi_driver.backends.memory.backend import DEFAULT_TOTAL, MemoryBackend

    return MemoryBackend(options.name, options.owner, DEFAULT_TOTAL)


BACKENDS: dict[str, BackendKind] = {
    "reflink": BackendKind(
        _absolute,
        _reflink,
        FILE_SYSTEM_TOOLS,
        "xfsprogs and e2fsprogs",
        ("/dev/loop-control",),
        block=True,
    ),
    "lvm": BackendKind(
        lvm_names.path_error,
        _lvm,
        (*FILE_SYSTEM_TOOLS, "lvm", "dmsetup", "thin_ls", "thin_dump"),
        "lvm2, thin-provisioning-tools, xfsprogs and e2fsprogs",
        ("/dev/mapper/control",),
        block=True,
    ),
    # Everything is kept in this process: for tests and for `tidemark demo`.
    "memory": BackendKind(lambda _: "", _memory),
}

DEFAULT_BACKEND = "reflink"
"""Of a pool that is given by its path alone."""


def parse_pool(text: str, default_name: str) -> tuple[str, str, str]:
    """Return name, kind and path of `NAME=BACKEND:PATH`, `NAME=PATH`, or a path alone. What they are is not checked."""
    name, separator, rest = text.partition("=")
    if not separator or text.startswith("/"):
        name, rest = default_name, text
    kind, separator, path = rest.partition(":")
    if rest.startswith("/") or (not separator and rest not in BACKENDS):
        return name, DEFAULT_BACKEND, rest
    return name, kind, path
