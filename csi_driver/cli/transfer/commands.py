"""`tidemark volume export` and `tidemark volume import`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_pool, complete_source
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document
from csi_driver.cli.output.escape import as_argument
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import print_result
from csi_driver.cli.sizes import show
from csi_driver.domain.sizes import BLOCK, round_up
from csi_driver.settings import DEFAULT_ENDPOINT


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Name or id of a snapshot, or of a volume that is not in use.", autocompletion=complete_source
        ),
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The image file to write, e.g. /backup/db.img.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is a regular file.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Write the content of a snapshot, or of a volume that is not in use, to a raw image file; holes stay holes.

    FILE appears when it is complete and durable. On the pool's own file system it shares its data, and is there at once.

    $ tidemark volume export before-upgrade /backup/db.img
    """
    from csi_driver.cli.transfer import exporting

    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client, _ended_in_order():
        objects = AgentObjects.read(client)
        node = objects.find(source, "snapshot", "volume")
        if node.kind == "volume" and (node.used_by or node.holder):
            raise exporting.in_use(objects, node)
        name = objects.name(node)
        done = exporting.export(client, node, name, file, force)
    how = "shares its data with the pool" if done.shared else f"{show(done.written)} of data"
    result = {"file": file, "size": done.size, "written": done.written, "shared": done.shared}
    print_result(
        form,
        {"source": document(node, objects), **result},
        file,
        f"{file} has the content of {node.kind} {name}: {show(done.size)}, {how}",
    )


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A raw image file, e.g. /backup/db.img.")],
    name: Annotated[str, typer.Argument(help="Name of the new volume, e.g. db.")],
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="Pool; default: the first one.", autocompletion=complete_pool)
    ] = "",
    thick: Annotated[bool, typer.Option("--thick", help="Thick provisioning: allocate all space.")] = False,
    block: Annotated[
        bool, typer.Option("--block", help="A raw block device, also if FILE has a file system in it.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Create a volume with the content of a raw image file. The volume appears when it is complete.

    A file with an ext4 or xfs becomes a volume to be mounted, any other a raw block device.

    $ tidemark volume import /backup/db.img db
    """
    from csi_driver.cli.transfer.importing import ImportRequest, run_import

    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client, _ended_in_order():
        check_new_name(name, "volume")
        done = run_import(client, ImportRequest(name, file, pool, thick, block))
        objects = AgentObjects.read(client)
        node = objects.find(done.volume.id, "volume")
    size = show(done.volume.size)
    if done.volume.size == round_up(done.file_size) > done.file_size:
        size += f" (rounded up to a multiple of {show(BLOCK)})"
    elif done.volume.size > done.file_size:
        size += f" (raised from {show(done.file_size)} to the minimum for {done.fs_type})"
    block_option = "" if done.fs_type else " --block"
    kind = done.fs_type or "a raw block device"
    print_result(
        form,
        {
            "volume": document(node, objects),
            "file": file,
            "file_size": done.file_size,
            "written": done.written,
        },
        objects.bare_name(node),
        f"volume {name} has the content of {file}: {size}, {kind}, {show(done.written)} of data",
        f"`tidemark mount {as_argument(name) or node.id} DIR{block_option}` mounts it",
    )


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that it removes what it has half made."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
