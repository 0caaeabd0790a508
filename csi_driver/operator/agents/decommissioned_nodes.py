"""Nodes that a person has decommissioned: the list of those that will not come back.

A deleted Node object proves nothing: its machine, with the volumes on it, may be back tomorrow. Only a person can say
that it will not.
"""

from collections import Counter
from datetime import datetime

from csi_driver.domain.errors import AlreadyExists, NotFound, Precondition
from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Api
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVS
from csi_driver.operator.agents.discovery import Cluster, owner_of_pv, read, trim_agent_pod, trim_node, trim_pv
from csi_driver.operator.installation import AGENT_LABELS, Installation


async def list_nodes(api: Api, installation: Installation) -> Cluster:
    """Read the cluster as it is now from the API."""
    owners = (owner_of_pv(trim_pv(pv), installation) for pv in await api.list(PVS))
    return read(
        map(trim_agent_pod, await api.list(PODS, installation.namespace, labels=AGENT_LABELS)),
        map(trim_node, await api.list(NODES)),
        Counter(owner for owner in owners if owner is not None),
        await api.get(CONFIG_MAPS, installation.decommissioned_nodes, installation.namespace),
        installation,
    )


async def decommission(api: Api, installation: Installation, node: str, now: datetime, force: bool = False) -> str:
    """Record that a node will not come back: deletes of its volumes and snapshots succeed from now on. Returns its owner.

    Raises Precondition, unless forced, for a node that is alive or that the cluster does not know.
    """
    owner = owner_of_node(node)
    if not force:
        _ensure_dead(await list_nodes(api, installation), owner, node)
    name, namespace = installation.decommissioned_nodes, installation.namespace
    entry = {"data": {owner: f"{now:%Y-%m-%dT%H:%M:%SZ}"}}
    for _ in range(2):
        try:
            await api.patch(CONFIG_MAPS, name, entry, namespace)
            return owner
        except NotFound:
            config_map = {"kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, **entry}
            try:
                await api.create(CONFIG_MAPS, config_map, namespace)
                return owner
            except AlreadyExists:
                continue  # created by another client just now
    raise Precondition(f"ConfigMap {namespace}/{name}: another client creates and deletes it; find that client")


async def recommission(api: Api, installation: Installation, node: str) -> str:
    """Remove a node from that list. Returns its owner. Raises NotFound if the node is not decommissioned."""
    owner = owner_of_node(node)
    config_map = await api.get(CONFIG_MAPS, installation.decommissioned_nodes, installation.namespace)
    if owner not in ((config_map or {}).get("data") or {}):
        raise NotFound(f"node {node} is not decommissioned: `tidemark node list` shows those that are")
    patch = {"data": {owner: None}}
    await api.patch(CONFIG_MAPS, installation.decommissioned_nodes, patch, installation.namespace)
    return owner


def _ensure_dead(cluster: Cluster, owner: str, node: str) -> None:
    agent = cluster.agents.get(owner)
    if agent is not None and agent.ready:
        raise Precondition(
            f"the agent of node {node} answers, so its volumes exist: delete them, or delete the agent's pod first"
        )
    if cluster.nodes.get(owner, False):
        raise Precondition(
            f"node {node} is Ready and may get its agent back: drain it and delete the Node object first, or use --force"
        )
    if cluster.endpoint(owner) is None and owner not in cluster.owners():
        raise Precondition(
            f"node {node} is not known in this cluster: check the name (`tidemark node list`), or use --force"
        )
