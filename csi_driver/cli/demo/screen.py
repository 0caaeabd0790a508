"""How the demo looks: one table a step, at most 100 columns wide, readable without colours as well."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from csi_driver.cli.demo.lab import Content
from csi_driver.cli.demo.model import UNKNOWN
from csi_driver.cli.sizes import show

_COLOURS = {"d1": "green", "d2": "blue", "d3": "yellow", "d4": "magenta", "d5": "cyan", UNKNOWN: "red"}


WIDTH = 100


class Screen:
    """Prints the story."""

    def __init__(self) -> None:
        plain = Console()
        self._console = Console(width=min(WIDTH, plain.width) if plain.is_terminal else WIDTH, highlight=False)
        self._step = 0

    def title(self, text: str) -> None:
        """The first line."""
        self._console.print(Text(text, "bold"))

    def line(self, text: str, style: str = "") -> None:
        """A line of prose."""
        self._console.print(Text(text, style))

    def summary(self, text: str) -> None:
        """The last line, never wrapped: programs read it."""
        self._console.print()
        self._console.print(Text(text, "bold green"), soft_wrap=True)

    def step(self, title: str, story: str = "") -> None:
        """A new step: its title and an explanation."""
        self._step += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._step:>2}  ", "bold cyan"), (title, "bold")))
        if story:
            self._indented(story)

    def quote(self, text: str) -> None:
        """A message of the agent, quoted."""
        self._indented(f"“{text}”", "italic")

    def good(self, text: str) -> None:
        """A check that passed."""
        self._indented(f"✓ {text}", "green")

    def state(self, contents: Sequence[Content]) -> None:
        """The content of all disks and snapshots, block by block."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for item in contents:
            blocks = Text()
            for label in item.labels:
                blocks.append(
                    f" {label or '··':<3}", f"bold black on {_COLOURS.get(label, 'white')}" if label else "dim"
                )
                blocks.append(" ")
            table.add_row(
                "   ",
                Text(item.kind, "dim"),
                Text(item.name, "bold"),
                blocks,
                Text(f"own {show(item.exclusive)}", "" if item.exclusive else "dim"),
                Text(f"shared {show(item.shared)}", "" if item.shared else "dim"),
                Text("✓", "green"),
            )
        self._console.print(table)

    def _indented(self, text: str, style: str = "") -> None:
        for part in Text(text, style).wrap(self._console, self._console.width - 4):
            self._console.print(Text("    ") + part)
