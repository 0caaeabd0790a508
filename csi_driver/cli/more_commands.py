"""Names the commands that have modules of their own within their groups."""

import typer

from csi_driver.cli import clone, pool_disks, pools, rename, volumes
from csi_driver.cli.doctor import command as doctor
from csi_driver.cli.top import command as top
from csi_driver.cli.transfer import commands as transfer


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add them; `panel`: where the help shows those that stand alone."""
    volumes.app.command("clone")(clone.clone)
    volumes.app.command("rename")(rename.rename)
    volumes.app.command("export")(transfer.export)
    volumes.app.command("import")(transfer.import_)
    pools.app.command("create")(pool_disks.create)
    pools.app.command("grow")(pool_disks.grow)
    app.command("doctor", rich_help_panel=panel)(doctor.doctor)
    app.command("top", rich_help_panel=panel)(top.top)
