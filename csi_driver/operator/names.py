"""Names of the objects that chart, controller and command line share. `release` is the chart's full name."""

AGENT_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=agent"
"""Of the agents' pods, as a selector."""

CONTROLLER_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=controller"
"""Of the controllers' pods, as a selector."""

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""On a claim: the node that the scheduler, or our pin, has chosen."""

PLACED_ON = "tidemark.dev/placed-on"
"""On a claim without a selected node: the owner that is asked for its volume until that says no."""


def forgotten_map(release: str) -> str:
    """The ConfigMap whose keys are the owners that a person gave up."""
    return f"{release}-forgotten"


def operator_lease(release: str) -> str:
    """The Lease of the controller that reconciles."""
    return f"{release}-operator"
