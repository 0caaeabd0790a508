"""Nodes that a person gives up: what is known of each, and the list of those that will not come back.

A Node object that is gone proves nothing: its machine, with the volumes on it, may be back tomorrow. Only a person can
say that it will not.
"""

from collections import Counter
from datetime import datetime

from csi_driver.domain.errors import AlreadyExists, NotFound, Precondition
from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Api
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVS
from csi_driver.operator.agents.discovery import Cluster, keep_node, keep_pod, keep_volume, owner_in, read
from csi_driver.operator.installation import AGENT_LABELS, Installation


async def list_nodes(api: Api, ours: Installation) -> Cluster:
    """The cluster as it is now, from the API."""
    named = (owner_in(keep_volume(volume), ours) for volume in await api.list(PVS))
    return read(
        map(keep_pod, await api.list(PODS, ours.namespace, labels=AGENT_LABELS)),
        map(keep_node, await api.list(NODES)),
        Counter(owner for owner in named if owner is not None),
        await api.get(CONFIG_MAPS, ours.forgotten, ours.namespace),
        ours,
    )


async def decommission(api: Api, ours: Installation, node: str, now: datetime, force: bool = False) -> str:
    """Note that a node will not come back: from now on deletes of what was on it succeed. Returns its owner.

    Raises Precondition, unless forced, for a node that lives or that nobody knows.
    """
    owner = owner_of_node(node)
    if not force:
        _refuse_the_living(await list_nodes(api, ours), owner, node)
    note = {"data": {owner: f"{now:%Y-%m-%dT%H:%M:%SZ}"}}
    for _ in range(2):
        try:
            await api.patch(CONFIG_MAPS, ours.forgotten, note, ours.namespace)
            return owner
        except NotFound:
            body = {"kind": "ConfigMap", "metadata": {"name": ours.forgotten, "namespace": ours.namespace}, **note}
            try:
                await api.create(CONFIG_MAPS, body, ours.namespace)
                return owner
            except AlreadyExists:
                continue  # somebody else made it just now
    raise Precondition(f"ConfigMap {ours.namespace}/{ours.forgotten} comes and goes: look who removes it")


async def recommission(api: Api, ours: Installation, node: str) -> str:
    """Take a node off that list. Returns its owner. Raises NotFound where it is not on it."""
    owner = owner_of_node(node)
    noted = await api.get(CONFIG_MAPS, ours.forgotten, ours.namespace)
    if owner not in ((noted or {}).get("data") or {}):
        raise NotFound(f"node {node} is not forgotten: `tidemark node list` shows those that are")
    await api.patch(CONFIG_MAPS, ours.forgotten, {"data": {owner: None}}, ours.namespace)
    return owner


def _refuse_the_living(cluster: Cluster, owner: str, node: str) -> None:
    agent = cluster.agents.get(owner)
    if agent is not None and agent.ready:
        raise Precondition(
            f"the agent of node {node} answers, so its disks are there: delete them, or remove its pod first"
        )
    if cluster.nodes.get(owner, False):
        raise Precondition(
            f"node {node} is Ready and may get its agent back: drain it and remove the Node object first, or say --force"
        )
    if cluster.place(owner) is None and owner not in cluster.owners():
        raise Precondition(
            f"nothing in this cluster names node {node}: look at the name (`tidemark node list`), or say --force"
        )
