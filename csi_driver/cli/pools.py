"""`tidemark pool` and `tidemark status`: the space of the pools, and the state of the agent."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_pool
from csi_driver.cli.failure import Failure
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import plain
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list, print_object, say
from csi_driver.cli.sizes import show
from csi_driver.cli.suggest import not_found
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, PoolLimit, PoolSpace

app = typer.Typer(cls=CommandGroup, help="Pools and their space: list, show, create, grow.", no_args_is_help=True)


@app.command("list")
def list_(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List the pools and their space.

    $ tidemark pool list
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    with connect(endpoint) as client:
        pools = client.pools()
        objects = _deletable(client, pools)
    print_list(
        form,
        pools,
        _columns(),
        document=plain,
        name=lambda pool: pool.name,
        empty="no pools: start the agent with --pool",
    )
    if form.for_people:
        for pool in pools:
            for line in _warnings(pool, objects):
                say("")
                say(line)


@app.command("show")
def show_(
    pool: Annotated[str, typer.Argument(help="Name of the pool, e.g. default.", autocompletion=complete_pool)] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Show one pool: what is used, what is reserved for volumes, and which option changes that.

    $ tidemark pool show default
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        pools = client.pools()
        objects = _deletable(client, pools)
    found = [item for item in pools if pool in ("", item.name)]
    names = [item.name for item in pools]
    if not found:
        raise not_found("pool", pool, names)
    if len(found) > 1:
        raise Failure(f"there are {len(found)} pools: name one of {', '.join(names)}")
    print_object(form, plain(found[0]), found[0].name, _lines(found[0], form.wide))
    if form.for_people:
        for line in _warnings(found[0], objects):
            say(line)


def status(endpoint: Endpoint = DEFAULT_ENDPOINT, output: Output = "table", as_json: Json = False) -> None:
    """Show the agent behind the socket. Exit code 1 if it is not ready.

    $ tidemark status
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        agent = client.agent()
    print_object(
        form,
        plain(agent),
        agent.node,
        [
            ("driver", agent.driver),
            ("version", agent.version),
            ("node", agent.node),
            ("ready", "yes" if agent.ready else "no"),
        ],
    )
    if not agent.ready:
        raise Failure("the agent is not ready: see its log for the pool that is unavailable")


def _columns() -> "list[Column[PoolSpace]]":
    return [
        Column("POOL", lambda p: p.name),
        Column("BACKEND", lambda p: p.backend, rank=5),
        Column("SIZE", lambda p: show(p.total), key=lambda p: p.total, right=True),
        Column("FREE", lambda p: show(p.free), key=lambda p: p.free, right=True),
        Column("COMMITTED", lambda p: show(p.committed), key=lambda p: p.committed, right=True),
        Column("AVAILABLE", lambda p: show(p.available), key=lambda p: p.available, right=True),
        Column("VOLUMES", lambda p: str(p.volumes), key=lambda p: p.volumes, right=True, rank=2),
        Column("SNAPSHOTS", lambda p: str(p.snapshots), key=lambda p: p.snapshots, right=True, rank=3),
        Column("PATH", lambda p: p.path, rank=4),
        Column("NODE", lambda p: p.owner, wide=True),
        Column("RESERVE", lambda p: show(p.reserve), key=lambda p: p.reserve, right=True, wide=True),
        Column("OVERCOMMIT", lambda p: f"{p.overcommit:g}", key=lambda p: p.overcommit, right=True, wide=True),
        Column("UUID", lambda p: p.uuid, wide=True),
    ]


def _lines(pool: "PoolSpace", wide: bool) -> list[tuple[str, str]]:
    ceiling = show(int(pool.total * pool.overcommit))
    of = f"{pool.volumes} volume{'' if pool.volumes == 1 else 's'}"
    committed = (
        f"{show(pool.committed)} of {ceiling}, for {of}: {pool.overcommit:g} times the pool's size (--overcommit)"
    )
    lines = [
        ("name", pool.name),
        ("node", pool.owner),
        ("backend", pool.backend),
        ("path", pool.path),
        ("size", show(pool.total)),
        ("free", f"{show(pool.free)}; with less than {show(pool.reserve)}, nothing new is taken (--reserve)"),
        ("committed", committed),
        ("available", f"{show(pool.available)} for new volumes"),
        ("snapshots", str(pool.snapshots)),
        *((limit.name, _limit(limit)) for limit in pool.limits),
    ]
    if wide:
        lines.append(("uuid", pool.uuid))
    return lines


def _limit(limit: "PoolLimit") -> str:
    return f"{show(limit.used)} of {show(limit.total)}; from {show(limit.refuse_at)} on, nothing new is taken"


def _deletable(client: "Client", pools: "list[PoolSpace]") -> AgentObjects:
    """Read the names of what deleting would free; nothing if no pool is short of space, or the tree cannot be read."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    if not any(pool.would_free for pool in pools):
        return AgentObjects(())
    try:
        return AgentObjects.read(client)
    except CallRefused:
        return AgentObjects(())


def _warnings(pool: "PoolSpace", objects: AgentObjects) -> list[str]:
    """Return what is wrong with the space of a pool, and what deleting would free most."""
    passed = [_passed(pool, limit) for limit in pool.limits if limit.passed]
    if not pool.full and pool.free >= pool.reserve:
        return passed
    state = (
        "has run full: writes to its thin volumes fail, or soon will"
        if pool.full
        else f"refuses new volumes and snapshots: less than its reserve of {show(pool.reserve)} is free"
    )
    names = [objects.name_of(item.id) if objects.get(item.id) else item.name for item in pool.would_free]
    freed = ", ".join(
        f"{item.kind} {name} ({show(item.exclusive)})" for item, name in zip(pool.would_free, names, strict=True)
    )
    return [
        f"Pool {pool.name} of {pool.owner} {state}." + (f" Deleting would free most: {freed}." if freed else ""),
        *passed,
    ]


def _passed(pool: "PoolSpace", limit: "PoolLimit") -> str:
    remedy = f", or {limit.remedy}" if limit.remedy else ""
    return (
        f"Pool {pool.name} of {pool.owner} refuses new volumes and snapshots: {show(limit.used)} of {show(limit.total)} of its "
        f"{limit.name} are used. Delete snapshots or volumes{remedy}."
    )
