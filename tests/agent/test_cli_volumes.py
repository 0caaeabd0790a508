"""Clone, rename, dry runs and deletions by the command line, on a real pool."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import CliRig, clear, cli_rig, named
from support.sizes import MIB

from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ROUNDING = 1 * MIB
"""What XFS itself gives back or keeps: blocks of its own trees, and what it set aside for later writes. Measured: 4 to 12 KiB with
snapshots, 0.5 MiB with a volume."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CliRig, Client]]:
    with cli_rig(tmp_path_factory.mktemp("c")) as made:
        yield made


@pytest.fixture
def rig(world: tuple[CliRig, Client]) -> CliRig:
    return world[0]


@pytest.fixture
def client(world: tuple[CliRig, Client]) -> Iterator[Client]:
    """The same agent for all tests of this module, with nothing left of the test before."""
    yield world[1]
    clear(world[1])


def test_a_clone_of_a_mounted_volume_has_its_content(rig: CliRig, client: Client) -> None:
    rig.ok("volume", "create", "db", "300Mi", "--fs", "xfs")
    with rig.mounted("db") as point:
        (point / "data").write_bytes(b"written before the clone")
        said = rig.ok("volume", "clone", "db", "db2", "--size", "400Mi")
        assert "clone of db" in said
        assert "400 MiB" in said
        (point / "data").write_bytes(b"written after the clone")
    with rig.mounted("db2") as point:
        assert (point / "data").read_bytes() == b"written before the clone"
    assert "unchanged" in rig.ok("volume", "clone", "db", "db2")
    assert "not a clone of db2" in rig.refused("volume", "clone", "db2", "db")
    rig.ok("snapshot", "create", "db", "now")
    rig.ok("volume", "clone", "now", "db3")
    with rig.mounted("db3") as point:
        assert (point / "data").read_bytes() == b"written after the clone"
    assert rig.json("volume", "clone", "now", "db4", "--thick")["thick"] is True
    rig.run("volume", "clone", "db", "Db 5", status=2)
    assert "no volume or snapshot is called" in rig.refused("volume", "clone", "nothing", "db5")


def test_a_renamed_volume_is_known_by_both_names(rig: CliRig, client: Client) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    with rig.mounted("db") as point:
        (point / "data").write_bytes(b"kept")
        assert "orders" in rig.ok("volume", "rename", "db", "orders")
    before = named(client)["db"]
    assert "orders" in rig.ok("volume", "list")
    assert rig.json("volume", "show", "orders")["id"] == rig.json("volume", "show", "db")["id"] == before.id
    with rig.mounted("orders") as point:
        assert (point / "data").read_bytes() == b"kept"
    again = rig.ok("volume", "create", "db", "64Mi")
    assert "unchanged" in again
    assert "orders" in again
    assert "created as db" in rig.refused("volume", "create", "orders", "64Mi")
    assert "volume orders exists, which was created as db, and is not a clone of" in rig.refused(
        "volume", "clone", "orders", "db"
    )
    assert "unchanged" in rig.ok("volume", "rename", "orders", "orders")
    rig.ok("volume", "create", "other", "64Mi")
    assert "cannot be renamed" in rig.refused("volume", "rename", "other", "orders")
    assert "cannot be renamed" in rig.refused("volume", "rename", "other", "db")
    rig.run("volume", "rename", "other", "Not A Name", status=2)
    rig.ok("volume", "rename", "orders", "db")
    assert named(client)["db"] == before.__class__(**{f: getattr(before, f) for f in before.__slots__} | {"label": ""})
    rig.ok("volume", "rename", "other", "orders")


