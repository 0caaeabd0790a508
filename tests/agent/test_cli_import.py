"""`tidemark volume import` and what happens to it on the way: the volume is there with every byte, or not at all."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import CliRig, cli_rig, memory_cli_rig

from csi_driver.cli.transfer.hidden_names import PREFIX
from csi_driver.rpc.clients.cli_client import Client, Node

pytestmark = pytest.mark.timeout(300)

BLOCK = 4096
SIZE = 3 * (1 << 20) + 777


@pytest.fixture(scope="module", params=["memory", pytest.param("reflink", marks=pytest.mark.root)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CliRig, Client]]:
    place = tmp_path_factory.mktemp("i")
    with memory_cli_rig(place) if request.param == "memory" else cli_rig(place) as made:
        yield made


@pytest.fixture
def rig(world: tuple[CliRig, Client]) -> CliRig:
    return world[0]


@pytest.fixture
def client(world: tuple[CliRig, Client]) -> Iterator[Client]:
    yield world[1]
    for node in world[1].tree():
        assert not node.name.startswith(PREFIX), f"left behind: {node}"
        world[1].delete_volume(node.id)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An image whose size is no multiple of a block, with holes, written zeroes, and data at both ends."""
    path = tmp_path / "db.img"
    generator = random.Random(7)
    with path.open("wb") as writing:
        writing.truncate(SIZE)
        for at, length in ((0, BLOCK), (1 << 20, 300_000), (2 << 20, 1), (SIZE - 5, 5)):
            writing.seek(at)
            writing.write(generator.randbytes(length))
        writing.seek(500_000)
        writing.write(bytes(200_000))
    return path


def padded(path: Path) -> bytes:
    data = path.read_bytes()
    return data + bytes(-len(data) % BLOCK)


def volumes(client: Client) -> dict[str, Node]:
    return {node.name: node for node in client.tree() if node.kind == "volume"}


def test_every_byte_is_there_and_the_rounding_is_said(rig: CliRig, client: Client, file: Path) -> None:
    said = rig.ok("volume", "import", str(file), "db")
    assert "rounded up" in said
    assert "a raw block device" in said
    assert rig.content(client, "db") == padded(file)
    (usage,) = [node.usage for node in client.tree(with_usage=True)]
    assert usage is not None
    assert usage.shared == 0
    assert usage.exclusive <= 16 * (64 << 10), "holes and written zeroes take no space"
    assert "an image file" in rig.ok("volume", "list")


def test_a_name_that_is_taken_is_refused(rig: CliRig, client: Client, file: Path) -> None:
    rig.ok("volume", "create", "db", "1Mi", "--block")
    rig.ok("volume", "create", "other", "1Mi", "--block")
    rig.ok("volume", "rename", "other", "shown")
    before = client.tree()
    for name in ("db", "shown", "other"):
        assert "exists" in rig.refused("volume", "import", str(file), name)
    renamed = rig.refused("volume", "import", str(file), "other")
    assert "volume shown exists, which was created as other: use another name" in renamed
    rig.run("volume", "import", str(file), "Not A Name", status=2)
    assert client.tree() == before


def test_what_is_no_image_is_refused(rig: CliRig, client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, why in (
        ("empty", "is empty"),
        ("fifo", "not a regular"),
        ("", "not a regular"),
        ("no", "cannot be read"),
    ):
        assert why in rig.refused("volume", "import", str(tmp_path / name), "db")
    assert client.tree() == []


@pytest.mark.parametrize("change", ["cut", "append", "touch"])
def test_a_file_that_changes_meanwhile_makes_no_volume(rig: CliRig, client: Client, file: Path, change: str) -> None:
    done = rig.order(change, str(file), "volume", "import", str(file), "db")
    assert done.status == 1
    assert "changed while it was read" in done.stderr
    assert client.tree() == []


def test_a_sigterm_leaves_nothing(rig: CliRig, client: Client, file: Path) -> None:
    assert rig.order("term", "volume", "import", str(file), "db").status == 128 + 15
    assert client.tree() == []


def test_what_a_killed_import_left_is_deleted_by_its_name(rig: CliRig, client: Client, file: Path) -> None:
    """Its volume is attached still: after the creation come stage and publish, and then the copying is the third call."""
    assert rig.order("die", "3", "volume", "import", str(file), "db").status == -9
    (left,) = client.tree()
    assert left.name == f"{PREFIX}db"
    assert left.used_by
    assert "is deleted" in rig.ok("volume", "delete", f"{PREFIX}db")
    assert client.tree() == []
    assert [path.name for path in (rig.place / "staging").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("world", [pytest.param("reflink", marks=pytest.mark.root)], indirect=True)
def test_one_that_is_killed_anywhere_is_repeated(rig: CliRig, client: Client, file: Path) -> None:
    """After each call of the command that changes something: the volume is whole or absent, and the same command again cleans up."""
    point = 0
    while True:
        killed = rig.order("die", str(point), "volume", "import", str(file), "db")
        if killed.status == 0:
            break
        assert killed.status == -9, killed.stderr
        complete = "db" in volumes(client)
        if complete:
            assert rig.content(client, "db") == padded(file), f"killed at {point}: half a volume"
        again = rig.run("volume", "import", str(file), "db")
        assert (again.status == 0) != complete, f"killed at {point}: {again.stderr}"
        left = client.tree()
        assert [node.name for node in left] == ["db"], f"killed at {point}: left {[node.name for node in left]}"
        assert rig.content(client, "db") == padded(file), f"killed at {point}"
        client.delete_volume(left[0].id)
        point += 1
    assert point >= 10, "the calls are not reached"
