"""What the operator of a node may decide, as plain values. Each default carries its reason.

Read by the composition root (agent/main.py) and built by the command line (cli/agent.py); lower layers receive the values
that they need and never see this class. A value that contradicts itself is refused here, before anything is opened.
"""

import json
import socket
from dataclasses import asdict, dataclass, field
from typing import Literal

from csi_driver import DRIVER_NAME
from csi_driver.backends.registry import BACKENDS
from csi_driver.domain.ids import is_pool_name
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

GIB = 1 << 30
MIB = 1 << 20

DEFAULT_POOL = "default"
"""The name of a pool given by its path alone: a StorageClass without a `pool` parameter uses the first pool anyway."""

DEFAULT_MOUNT = "/var/lib/tidemark/pool"
"""Under /var/lib: data of the host's own that must survive a reboot."""

DEFAULT_RUNTIME_DIRECTORY = "/run/tidemark"
"""In a container it must be the host's: an agent that comes after this one reads what is noted there."""

SMALLEST_IMAGE = 300 * MIB
"""mkfs.xfs refuses to make anything smaller."""

NEW_IMAGE = 20 * GIB
"""Enough for a few real volumes; small enough for the root disk of a common node."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool of this agent. `path` is a directory for reflink, and empty for memory. The first pool is the default."""

    name: str
    backend: str
    path: str

    def __post_init__(self) -> None:
        if not is_pool_name(self.name):
            raise BadSetting(
                f"{self.name!r} is no pool's name: use at most 31 lower-case letters, digits and inner dashes"
            )
        kind = BACKENDS.get(self.backend)
        if kind is None:
            raise BadSetting(f"pool {self.name}: backend {self.backend!r} is unknown: use {' or '.join(BACKENDS)}")
        if error := kind.path_error(self.path):
            raise BadSetting(f"pool {self.name}: {error}")


