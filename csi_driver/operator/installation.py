"""Names that chart, controller and command line share."""

from dataclasses import dataclass
from typing import Literal

from csi_driver.kube.client import Object

AGENT_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=agent"
"""Of the agents' pods, as a selector."""

CONTROLLER_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=controller"
"""Of the controllers' pods, as a selector."""

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""On a claim: the node that the scheduler, or our pin, has chosen."""

PLACED_ON = "tidemark.dev/placed-on"
"""On a claim without a selected node: the owner that is asked for its volume until that says no."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What belongs to one installation. `release` is the chart's full name. None of these names is ever another one: what is
    in these objects is found by them after an upgrade.
    """

    namespace: str
    release: str
    driver: str

    @property
    def forgotten(self) -> str:
        """The ConfigMap whose keys are the owners that a person gave up."""
        return f"{self.release}-forgotten"

    @property
    def lease(self) -> str:
        """The Lease of the controller that reconciles."""
        return f"{self.release}-operator"

    @property
    def authority(self) -> str:
        """The Secret of the authority that signs for agents and controllers."""
        return f"{self.release}-authority"

    def certificate(self, role: Literal["controller", "agent"]) -> str:
        """The Secret of the certificate that all of a role show, where we make it."""
        return f"{self.release}-{role}-tls"

    @property
    def webhook(self) -> str:
        """The MutatingWebhookConfiguration that has the API server ask about claims."""
        return f"{self.release}-pin"

    @property
    def webhook_host(self) -> str:
        """The name by which the API server calls it."""
        return f"{self.release}-webhook.{self.namespace}.svc"

    def has(self, pod: Object) -> bool:
        """Whether a pod, as keep_pod made it, is an agent of ours: several releases may share a namespace."""
        daemon_set = f"{self.release}-agent"  # that of a group of nodes has the group's name behind it
        owners: list[str] = pod["owners"]
        return bool(pod["node"]) and any(one == daemon_set or one.startswith(f"{daemon_set}-") for one in owners)
