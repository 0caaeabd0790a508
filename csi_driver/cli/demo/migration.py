"""A person's story: a database on a mounted volume, a bad migration, and back. Each step by the command that a person types."""

from dataclasses import dataclass
from pathlib import Path

from csi_driver.cli.demo.lab import Lab
from csi_driver.cli.demo.screen import Screen
from csi_driver.cli.demo.shop import MIGRATION, Shop
from csi_driver.cli.demo.typist import Typist

VOLUME, SNAPSHOT, COPY = "shop", "before-migration", "shop-migrated"
_FILE = "shop.db"


@dataclass(frozen=True)
class _Content:
    """What the shop's database holds at one moment."""

    orders: int
    euros: float
    digest: str

    def __str__(self) -> str:
        return f"{self.orders:,} orders, {self.euros:,.2f} euros in total"


def play(lab: Lab, screen: Screen, typist: Typist) -> None:
    """Play and check the story. Raises CheckFailed at the first check that fails, Failure at a command that is refused."""
    story = _Story(lab, screen, typist)
    try:
        story.open_shop()
        story.take_snapshot()
        story.migrate()
        story.go_back()
        story.look_at_the_migrated()
        story.clean_up()
    finally:
        story.close_shop()


class _Story:
    def __init__(self, lab: Lab, screen: Screen, typist: Typist) -> None:
        self._lab, self._screen, self._typist = lab, screen, typist
        self._directory, self._copy = lab.mounts / VOLUME, lab.mounts / COPY
        self._safety = ""
        self._shop: Shop | None = None

    def open_shop(self) -> None:
        self._screen.step("A volume for a database", "Thin: it takes space as it is written.")
        self._type("volume", "create", VOLUME, "--size", "256Mi")
        self._type("mount", VOLUME, self._shown(self._directory), beside="formats it the first time")
        shop = self._open(Shop(self._directory / _FILE))
        shop.fill()
        self._good = self._read(shop)
        self._screen.good(f"SQLite keeps a shop in {_FILE}: {self._good}")

    def take_snapshot(self) -> None:
        self._screen.step("A snapshot, before the migration", "The database stays open.")
        self._type("snapshot", "create", VOLUME, SNAPSHOT, beside="nothing is copied")

    def migrate(self) -> None:
        self._screen.step("The migration", "Euros become cents. It divides where it should multiply.")
        for statement in MIGRATION:
            self._screen.code(statement)
        assert self._shop is not None
        self._shop.migrate()
        self._bad = self._read(self._shop)
        self.close_shop()
        self._lab.checks.that("the migration did harm", self._bad.euros < self._good.euros / 100, str(self._bad))
        self._screen.bad(f"{self._bad}, and the old column is gone")

    def go_back(self) -> None:
        self._screen.step("And back", "The volume stays the same one, and keeps its snapshots.")
        away = self._type("umount", self._shown(self._directory), beside="the shop is closed")
        rolled = self._type("rollback", VOLUME, SNAPSHOT, beside="the content of now is kept in a snapshot too")
        back = self._type("mount", VOLUME, self._shown(self._directory))
        shop = self._open(Shop(self._directory / _FILE))
        if self._lab.corrupt == VOLUME:
            shop.change_one()
        now = self._read(shop)
        self._lab.checks.that("shop holds each order as before", now == self._good, str(now))
        self._lab.checks.that("SQLite finds the database sound", shop.is_sound())
        self.close_shop()
        self._screen.good(f"{now}: each row is as it was before the migration")
        self._screen.good(f"back in {rolled:.0f} ms; {away + rolled + back:.0f} ms with umount and mount")

    def look_at_the_migrated(self) -> None:
        snapshots = [node.name for node in self._lab.client.tree() if node.kind == "snapshot" and node.name != SNAPSHOT]
        self._lab.checks.that("the rollback kept the content before it", len(snapshots) == 1, ", ".join(snapshots))
        self._safety = snapshots[0]
        self._screen.step("What went wrong is kept as well", "To find the mistake, and orders that came in since.")
        self._type("volume", "create", COPY, "--from", self._safety)
        self._type("mount", COPY, self._shown(self._copy), "--read-only")
        migrated = self._read(self._open(Shop(self._copy / _FILE, writable=False)))
        self.close_shop()
        self._lab.checks.that(f"{COPY} holds what the migration made", migrated == self._bad, str(migrated))
        self._screen.good(f"{COPY}: {migrated}")

    def clean_up(self) -> None:
        self._screen.step("Tidy up", "In any order: none of these harms another.")
        self._type("snapshot", "delete", SNAPSHOT, self._safety)
        for directory in (self._directory, self._copy):
            self._type("umount", self._shown(directory))
        self._type("volume", "delete", VOLUME, COPY)
        remaining = self._lab.remaining()
        self._lab.checks.that("the shop leaves nothing", not remaining, ", ".join(remaining))

    def close_shop(self) -> None:
        """Close the database if it is open: its volume could not be unmounted, after an error either."""
        if self._shop is not None:
            self._shop.close()

    def _open(self, shop: Shop) -> Shop:
        self._shop = shop
        return shop

    def _type(self, *words: str, beside: str = "") -> float:
        """Type a command, show it with what it printed, and return the milliseconds that it took."""
        typed = self._typist.type(*words)
        self._screen.command(" ".join(("tidemark", *words)), typed.milliseconds, beside, typed.output)
        return typed.milliseconds

    def _shown(self, directory: Path) -> str:
        """Return a directory as it is typed: the commands run in the demo's own one."""
        return str(directory.relative_to(self._lab.root))

    @staticmethod
    def _read(shop: Shop) -> _Content:
        return _Content(*shop.totals(), shop.digest())
