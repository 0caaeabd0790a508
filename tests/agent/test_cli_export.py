"""`tidemark volume export`, and back by `import`, on a real pool: byte for byte, holes included."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import CliRig, clear, cli_rig, named
from support.cli_schema import validate
from support.files import allocated
from support.sizes import MIB

from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CliRig, Client]]:
    with cli_rig(tmp_path_factory.mktemp("e")) as made:
        yield made


@pytest.fixture
def rig(world: tuple[CliRig, Client]) -> CliRig:
    return world[0]


@pytest.fixture
def client(world: tuple[CliRig, Client]) -> Iterator[Client]:
    yield world[1]
    clear(world[1])


def same_bytes(left: Path, right: Path) -> bool:
    return subprocess.run(["cmp", str(left), str(right)], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("fs_type", "size"), [("ext4", "64Mi"), ("xfs", "300Mi")])
def test_a_file_system_goes_out_and_comes_back(
    rig: CliRig, client: Client, tmp_path: Path, fs_type: str, size: str
) -> None:
    rig.ok("volume", "create", "db", size, "--fs", fs_type)
    data = os.urandom(5 * MIB)
    with rig.mounted("db") as point:
        (point / "data").write_bytes(data)
        rig.ok("snapshot", "create", "db", "s")
        (point / "data").write_bytes(b"newer")
    snapshot = named(client)["s"]
    file = tmp_path / "s.img"
    done = rig.json("volume", "export", "s", str(file))
    validate(done, "exported_file")
    assert done["shared"] is False, "it is on another file system"
    assert same_bytes(file, rig.image(snapshot))
    assert file.stat().st_size == snapshot.size
    assert allocated(file) <= allocated(rig.image(snapshot)) + MIB, "holes stay holes"
    assert os.listdir(tmp_path) == ["s.img"]

    rig.ok("volume", "import", str(file), "back")
    assert same_bytes(file, rig.image(named(client)["back"]))
    back = next(node for node in client.tree(with_usage=True) if node.name == "back")
    assert back.usage is not None
    assert back.usage.shared == 0
    assert back.usage.exclusive <= allocated(file) + MIB
    with rig.mounted("back") as point:
        assert (point / "data").read_bytes() == data
    assert named(client)["back"].format == fs_type


def test_an_unmounted_volume_is_exported_and_a_mounted_one_is_not(rig: CliRig, client: Client, tmp_path: Path) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    file = tmp_path / "db.img"
    with rig.mounted("db") as point:
        (point / "data").write_bytes(b"kept")
        said = rig.refused("volume", "export", "db", str(file))
        assert "tidemark snapshot create db" in said
    assert os.listdir(tmp_path) == []
    rig.ok("volume", "export", "db", str(file))
    assert same_bytes(file, rig.image(named(client)["db"]))
    assert named(client)["db"].holder == "", "the hold is given back"
    assert "--force" in rig.refused("volume", "export", "db", str(file))
    rig.ok("volume", "export", "db", str(file), "--force")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert "a link" in rig.refused("volume", "export", "db", str(link), "--force")
    with rig.mounted("db") as point:
        assert (point / "data").read_bytes() == b"kept"


def test_a_member_of_a_group_is_exported(rig: CliRig, client: Client, tmp_path: Path) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    with rig.mounted("db") as point:
        (point / "data").write_bytes(b"kept")
        rig.ok("group", "create", "g", "db")
    rig.ok("volume", "export", "g/db", str(tmp_path / "db.img"))
    rig.ok("volume", "import", str(tmp_path / "db.img"), "back")
    with rig.mounted("back") as point:
        assert (point / "data").read_bytes() == b"kept"


def test_on_the_pools_own_file_system_the_data_is_shared(rig: CliRig, client: Client) -> None:
    assert rig.disk is not None
    rig.ok("volume", "create", "db", "64Mi", "--block")
    rig.ok("snapshot", "create", "db", "s")
    outside = rig.disk.point / "exports"
    outside.mkdir()
    done = rig.json("volume", "export", "s", str(outside / "s.img"))
    assert done["shared"] is True
    assert same_bytes(outside / "s.img", rig.image(named(client)["s"]))
    assert "inside the pool" in rig.refused("volume", "export", "s", str(rig.pool / "s.img"))
    (outside / "s.img").unlink()
    outside.rmdir()


def test_a_target_that_is_full_gets_nothing(rig: CliRig, client: Client, tmp_path: Path) -> None:
    rig.ok("volume", "create", "db", "64Mi")
    with rig.mounted("db") as point:
        (point / "data").write_bytes(os.urandom(16 * MIB))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(small)], check=True, timeout=10)
    try:
        said = rig.refused("volume", "export", "db", str(small / "db.img"))
        assert os.strerror(errno.ENOSPC) in said
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=10)
    assert named(client)["db"].holder == ""


def test_one_that_is_killed_anywhere_leaves_no_file_and_is_repeated(
    rig: CliRig, client: Client, tmp_path: Path
) -> None:
    """Its hold stays until it lapses, and names it; whoever cannot wait for that has `release`."""
    rig.ok("volume", "create", "db", "64Mi")
    with rig.mounted("db") as point:
        (point / "data").write_bytes(os.urandom(MIB))
    directory = tmp_path / "out"
    directory.mkdir()
    file = directory / "db.img"
    point_number = 0
    while True:
        killed = rig.order("die", str(point_number), "volume", "export", "db", str(file))
        holder = named(client)["db"].holder
        if killed.status == 0:
            break
        assert killed.status == -9
        assert os.listdir(directory) in ([], ["db.img"]), "nothing but a whole file"
        if file.exists():
            assert same_bytes(file, rig.image(named(client)["db"]))
            file.unlink()
        if holder:
            assert holder.startswith("export on ")
            client.release(named(client)["db"].id, holder)
        point_number += 1
    assert point_number >= 3, "the calls are not reached"
    assert same_bytes(file, rig.image(named(client)["db"]))


def test_where_the_pool_is_not_mounted_it_says_where_to_run(rig: CliRig, client: Client, tmp_path: Path) -> None:
    """As for a user of the host whose agent runs in a container with other mounts."""
    rig.ok("volume", "create", "db", "64Mi")
    assert rig.disk is not None
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'umount -l {rig.disk.point} && exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*argv, *rig.command, "volume", "export", "db", str(tmp_path / "db.img")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=rig.environment,
    )
    assert done.returncode == 1
    assert "where the agent runs" in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_import_into_a_pool_that_runs_full_is_taken_back(rig: CliRig, client: Client, tmp_path: Path) -> None:
    """It stops at the pool's reserve, before the writes of other volumes fail."""
    assert rig.disk is not None
    file = tmp_path / "big.img"
    with file.open("wb") as writing:
        for _ in range(6):
            writing.write(os.urandom(64 * MIB))
    ballast = rig.disk.point / "ballast"
    with ballast.open("wb") as filling:
        os.posix_fallocate(filling.fileno(), 0, rig.disk.free() - 300 * MIB)
    try:
        before = rig.disk.free()
        said = rig.refused("volume", "import", str(file), "db")
        assert "less than its reserve" in said
        assert client.tree() == []
        assert rig.gives_back(before, 2 * MIB), "the space is given back"
    finally:
        ballast.unlink()
