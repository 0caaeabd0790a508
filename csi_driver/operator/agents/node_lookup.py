"""Nodes by their owner: an id names the owner, the scheduler wants the node's name."""

from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Object
from csi_driver.kube.informer import Informer


def node_for_owner(nodes: Informer, owner: str) -> Object | None:
    """The node that is an owner, as the informer keeps it: by its label, or by its name where it has none yet."""
    named = None
    for node in nodes.all():
        if node["labelled"] == owner:
            return node
        if not node["labelled"] and owner_of_node(node["metadata"]["name"]) == owner:
            named = node
    return named
