"""The demo in two parts: a person's bad day, and then how that works, block by block."""

import importlib.util

from csi_driver.cli.demo import blocks, migration
from csi_driver.cli.demo.lab import Lab
from csi_driver.cli.demo.screen import Screen
from csi_driver.cli.demo.typist import Typist


def play(lab: Lab, screen: Screen, mounting: bool) -> None:
    """Play and check the whole demo. Raises CheckFailed at the first check that fails."""
    why_not = _why_no_database(mounting)
    screen.part("1", "A shop, a bad migration, and back")
    if why_not:
        screen.line(f"Left out: {why_not}.")
    else:
        with Typist(lab.client.endpoint, lab.staged, lab.root) as typist:
            migration.play(lab, screen, typist)
    screen.part("2", "How it works, block by block")
    blocks.play(lab, screen, mounting)


def _why_no_database(mounting: bool) -> str:
    if not mounting:
        return "a database needs a mounted volume, and a pool in memory mounts none"
    if importlib.util.find_spec("_sqlite3") is None:
        return "this Python was built without SQLite"
    return ""
