"""`tidemark pools` and `tidemark status`: where the bytes are, and who answers."""

from typing import TYPE_CHECKING

import typer

from csi_driver.cli.common import Endpoint, Failure, Json, connect, print_json, print_table
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import PoolSpace


def pools(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """Show the pools and their space."""
    with connect(endpoint) as client:
        found = client.pools()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            p.name,
            p.backend,
            show(p.total),
            show(p.free),
            show(p.committed),
            show(p.available),
            str(p.volumes),
            str(p.snapshots),
            p.path,
        )
        for p in found
    ]
    print_table(
        ("POOL", "KIND", ">SIZE", ">FREE", ">PROMISED", ">AVAILABLE", ">DISKS", ">SNAPSHOTS", "WHERE"),
        rows,
        "no pools: start the agent with --pool",
    )
    for pool in found:
        if pool.full or pool.free < pool.reserve:
            typer.echo(_warning(pool))


def _warning(pool: "PoolSpace") -> str:
    state = (
        "has run full: writes to its thin disks fail, or soon will"
        if pool.full
        else f"makes nothing new: less than its reserve of {show(pool.reserve)} is free"
    )
    freed = ", ".join(f"{one.kind} {one.name} ({show(one.exclusive)})" for one in pool.would_free)
    return f"\nPool {pool.name} of {pool.owner} {state}." + (f" Deleting would free most: {freed}." if freed else "")


def status(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """Show who answers on the socket; exit code 1 where it is not ready."""
    with connect(endpoint) as client:
        agent = client.agent()
    if as_json:
        print_json(agent)
    else:
        print_table(
            ("DRIVER", "VERSION", "NODE", "READY"),
            [(agent.driver, agent.version, agent.node, "yes" if agent.ready else "no")],
            "",
        )
    if not agent.ready:
        raise Failure("the agent is not ready: its log says which pool is missing")
