"""Finds the Node of an owner: an id names the owner, the scheduler needs the node's name."""

from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Object
from csi_driver.kube.informer import Informer


def node_for_owner(nodes: Informer, owner: str) -> Object | None:
    """Return an owner's node, trimmed: by its label, or by its name if it has no label yet."""
    unlabelled = None
    for node in nodes.all():
        if node["labelled"] == owner:
            return node
        if not node["labelled"] and owner_of_node(node["metadata"]["name"]) == owner:
            unlabelled = node
    return unlabelled