@dataclass(frozen=True, slots=True)
class PoolImage:
    """A file that holds an XFS file system for a pool, for a node without a disk to spare.

    Made, formatted and mounted at start where it is not there yet; found again by device and inode, never attached
    twice. Left mounted when the agent stops, because volumes may be in use.
    """

    path: str
    """The file. Its directory must exist: a host's disk that is not mounted must not be written below."""
    mount: str = DEFAULT_MOUNT
    """Where it is mounted; made if missing. A pool at this path, or the only pool, lies in it."""
    size: int | None = None
    """Bytes. None: NEW_IMAGE for one that is made, and one that is there keeps its size. An image grows to what is said here at a
    start, while its volumes are in use; it never shrinks."""
    sparse: bool = False
    """False: allocated in full, so that a full host disk cannot become an I/O error inside a guest. True: for a demo."""

    def __post_init__(self) -> None:
        for what, path in (("--pool-image", self.path), ("--pool-mount", self.mount)):
            if not path.startswith("/"):
                raise BadSetting(f"{what} {path!r} is not an absolute path: give one")
        if self.size is not None and self.size < SMALLEST_IMAGE:
            raise BadSetting(f"--pool-size {self.size} is less than XFS can be made on: give 300Mi or more")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `tidemark agent` is told."""

    pools: tuple[PoolSpec, ...]
    """At least one. Without --pool and with an image: `default=reflink:<mount of the image>`."""

    image: PoolImage | None = None
    """None: the pools' directories are there already. A pool on a real disk is the better one."""

    pool_init: bool = False
    """False: a new pool is made only in an empty directory that is a mount point, because a disk that failed to mount
    would otherwise get a shadow pool below its mount point. True: in any empty directory."""

    endpoint: str = DEFAULT_ENDPOINT
    """The CSI socket: `unix:///absolute/path`. No TCP here: whoever reaches this socket is root on the node."""

    node_name: str = field(default_factory=socket.gethostname)
    """The owner in every id, so it must stay the same: the host's name, and spec.nodeName in a cluster."""

    overcommit: float = 2.0
    """How often a pool's size may be promised: disks are thin and rarely full, and twice leaves time to react."""

    reserve: int | None = None
    """Bytes kept free in every pool; None: 5 %, at least 1 GiB but no more than 10 %, enough to notice before guests see ENOSPC."""

    max_snapshots: int = 256
    """Snapshots of one volume: XFS slows down with owners of a block, and a list of more helps nobody."""

    freeze_deadline: float = 5.0
    """Seconds that a snapshot may hold a file system still: most databases' own timeouts begin at ten."""

    metrics_address: tuple[str, int] | None = None
    """Host and port of /metrics, /healthz and /readyz; None: no listener. A laptop needs none; the chart gives one."""

    log_format: Literal["console", "json"] = "console"
    """Lines for people by default; JSON where a machine collects them."""

    listen: tuple[str, int] | None = None
    """Host and port for controllers, with mutual TLS; None: the socket alone, all that a single node needs."""

    certificates: str = ""
    """A directory with ca.crt, tls.crt and tls.key, as Kubernetes mounts a Secret of type TLS. Goes with `listen`."""

    register: str = ""
    """The kubelet's plugins_registry as this process sees it; empty: no kubelet. Given, this is a container of a pod, and
    pools must lie on the host's own mounts."""

    kubelet_socket: str = ""
    """The path of `endpoint` as the kubelet sees it. Goes with `register`."""

    runtime_directory: str = DEFAULT_RUNTIME_DIRECTORY
    """A directory of the node's /run: what is noted there, such as freezes under way, does not outlive a boot."""

    driver_name: str = DRIVER_NAME
    """What GetPluginInfo answers and CSIDriver is called: another only to run two of them on one cluster."""

    volume_health: bool = False
    """False: NodeGetVolumeHealth is served and not announced, since the capability is alpha, and clients of an older CSI fail
    at one that they do not know. True: for a kubelet with the feature gate CSIVolumeHealth."""

    def __post_init__(self) -> None:
        if not self.pools:
            raise BadSetting("no pool is given: --pool /srv/tidemark for a directory on XFS, or --pool-image FILE")
        names = [pool.name for pool in self.pools]
        paths = [pool.path for pool in self.pools if pool.path]
        if len(set(names)) != len(names):
            raise BadSetting(f"two pools have the same name ({', '.join(names)}): name them apart, NAME=BACKEND:PATH")
        if len(set(paths)) != len(paths):
            raise BadSetting(
                f"two pools have the same path ({', '.join(paths)}): a pool lies in a directory of its own"
            )
        if not self.endpoint.startswith("unix:///"):
            raise BadSetting(f"endpoint {self.endpoint!r} is not a socket: write unix:///run/tidemark/csi.sock")
        if not self.node_name:
            raise BadSetting("the node's name is empty: give --node-name, or set the host's name")
        if self.overcommit <= 0:
            raise BadSetting(f"--overcommit {self.overcommit} promises nothing: 1.0 promises all space once, 2.0 twice")
        if self.reserve is not None and self.reserve < 0:
            raise BadSetting(f"--reserve {self.reserve} is negative: give 0 or more bytes")
        if self.max_snapshots < 1:
            raise BadSetting(f"--max-snapshots {self.max_snapshots} allows none: give 1 or more")
        if self.freeze_deadline <= 0:
            raise BadSetting(f"--freeze-deadline {self.freeze_deadline} leaves no time: give seconds above 0")
        if (self.listen is None) != (not self.certificates):
            raise BadSetting(
                "--listen and --certificates go together: there is no plain text, and nothing else to certify"
            )
        if (not self.register) != (not self.kubelet_socket):
            raise BadSetting(
                "--register and --kubelet-socket go together: the kubelet is told the path that it can open"
            )
        for what, path in (
            ("--certificates", self.certificates),
            ("--register", self.register),
            ("--kubelet-socket", self.kubelet_socket),
            ("--runtime-dir", self.runtime_directory),
        ):
            if path and not path.startswith("/"):
                raise BadSetting(f"{what} {path!r} is not an absolute path: give one")

    @property
    def socket_path(self) -> str:
        """The endpoint as a path."""
        return self.endpoint.removeprefix("unix://")


def dump(settings: Settings) -> str:
    """Settings as one line of JSON, for the process that is to be the agent. They hold no secrets."""
    return json.dumps(asdict(settings), separators=(",", ":"))


def load(text: str) -> Settings:
    """What `dump` wrote. Raises BadSetting as the constructors do."""
    raw = json.loads(text)
    raw["pools"] = tuple(PoolSpec(**pool) for pool in raw["pools"])
    raw["image"] = PoolImage(**raw["image"]) if raw["image"] else None
    for name in ("metrics_address", "listen"):
        raw[name] = tuple(raw[name]) if raw[name] else None
    return Settings(**raw)
