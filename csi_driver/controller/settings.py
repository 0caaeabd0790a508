"""The settings of a controller, as plain values. Each default has its reason."""

import re
import socket
from dataclasses import dataclass, field
from typing import Literal

from csi_driver import DRIVER_NAME
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

DEFAULT_NAMESPACE = "tidemark"
DEFAULT_RELEASE = "tidemark"
DEFAULT_CERTIFICATES = "/run/tidemark/tls"
"""Under /run, which is memory: the key of a controller is never stored on a disk."""

_PROXY = re.compile(r"https?://([^\s/@]+@)?([^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\]):\d{1,5}/?", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def check_proxy(url: str) -> None:
    """Raise BadSetting if this is not the URL of a proxy. It may hold a password, so the message does not quote it."""
    if url and not _PROXY.fullmatch(url):
        raise BadSetting("--api-proxy is not the URL of a proxy: use http://HOST:PORT")


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """The options of `tidemark controller`."""

    endpoint: str = DEFAULT_ENDPOINT
    """The CSI socket that the sidecars of this pod share: `unix:///absolute/path`."""

    namespace: str = DEFAULT_NAMESPACE
    """Where the agents' pods, the certificates and the leases are."""

    release: str = DEFAULT_RELEASE
    """The chart's full name, with which the names of the driver's objects begin."""

    driver_name: str = DRIVER_NAME
    """The same as the agents', and that of the CSIDriver object."""

    certificates: str = DEFAULT_CERTIFICATES
    """Directory of the controller's ca.crt, tls.crt and tls.key."""

    controller_secret: str = ""
    """A user-supplied Secret with the controller's certificate; empty: this driver creates and renews one."""

    agent_secret: str = ""
    """The same for the agents'. Both or neither."""

    metrics_address: tuple[str, int] | None = None
    """Host and port of /metrics, /healthz and /readyz; None: no listener."""

    webhook_address: tuple[str, int] | None = None
    """Host and port of the webhook that selects nodes for PVCs; None: only the topology controller selects them."""

    pod_name: str = field(default_factory=socket.gethostname)
    """Name in the leader election, different for each replica. In a pod the host's name is the pod's."""

    kubeconfig: str = ""
    """Path to a kubeconfig file, outside of a pod. Empty: the pod's own account."""

    api_proxy: str = ""
    """URL of a proxy for the API; empty: none. HTTPS_PROXY is ignored: pods have it for traffic that leaves the cluster."""

    operator: bool = True
    """False: only forward CSI calls, reconcile nothing."""

    snapshots_in_flight: int = 4
    """Maximum number of scheduled snapshots in progress on one node: each may freeze a file system."""

    log_format: Literal["console", "json"] = "console"
    """Lines for people by default; JSON for log collectors."""

    def __post_init__(self) -> None:
        for option, text in (("--namespace", self.namespace), ("--release", self.release)):
            if not _NAME.fullmatch(text):
                raise BadSetting(
                    f"{option} {text!r} is not a valid name in Kubernetes: use lower-case letters, digits and inner dashes"
                )
        if bool(self.controller_secret) != bool(self.agent_secret):
            raise BadSetting("--controller-secret and --agent-secret go together: use both or neither")
        if not self.certificates.startswith("/"):
            raise BadSetting(f"--certificates {self.certificates!r} is not an absolute path: use one")
        check_proxy(self.api_proxy)
        if self.snapshots_in_flight < 1:
            raise BadSetting(f"--snapshots-in-flight-per-node {self.snapshots_in_flight} must be at least 1")
