"""The services of an agent, in one list: what it serves on its socket, and what of that controllers reach."""

from collections.abc import Callable, Mapping, Sequence

from csi_driver.rpc.agent.controller import Controller
from csi_driver.rpc.agent.group_controller import GroupController
from csi_driver.rpc.agent.identity import Identity
from csi_driver.rpc.agent.node import Node
from csi_driver.rpc.agent.tidemark import Tidemark
from csi_driver.service.build import Services


def agent_servicers(
    services: Services,
    driver_name: str,
    owner: str,
    ready: Callable[[], bool],
    manifest: Callable[[], Mapping[str, str]] = dict,
    volume_health: bool = False,
) -> list[object]:
    """Return all services of an agent. `ready` and `manifest`: see Identity; `volume_health`: see Node."""
    return [
        Identity(driver_name, ready, manifest),
        Controller(services.volumes, services.snapshots),
        GroupController(services.group_snapshots),
        Node(services.node_volumes, owner, volume_health),
        Tidemark(
            services.rollbacks,
            services.lineage,
            services.fullness,
            services.labels,
            services.deletion_estimates,
        ),
    ]


def for_controllers(servicers: Sequence[object]) -> list[object]:
    """Return those that a controller forwards to: all but Node.

    Calls of Node name paths of this node, on which the agent acts as root. Only the kubelet needs them, and it has the socket: a
    stolen certificate of a controller must not allow arbitrary mounts on every node.
    """
    return [servicer for servicer in servicers if not isinstance(servicer, Node)]