def write_random(path: Path, size: int) -> None:
    """In place: a file that is made again lies elsewhere in its file system, and the old blocks stay in the image."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def free(rig: CliRig) -> int:
    assert rig.disk is not None
    return rig.disk.free()


def free_after(rig: CliRig, before: int, expected: int) -> int:
    """What was freed since, once the trash is empty and the file system says no other number any more."""
    until, last = time.monotonic() + 30, -1
    while True:
        now = free(rig) - before
        if not os.listdir(rig.pool / ".trash") and (abs(now - expected) <= ROUNDING or now == last):
            return now
        assert time.monotonic() < until, "the trash is not emptied"
        last = now
        time.sleep(0.2)


def test_a_dry_run_says_what_the_file_system_then_gives_back(rig: CliRig, client: Client) -> None:
    """Three snapshots share what was overwritten between them: alone each frees little, together they free it all."""
    rig.ok("volume", "create", "db", "256Mi")
    with rig.mounted("db") as point:
        for number in range(3):
            write_random(point / "data", 20 * MIB)
            rig.ok("snapshot", "create", "db", f"s{number}a")
            rig.ok("snapshot", "create", "db", f"s{number}b")
        write_random(point / "data", 20 * MIB)
        os.sync()
    alone = {node.id: node.usage.exclusive for node in client.tree(with_usage=True) if node.usage}
    for names in (["s2b"], ["s0a", "s0b"], ["s1a", "s1b", "s2a"]):
        expected = rig.json("snapshot", "delete", *names, "--dry-run")["freed_bytes"]
        assert {node.name for node in client.tree()} >= set(names), "nothing was deleted"
        if len(names) > 1:
            assert expected > 15 * MIB
            assert sum(alone[named(client)[name].id] for name in names) < 2 * MIB
        before = free(rig)
        rig.ok("snapshot", "delete", *names)
        freed = free_after(rig, before, expected)
        print(f"{names}: said {expected}, freed {freed}, differ by {freed - expected}")
        assert abs(freed - expected) <= ROUNDING
    assert "would free" in rig.ok("volume", "delete", "db", "--dry-run")
    expected = rig.json("volume", "delete", "db", "--with-snapshots", "--dry-run")["freed_bytes"]
    before = free(rig)
    rig.ok("volume", "delete", "db", "--with-snapshots", "--yes")
    freed = free_after(rig, before, expected)
    print(f"all: said {expected}, freed {freed}, differ by {freed - expected}")
    assert abs(freed - expected) <= ROUNDING


def test_a_volume_goes_with_its_snapshots_only_if_nothing_depends_on_them(rig: CliRig, client: Client) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    for name in ("s1", "s2"):
        rig.ok("snapshot", "create", "db", name)
    everything = set(named(client))
    delete = ("volume", "delete", "db", "--with-snapshots")

    assert "--yes" in rig.refused(*delete), "nobody can be asked, so nothing is deleted"
    rig.ok("volume", "clone", "s1", "test")
    assert "test is a clone of s1" in rig.refused(*delete, "--yes")
    assert "test is a clone of s1" in rig.run(*delete, "--dry-run", status=1).stderr
    client.delete_volume(named(client)["test"].id)
    with rig.mounted("db"):
        assert "umount" in rig.refused(*delete, "--yes")
    held = named(client)["db"].id
    client.hold(held, "somebody")
    assert "somebody" in rig.refused(*delete, "--yes")
    client.release(held, "somebody")
    rig.ok("group", "create", "g", "db")
    assert "tidemark group delete g" in rig.refused(*delete, "--yes")
    client.delete_group(next(node.id for node in client.tree() if node.kind == "group"))
    assert set(named(client)) == everything, "refusals deleted nothing"

    said = rig.ok(*delete, "--yes").splitlines()
    assert said == ["snapshot s1 is deleted", "snapshot s2 is deleted", "volume db is deleted"]
    assert client.tree() == []


def test_a_deletion_that_stops_says_what_is_left_and_is_repeated(rig: CliRig, client: Client) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    for name in ("s1", "s2", "s3"):
        rig.ok("snapshot", "create", "db", name)
    done = rig.order("refuse", "s2", "volume", "delete", "db", "--with-snapshots", "--yes")
    assert done.status == 1
    assert "left: s2, s3, db" in done.stderr
    assert set(named(client)) == {"s2", "s3", "db"}
    rig.ok("volume", "delete", "db", "--with-snapshots", "--yes")
    assert client.tree() == []
