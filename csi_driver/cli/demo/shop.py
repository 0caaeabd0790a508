"""The shop of the demo: a small, real SQLite database in a file, and the migration that goes wrong."""

import hashlib
import sqlite3
from pathlib import Path

ORDERS = 5000

MIGRATION = (
    "ALTER TABLE orders ADD COLUMN cents INTEGER",
    "UPDATE orders SET cents = euros / 100",
    "ALTER TABLE orders DROP COLUMN euros",
)
"""Meant to multiply. The last line takes away what it could be repaired from."""


class Shop:
    """An open database. `writable` False: a file on a read-only mount."""

    def __init__(self, path: Path, writable: bool = True) -> None:
        # Nobody else has the file; without `immutable`, SQLite would lock it, and look for a journal to replay.
        options = "mode=rwc" if writable else "mode=ro&immutable=1"
        self._database = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True)
        self._database.execute("PRAGMA synchronous = FULL")

    def fill(self) -> None:
        """Create the table and its orders, the same ones each time."""
        with self._database:
            self._database.execute(
                "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, euros INTEGER)"
            )
            self._database.executemany(
                "INSERT INTO orders VALUES (?, ?, ?)",
                ((number, f"customer {number * 7919 % 997}", 20 + number * 31 % 160) for number in range(ORDERS)),
            )

    def migrate(self) -> None:
        """Run the migration, and commit."""
        with self._database:
            for statement in MIGRATION:
                self._database.execute(statement)

    def change_one(self) -> None:
        """Change one order by one euro."""
        with self._database:
            self._database.execute("UPDATE orders SET euros = euros + 1 WHERE id = ?", (ORDERS // 2,))

    def totals(self) -> tuple[int, float]:
        """Return the number of orders, and their sum in euros by the column that there is."""
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(orders)")}
        amount = "euros" if "euros" in columns else "cents / 100.0"
        count, total = self._database.execute(f"SELECT count(*), sum({amount}) FROM orders").fetchone()  # noqa: S608
        return count, float(total)

    def digest(self) -> str:
        """Return a hash of all tables and rows."""
        return hashlib.sha256("\n".join(self._database.iterdump()).encode()).hexdigest()

    def is_sound(self) -> bool:
        """Return whether SQLite's own check finds nothing."""
        return bool(self._database.execute("PRAGMA integrity_check").fetchone() == ("ok",))

    def close(self) -> None:
        """Close the file, so that the volume can be unmounted."""
        self._database.close()
