"""The network between the nodes: one bridge in the machine's own network namespace, one namespace a node."""

from pathlib import Path

from rig.machine import command
from rig.paths import BRIDGE_ADDRESS, NAME, NODES, NUMBER, SERVICES, node_address, pod_subnet

NAMED = "/run/netns"


def make_bridge() -> None:
    if Path(f"/sys/class/net/{NAME}").exists():
        return
    command("ip", "link", "add", NAME, "type", "bridge")
    command("ip", "address", "add", f"{BRIDGE_ADDRESS}/24", "dev", NAME)
    command("ip", "link", "set", NAME, "up")
    # What no node translates must not leave the machine by its default route. They go with the bridge.
    for reserved in (NODES, SERVICES):
        command("ip", "route", "add", reserved, "dev", NAME)


def remove_bridge() -> None:
    command("ip", "link", "delete", NAME, check=False)


def namespaces_are_mounted() -> bool:
    """Whether the directory of named network namespaces is a mount, as `ip netns add` makes it for the first one."""
    return any(line.split()[4] == NAMED for line in Path("/proc/self/mountinfo").read_text().splitlines())


def unmount_namespaces() -> None:
    """Undo that, unless others have namespaces there by now."""
    if namespaces_are_mounted() and not any(Path(NAMED).iterdir()):
        command("umount", NAMED)


def namespace(name: str) -> str:
    return f"{NAME}-{name}"


def cable(name: str) -> str:
    return f"tm{NUMBER}-{name}"  # the kernel takes 15 characters


def make_node(name: str, index: int, others: list[int]) -> None:
    """One end of a cable in the node's namespace, the other one on the bridge; and the routes to all pods.

    A pod's own addresses only: no default route, so that nothing from a pod gets further than the bridge.
    """
    inside, outside = namespace(name), cable(name)
    command("ip", "netns", "add", inside)
    command("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
    command("ip", "link", "set", outside, "master", NAME, "up")
    within = ("ip", "-n", inside)
    command(*within, "link", "set", "lo", "up")
    command(*within, "address", "add", f"{node_address(index)}/24", "dev", "eth0")
    command(*within, "link", "set", "eth0", "up")
    # Service addresses are translated on the way out, but only what has a route gets that far.
    command(*within, "route", "add", SERVICES, "via", BRIDGE_ADDRESS)
    for other in others:
        if other != index:
            command(*within, "route", "add", pod_subnet(other), "via", node_address(other))
    command("ip", "route", "add", pod_subnet(index), "via", node_address(index))


def remove_node(name: str) -> None:
    # The kernel takes the cable away with the namespace, in its own time: by name it is gone when this returns.
    command("ip", "link", "delete", cable(name), check=False)
    command("ip", "netns", "delete", namespace(name), check=False)
