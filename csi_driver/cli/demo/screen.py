"""How the demo looks: one table a step, at most 100 columns wide, readable without colours as well."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from csi_driver.cli.demo.keys import PROMPT
from csi_driver.cli.demo.lab import Content
from csi_driver.cli.demo.model import UNKNOWN
from csi_driver.cli.sizes import show

_COLOURS = {"d1": "green", "d2": "blue", "d3": "yellow", "d4": "magenta", "d5": "cyan", UNKNOWN: "red"}


WIDTH = 100


class Screen:
    """Prints the story. `wait`: called between steps, to let a person read; returns False if it need not be called again."""

    def __init__(self, wait: Callable[[], bool] | None = None) -> None:
        self._wait = wait
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
        self._wait_for_reader()
        self._step += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._step:>2}  ", "bold cyan"), (title, "bold")))
        if story:
            self._indented(story)

    def part(self, number: str, title: str) -> None:
        """The title of a part. Steps are numbered through all parts."""
        self._console.print()
        self._console.print(Text(f"Part {number}: {title}", "bold"))

    def command(self, text: str, milliseconds: float, beside: str, output: str) -> None:
        """A command as a person types it, what it does, how long that took, and what it printed."""
        notes = f"{milliseconds:.0f} ms" + (f", {beside}" if beside else "")
        line = Text.assemble((f"$ {text}", "bold"), "   ", (f"# {notes}", "cyan"))
        if line.cell_len > self._console.width - 4:
            self._indented(f"$ {text}", "bold")
            line = Text(f"# {notes}", "cyan")
        self._console.print(Text("    ") + line)
        for printed in output.splitlines():
            self._indented(printed, "dim")

    def code(self, text: str) -> None:
        """A line of a program."""
        self._indented(text, "bold")

    def bad(self, text: str) -> None:
        """Harm that was done on purpose."""
        self._indented(f"✗ {text}", "red")

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

    def _wait_for_reader(self) -> None:
        if self._wait is None or not self._step:
            return
        self._console.print()
        self._console.print(Text(f"    {PROMPT}", "dim"), end="")
        self._console.file.flush()
        if not self._wait():
            self._wait = None
        self._console.file.write("\r\x1b[2K\x1b[A")  # the prompt goes, and the empty line before it

    def _indented(self, text: str, style: str = "") -> None:
        for part in Text(text, style).wrap(self._console, self._console.width - 4):
            self._console.print(Text("    ") + part)
