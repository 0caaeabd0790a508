"""The settings of an agent, as plain values. Each default has its reason.

The command line (cli/agent.py) builds them, the composition root (agent/main.py) reads them, and lower layers receive only
the values that they need. Contradictions are refused here, before anything is opened.
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
"""Name of a pool that is configured by its path alone: a StorageClass without `pool` uses the first pool in any case."""

DEFAULT_MOUNT = "/var/lib/tidemark/pool"
"""Under /var/lib: data of the host that must survive a reboot."""

DEFAULT_RUNTIME_DIRECTORY = "/run/tidemark"
"""In a container it must be the host's: an agent that comes after this one reads what is noted there."""

SMALLEST_IMAGE = 300 * MIB
"""mkfs.xfs refuses smaller file systems."""

NEW_IMAGE = 20 * GIB
"""Enough for a few real volumes; small enough for the root disk of a common node."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool of this agent. `path` is a directory for reflink, empty for memory. The first pool is the default."""

    name: str
    backend: str
    path: str

    def __post_init__(self) -> None:
        if not is_pool_name(self.name):
            raise BadSetting(
                f"{self.name!r} is not a valid pool name: use at most 31 lower-case letters, digits and inner dashes"
            )
        kind = BACKENDS.get(self.backend)
        if kind is None:
            raise BadSetting(f"pool {self.name}: backend {self.backend!r} is unknown: use {' or '.join(BACKENDS)}")
        if error := kind.path_error(self.path):
            raise BadSetting(f"pool {self.name}: {error}")


