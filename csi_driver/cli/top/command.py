"""`tidemark top`: a table that is drawn again and again, or once."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.output.documents import plain
from csi_driver.cli.output.escape import as_argument, escape
from csi_driver.cli.output.form import Json, NoHeaders, Output, OutputForm, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list
from csi_driver.cli.sizes import show
from csi_driver.cli.top.activity import Activity, Counters, rates, read_counters
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.cli.objects import AgentObjects
    from csi_driver.rpc.clients.cli_client import Client, Node, PoolSpace

USAGE_SECONDS = 30.0
"""Between two counts of what each volume has of its own: each walks over every extent."""


@dataclass(frozen=True, slots=True)
class VolumeActivity:
    """A row. `activity`: None for a volume that is not attached here, or was attached a moment ago."""

    node: "Node"
    name: str
    own: int
    shared: int
    snapshots: int
    users: str
    activity: Activity | None


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the table once, for scripts.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Time over which activity is measured.")
    ] = 2.0,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """Show the space and the activity of each volume, the busiest first, until Ctrl-C. A file or pipe gets it once.

    Activity is the kernel's, of this machine's devices: of volumes on other machines, only the space is shown.

    $ tidemark top
    $ tidemark top --once -o json
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    alone = once or not form.for_people or not sys.stdout.isatty()
    with connect(endpoint) as client:
        if alone:
            _print(form, _Screen(client).rows(interval))
            return
        _watch(form, _Screen(client), interval)


class _Screen:
    """Reads the volumes again and again, and remembers what it has read before."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._counters: dict[str, Counters] = {}
        self._read_at = 0.0
        self._usage: dict[str, Any] = {}
        self._counted_at = float("-inf")
        self.pools: list[PoolSpace] = []

    def rows(self, seconds: float) -> list[VolumeActivity]:
        """Return the rows for the next `seconds`, and sleep through them. Raises CallRefused."""
        from csi_driver.cli.objects import AgentObjects

        count = time.monotonic() - self._counted_at >= USAGE_SECONDS
        objects = AgentObjects.read(self._client, with_usage=count)
        if count:
            self._counted_at = time.monotonic()
            self._usage = {node.id: node.usage for node in objects.volumes}
        devices = {node.id: node.device for node in objects.volumes if node.device}
        before, started = read_counters(devices), time.monotonic()
        time.sleep(seconds)
        after, passed = read_counters(devices), time.monotonic() - started
        self.pools = self._client.pools()
        return sorted((self._row(objects, node, before, after, passed) for node in objects.volumes), key=_busiest)

    def _row(
        self,
        objects: "AgentObjects",
        node: "Node",
        before: dict[str, Counters],
        after: dict[str, Counters],
        passed: float,
    ) -> VolumeActivity:
        usage = self._usage.get(node.id)
        both = node.id in before and node.id in after
        return VolumeActivity(
            node,
            objects.name(node),
            usage.exclusive if usage else 0,
            usage.shared if usage else 0,
            len(objects.snapshots_of(node)),
            objects.users(node),
            rates(before[node.id], after[node.id], passed) if both else None,
        )


def _busiest(row: VolumeActivity) -> tuple[float, float, str]:
    activity = row.activity or Activity()
    return (-(activity.read_bytes + activity.written_bytes), -(activity.reads + activity.writes), row.name)


def _print(form: OutputForm, rows: list[VolumeActivity]) -> None:
    print_list(
        form,
        rows,
        _columns(),
        document=_document,
        name=lambda row: row.name if as_argument(row.name) == row.name else row.node.id,
        empty="no volumes: `tidemark volume create db 10Gi` creates one",
    )


def _watch(form: OutputForm, screen: _Screen, interval: float) -> None:
    """Draw until Ctrl-C, on a screen of its own: what was on the terminal is there again afterwards."""
    from rich.console import Console

    console = Console()
    with console.screen(hide_cursor=True):
        rows = screen.rows(0.1)
        while True:
            console.clear()
            for pool in screen.pools:
                typer.echo(escape(f"pool {pool.name}: {show(pool.free)} of {show(pool.total)} free"))
            typer.echo("")
            _print(form, rows[: max(1, console.height - len(screen.pools) - 4)])
            try:
                rows = screen.rows(interval)
            except KeyboardInterrupt:
                return


def _columns() -> "list[Column[VolumeActivity]]":
    def of(row: VolumeActivity) -> Activity:
        return row.activity or Activity()

    def rate(row: VolumeActivity, text: str) -> str:
        return text if row.activity else "-"

    return [
        Column("NAME", lambda r: r.name),
        Column("READS/S", lambda r: rate(r, f"{of(r).reads:.0f}"), key=lambda r: of(r).reads, right=True, rank=3),
        Column("WRITES/S", lambda r: rate(r, f"{of(r).writes:.0f}"), key=lambda r: of(r).writes, right=True, rank=3),
        Column(
            "READ/S", lambda r: rate(r, show(int(of(r).read_bytes))), key=lambda r: of(r).read_bytes, right=True, rank=1
        ),
        Column(
            "WRITTEN/S",
            lambda r: rate(r, show(int(of(r).written_bytes))),
            key=lambda r: of(r).written_bytes,
            right=True,
            rank=1,
        ),
        Column("BUSY", lambda r: rate(r, f"{of(r).busy:.0%}"), key=lambda r: of(r).busy, right=True, rank=2),
        Column("SIZE", lambda r: show(r.node.size), key=lambda r: r.node.size, right=True, rank=4),
        Column("OWN", lambda r: show(r.own), key=lambda r: r.own, right=True, rank=1),
        Column("SHARED", lambda r: show(r.shared), key=lambda r: r.shared, right=True, rank=4),
        Column("SNAPSHOTS", lambda r: str(r.snapshots), key=lambda r: r.snapshots, right=True, rank=5),
        Column("IN USE", lambda r: r.users, rank=6),
        Column("POOL", lambda r: r.node.pool, wide=True),
        Column("DEVICE", lambda r: r.node.device, wide=True),
    ]


def _document(row: VolumeActivity) -> dict[str, Any]:
    return {
        "id": row.node.id,
        "name": row.node.name,
        "display_name": row.name,
        "pool": row.node.pool,
        "size": row.node.size,
        "exclusive": row.own,
        "shared": row.shared,
        "snapshots": row.snapshots,
        "device": row.node.device,
        "activity": plain(row.activity) if row.activity else None,
    }
