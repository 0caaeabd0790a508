"""What the operator of a cluster may decide about the controller, as plain values. Each default carries its reason."""

import re
import socket
from dataclasses import dataclass, field
from typing import Literal

from csi_driver import DRIVER_NAME
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

DEFAULT_NAMESPACE = "tidemark"
DEFAULT_RELEASE = "tidemark"
DEFAULT_CERTIFICATES = "/run/tidemark/tls"
"""Under /run, which is memory: the key of a controller never lies on a disk."""

_PROXY = re.compile(r"https?://([^\s/@]+@)?([^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\]):\d{1,5}/?", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def check_proxy(url: str) -> None:
    """Raise BadSetting where this is no proxy's URL. It may hold a password, so it is not told."""
    if url and not _PROXY.fullmatch(url):
        raise BadSetting("--api-proxy is not the URL of a proxy: write http://HOST:PORT")


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """All that `tidemark controller` is told."""

    endpoint: str = DEFAULT_ENDPOINT
    """The CSI socket that the sidecars of this pod share: `unix:///absolute/path`."""

    namespace: str = DEFAULT_NAMESPACE
    """Where the agents' pods, the certificates and the leases are."""

    release: str = DEFAULT_RELEASE
    """The chart's full name: the names of all objects of ours begin with it."""

    driver_name: str = DRIVER_NAME
    """As the agents' and that of CSIDriver."""

    certificates: str = DEFAULT_CERTIFICATES
    """Directory of the controller's ca.crt, tls.crt and tls.key."""

    controller_secret: str = ""
    """A Secret of the user's own with the controller's certificate; empty: we make one and renew it."""

    agent_secret: str = ""
    """The same for the agents'. Both or neither."""

    metrics_address: tuple[str, int] | None = None
    """Host and port of /metrics, /healthz and /readyz; None: no listener."""

    webhook_address: tuple[str, int] | None = None
    """Host and port of the webhook that pins claims; None: none, and pins come from the reconciler alone."""

    pod_name: str = field(default_factory=socket.gethostname)
    """Who leads, in the Lease: it must differ between replicas. In a pod the host's name is the pod's."""

    kubeconfig: str = ""
    """Outside of a pod: a file that leads to the API. Empty: the pod's own account."""

    api_proxy: str = ""
    """URL of a proxy on the way to the API; empty: none. Never from HTTPS_PROXY, which a pod has for what leaves the cluster."""

    operator: bool = True
    """False: route CSI calls only, reconcile nothing."""

    snapshots_in_flight: int = 4
    """Scheduled snapshots that one node makes at a time: each may hold a file system still."""

    log_format: Literal["console", "json"] = "console"
    """Lines for people by default; JSON where a machine collects them."""

    def __post_init__(self) -> None:
        for option, text in (("--namespace", self.namespace), ("--release", self.release)):
            if not _NAME.fullmatch(text):
                raise BadSetting(
                    f"{option} {text!r} is no name in Kubernetes: lower-case letters, digits, inner dashes"
                )
        if bool(self.controller_secret) != bool(self.agent_secret):
            raise BadSetting("--controller-secret and --agent-secret belong together: give both or neither")
        if not self.certificates.startswith("/"):
            raise BadSetting(f"--certificates {self.certificates!r} is not an absolute path: give one")
        check_proxy(self.api_proxy)
        if self.snapshots_in_flight < 1:
            raise BadSetting(f"--snapshots-in-flight-per-node {self.snapshots_in_flight} allows none: give 1 or more")
