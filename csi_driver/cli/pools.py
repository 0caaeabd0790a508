"""`tidemark pools` and `tidemark status`: the space of the pools, and the state of the agent."""

from typing import TYPE_CHECKING

import typer

from csi_driver.cli.common import Endpoint, Failure, Json, connect, print_json, print_table
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import PoolSpace


def pools(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """List the pools and their space.

    $ tidemark pools
    """
    with connect(endpoint) as client:
        pool_list = client.pools()
    if as_json:
        print_json(pool_list)
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
        for p in pool_list
    ]
    print_table(
        ("POOL", "BACKEND", ">SIZE", ">FREE", ">COMMITTED", ">AVAILABLE", ">VOLUMES", ">SNAPSHOTS", "PATH"),
        rows,
        "no pools: start the agent with --pool",
    )
    for pool in pool_list:
        if pool.full or pool.free < pool.reserve:
            typer.echo(_warning(pool))


def _warning(pool: "PoolSpace") -> str:
    state = (
        "has run full: writes to its thin volumes fail, or soon will"
        if pool.full
        else f"refuses new volumes and snapshots: less than its reserve of {show(pool.reserve)} is free"
    )
    freed = ", ".join(f"{item.kind} {item.name} ({show(item.exclusive)})" for item in pool.would_free)
    return f"\nPool {pool.name} of {pool.owner} {state}." + (f" Deleting would free most: {freed}." if freed else "")


def status(endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """Show the agent behind the socket. Exit code 1 if it is not ready.

    $ tidemark status
    """
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
        raise Failure("the agent is not ready: see its log for the pool that is unavailable")