@dataclass(frozen=True, slots=True)
class PoolImage:
    """A file that holds an XFS file system for a pool, for a node without a spare disk.

    It is created, formatted and mounted at start if missing; it is found again by device and inode, and never attached
    twice. It stays mounted when the agent stops, because volumes may be in use.
    """

    path: str
    """The file. Its directory must exist: nothing may be written below the mount point of a disk that is not mounted."""
    mount: str = DEFAULT_MOUNT
    """Its mount point, created if missing. A pool at this path, or the only pool, is in it."""
    size: int | None = None
    """Bytes. None: NEW_IMAGE for a new image; an existing one keeps its size. An image grows to this size at start, also while
    its volumes are in use; it never shrinks."""
    sparse: bool = False
    """False: allocated in full, so that a full host disk cannot cause I/O errors in a volume. True: for a demo."""

    def __post_init__(self) -> None:
        for option, path in (("--pool-image", self.path), ("--pool-mount", self.mount)):
            if not path.startswith("/"):
                raise BadSetting(f"{option} {path!r} is not an absolute path: use one")
        if self.size is not None and self.size < SMALLEST_IMAGE:
            raise BadSetting(f"--pool-size {self.size} is too small for XFS: use at least 300Mi")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `tidemark agent`."""

    pools: tuple[PoolSpec, ...]
    """At least one. Without --pool and with an image: `default=reflink:<mount of the image>`."""

    image: PoolImage | None = None
    """None: the pools' directories exist already. A pool on a real disk is better."""

    pool_init: bool = False
    """False: a new pool is created only in an empty directory that is a mount point: otherwise a disk that failed to mount
    would get a second pool below its mount point. True: in any empty directory."""

    endpoint: str = DEFAULT_ENDPOINT
    """The CSI socket: `unix:///absolute/path`. No TCP: access to this socket is root access to the node."""

    node_name: str = field(default_factory=socket.gethostname)
    """The owner in every id, so it must stay the same: the host's name, and spec.nodeName in a cluster."""

    overcommit: float = 2.0
    """Overcommit ratio: volumes are thin and rarely full, and a ratio of 2 leaves time to react."""

    reserve: int | None = None
    """Bytes kept free in every pool; None: 5 %, at least 1 GiB but no more than 10 %, enough to notice before pods see ENOSPC."""

    max_snapshots: int = 256
    """Snapshots of one volume: XFS slows down with the number of owners of a block."""

    freeze_deadline: float = 5.0
    """Seconds for which a snapshot may freeze a file system: most databases' own timeouts begin at ten."""

    metrics_address: tuple[str, int] | None = None
    """Host and port of /metrics, /healthz and /readyz; None: no listener. A single node needs none; the chart sets one."""

    metrics_volumes: int = 500
    """How many volumes have series of their own in /metrics, the largest ones; 0: none. A node runs a few hundred pods at most,
    and 500 volumes are 2,000 series, which cost a Prometheus about 8 MB of memory; thousands of clones are not worth more."""

    log_format: Literal["console", "json"] = "console"
    """Lines for people by default; JSON for log collectors."""

    listen: tuple[str, int] | None = None
    """Host and port for controllers, with mutual TLS; None: only the socket, which is enough for a single node."""

    certificates: str = ""
    """A directory with ca.crt, tls.crt and tls.key, as Kubernetes mounts a Secret of type TLS. Needs `listen`."""

    register: str = ""
    """The kubelet's plugins_registry as this process sees it; empty: no kubelet. If set, this process is a container of a pod,
    and pools must be on mounts of the host."""

    kubelet_socket: str = ""
    """The path of `endpoint` as the kubelet sees it. Needs `register`."""

    runtime_directory: str = DEFAULT_RUNTIME_DIRECTORY
    """A directory of the node's /run: what is noted there, such as freezes under way, does not outlive a boot."""

    driver_name: str = DRIVER_NAME
    """Name in GetPluginInfo and of the CSIDriver object: another one only to run two drivers in one cluster."""

    volume_health: bool = False
    """False: NodeGetVolumeHealth is served and not announced, since the capability is alpha, and clients of an older CSI fail
    at one that they do not know. True: for a kubelet with the feature gate CSIVolumeHealth."""

    def __post_init__(self) -> None:
        if not self.pools:
            raise BadSetting(
                "no pool is configured: use --pool /srv/tidemark for a directory on XFS, or --pool-image FILE"
            )
        names = [pool.name for pool in self.pools]
        paths = [pool.path for pool in self.pools if pool.path]
        if len(set(names)) != len(names):
            raise BadSetting(f"names of pools must be unique ({', '.join(names)}): use NAME=BACKEND:PATH")
        if len(set(paths)) != len(paths):
            raise BadSetting(
                f"paths of pools must be unique ({', '.join(paths)}): each pool needs a directory of its own"
            )
        if not self.endpoint.startswith("unix:///"):
            raise BadSetting(f"endpoint {self.endpoint!r} is not a socket: use unix:///run/tidemark/csi.sock")
        if not self.node_name:
            raise BadSetting("the node name is empty: set --node-name, or the host's name")
        if self.overcommit <= 0:
            raise BadSetting(
                f"--overcommit {self.overcommit} must be > 0: 1.0 reserves the pool's size once, 2.0 twice"
            )
        if self.reserve is not None and self.reserve < 0:
            raise BadSetting(f"--reserve {self.reserve} is negative: use 0 or more bytes")
        if self.max_snapshots < 1:
            raise BadSetting(f"--max-snapshots {self.max_snapshots} must be at least 1")
        if self.metrics_volumes < 0:
            raise BadSetting(f"--metrics-volumes {self.metrics_volumes} is negative: use 0 for no series of volumes")
        if self.freeze_deadline <= 0:
            raise BadSetting(f"--freeze-deadline {self.freeze_deadline} must be > 0 seconds")
        if (self.listen is None) != (not self.certificates):
            raise BadSetting(
                "--listen and --certificates go together: --listen always uses mutual TLS, and nothing else needs certificates"
            )
        if (not self.register) != (not self.kubelet_socket):
            raise BadSetting(
                "--register and --kubelet-socket go together: the registration names the path that the kubelet can open"
            )
        for option, path in (
            ("--certificates", self.certificates),
            ("--register", self.register),
            ("--kubelet-socket", self.kubelet_socket),
            ("--runtime-dir", self.runtime_directory),
        ):
            if path and not path.startswith("/"):
                raise BadSetting(f"{option} {path!r} is not an absolute path: use one")

    @property
    def socket_path(self) -> str:
        """Return the endpoint as a path."""
        return self.endpoint.removeprefix("unix://")


def dump(settings: Settings) -> str:
    """Return settings as one line of JSON, for the agent's process. They hold no secrets."""
    return json.dumps(asdict(settings), separators=(",", ":"))


def load(text: str) -> Settings:
    """Parse the output of `dump`. Raises BadSetting as the constructors do."""
    raw = json.loads(text)
    raw["pools"] = tuple(PoolSpec(**pool) for pool in raw["pools"])
    raw["image"] = PoolImage(**raw["image"]) if raw["image"] else None
    for name in ("metrics_address", "listen"):
        raw[name] = tuple(raw[name]) if raw[name] else None
    return Settings(**raw)
