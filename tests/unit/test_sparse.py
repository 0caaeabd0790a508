"""Copies of sparse files, against the bytes themselves."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.host.fs import sparse

BLOCK = 4096
PIECES = st.lists(
    st.tuples(st.integers(0, 3 * sparse.CHUNK), st.integers(1, 3 * BLOCK), st.sampled_from([0, 1, 255])), max_size=8
)


def written_file(path: Path, size: int, pieces: list[tuple[int, int, int]]) -> bytes:
    model = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for at, length, value in pieces:
            data = bytes([value]) * max(0, min(length, size - at))
            file.seek(at)
            file.write(data)
            model[at : at + len(data)] = data
    return bytes(model)


def copied(source: Path, target: Path, size: int) -> int:
    with source.open("rb") as reading, target.open("w+b") as writing:
        os.ftruncate(writing.fileno(), size)
        return sparse.copy(reading.fileno(), writing.fileno(), size)


@given(st.integers(1, 3 * sparse.CHUNK + 777), PIECES)
def test_a_copy_has_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, size: int, pieces: list[tuple[int, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("sparse")
    source, target = directory / "source", directory / "target"
    model = written_file(source, size, [piece for piece in pieces if piece[0] < size])
    written = copied(source, target, size)
    assert target.read_bytes() == model
    assert written <= len(model)


def test_holes_and_written_zeroes_stay_out(tmp_path: Path) -> None:
    """A 64 MiB image that somebody copied without its holes takes what its two blocks of data take."""
    size = 64 << 20
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(bytes(size))
        for at in (5 << 20, size - BLOCK):
            file.seek(at)
            file.write(b"x" * BLOCK)
    assert source.stat().st_blocks * 512 >= size
    assert copied(source, target, size) == 2 * sparse.GRAIN
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 2 * sparse.GRAIN + 64 * 1024


def test_a_hole_is_not_read(tmp_path: Path) -> None:
    """A terabyte of nothing is copied at once, and progress ends at its end."""
    size = 1 << 40
    source, target = tmp_path / "source", tmp_path / "target"
    written_file(source, 1 << 20, [(0, 10, 1)])
    os.truncate(source, size)
    seen: list[tuple[int, int]] = []
    with source.open("rb") as reading, target.open("w+b") as writing:
        os.ftruncate(writing.fileno(), size)
        sparse.copy(reading.fileno(), writing.fileno(), size, lambda done, written: seen.append((done, written)))
    assert seen[-1] == (size, BLOCK)
    assert len(seen) == 2


def test_a_source_that_ends_early_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 3 * BLOCK)
    with source.open("rb") as reading, target.open("w+b") as writing:

        def cut(_done: int, _written: int) -> None:
            os.truncate(source, BLOCK)

        os.truncate(source, 2 * sparse.CHUNK)
        with source.open("r+b") as file:
            file.seek(sparse.CHUNK)
            file.write(b"y" * sparse.CHUNK)
        with pytest.raises(sparse.SourceChanged):
            sparse.copy(reading.fileno(), writing.fileno(), 2 * sparse.CHUNK, cut)
