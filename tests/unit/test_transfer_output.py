"""A new file appears whole or not at all, and takes the place of nothing that it should not replace."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.cli.common import Failure
from csi_driver.cli.transfer import output_file
from csi_driver.cli.transfer.output_file import new_file


def write(
    path: Path,
    data: bytes = b"new",
    force: bool = False,
    outside: int | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    with new_file(str(path), force, outside) as fd:
        os.write(fd, data)
        meanwhile()


@pytest.fixture(params=[False, True], ids=["nameless", "named"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both ways of making a file that has no name yet: not every file system has the first."""
    if request.param:
        real = os.open

        def without_tmpfile(path: str, flags: int, *rest: int, **more: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(95, "Operation not supported")
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(output_file.os, "open", without_tmpfile)
    return tmp_path


def test_it_appears_with_its_content_and_nothing_beside_it(directory: Path) -> None:
    with new_file(str(directory / "db.img"), force=False) as fd:
        os.write(fd, b"new")
        assert not (directory / "db.img").exists()
    assert (directory / "db.img").read_bytes() == b"new"
    assert os.listdir(directory) == ["db.img"]
    assert (directory / "db.img").stat().st_mode & 0o777 == 0o600, "what a volume holds is nobody else's"


def test_an_error_leaves_nothing_and_an_old_file_as_it_was(directory: Path) -> None:
    (directory / "old.img").write_bytes(b"old")
    for name, force in (("new.img", False), ("old.img", True)):
        with pytest.raises(ZeroDivisionError):
            write(directory / name, b"half", force, meanwhile=lambda: 1 / 0)
    assert os.listdir(directory) == ["old.img"]
    assert (directory / "old.img").read_bytes() == b"old"


def test_a_file_is_replaced_only_by_force(directory: Path) -> None:
    path = directory / "db.img"
    path.write_bytes(b"old")
    with pytest.raises(Failure, match="--force"):
        write(path)
    assert path.read_bytes() == b"old"
    write(path, force=True)
    assert path.read_bytes() == b"new"
    assert os.listdir(directory) == ["db.img"]


def test_a_file_that_appears_meanwhile_stays(directory: Path) -> None:
    path = directory / "db.img"
    with pytest.raises(Failure, match="--force"):
        write(path, meanwhile=lambda: path.write_bytes(b"somebody else's"))
    assert path.read_bytes() == b"somebody else's"
    assert os.listdir(directory) == ["db.img"]


@pytest.mark.parametrize("force", [False, True])
def test_links_devices_and_directories_are_never_replaced_or_followed(directory: Path, force: bool) -> None:
    victim = directory / "victim"
    victim.write_bytes(b"precious")
    (directory / "link").symlink_to(victim)
    (directory / "dangling").symlink_to(directory / "nowhere")
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    for name in ("link", "dangling", "directory", "fifo"):
        with pytest.raises(Failure, match="never replaced"):
            write(directory / name, force=force)
    assert victim.read_bytes() == b"precious"
    assert not (directory / "nowhere").exists()
    assert len(os.listdir(directory)) == 5


def test_a_link_that_appears_meanwhile_is_not_followed(directory: Path) -> None:
    victim = directory / "victim"
    victim.write_bytes(b"precious")
    with pytest.raises(Failure, match="a link"):
        write(directory / "db.img", force=True, meanwhile=lambda: (directory / "db.img").symlink_to(victim))
    assert victim.read_bytes() == b"precious"


def test_the_pool_is_no_place_for_it(tmp_path: Path) -> None:
    inside = tmp_path / "pool" / "volumes"
    inside.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inside)
    pool = os.open(tmp_path / "pool", os.O_RDONLY)
    try:
        for directory in (tmp_path / "pool", inside, tmp_path / "link"):
            with pytest.raises(Failure, match="inside the pool"):
                write(directory / "db.img", outside=pool)
        write(tmp_path / "db.img", outside=pool)
    finally:
        os.close(pool)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="nowhere"):
        write(tmp_path / "nowhere" / "db.img")
    with pytest.raises(Failure, match="not the name of a file"):
        write(Path("/"))
