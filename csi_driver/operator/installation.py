"""Names that the chart, the controller and the command line share."""

from dataclasses import dataclass
from typing import Literal

from csi_driver.kube.client import Object

AGENT_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=agent"
"""Selects the agents' pods."""

CONTROLLER_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=controller"
"""Selects the controllers' pods."""

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""Annotation of a PVC: the node that the scheduler, or this driver, has selected."""

PLACED_ON = "tidemark.dev/placed-on"
"""Annotation of a PVC without a selected node: the owner that is asked for its volume until that owner refuses."""


@dataclass(frozen=True, slots=True)
class Installation:
    """The objects of one installation. `release` is the chart's full name.

    None of these names may change: after an upgrade, the content of these objects is found by them.
    """

    namespace: str
    release: str
    driver: str

    @property
    def decommissioned_nodes(self) -> str:
        """The ConfigMap whose keys are the decommissioned owners."""
        return f"{self.release}-forgotten"

    @property
    def lease(self) -> str:
        """The Lease of the controllers' leader election."""
        return f"{self.release}-operator"

    @property
    def ca_secret(self) -> str:
        """The Secret of the CA that signs the certificates of agents and controllers."""
        return f"{self.release}-authority"

    def tls_secret(self, role: Literal["controller", "agent"]) -> str:
        """Return the Secret with the certificate of all processes of a role, if this driver makes it."""
        return f"{self.release}-{role}-tls"

    @property
    def webhook_configuration(self) -> str:
        """The MutatingWebhookConfiguration for PVCs."""
        return f"{self.release}-pin"

    @property
    def webhook_host(self) -> str:
        """The host name at which the API server calls the webhook."""
        return f"{self.release}-webhook.{self.namespace}.svc"

    def owns_agent(self, pod: Object) -> bool:
        """Return whether a trimmed pod is an agent of this release: several releases may share a namespace."""
        daemon_set = f"{self.release}-agent"  # that of a node group has the group's name appended
        owners: list[str] = pod["owners"]
        return bool(pod["node"]) and any(name == daemon_set or name.startswith(f"{daemon_set}-") for name in owners)
