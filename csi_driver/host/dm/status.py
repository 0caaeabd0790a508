"""What thin pools and thin volumes say of themselves (Documentation/admin-guide/device-mapper/thin-provisioning.rst)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from csi_driver.host.dm.ioctl import Target

SECTOR = 512
METADATA_BLOCK = 4096
"""Bytes of a block of a pool's metadata."""

PoolMode = Literal["rw", "ro", "out_of_data_space", "failed"]


@dataclass(frozen=True, slots=True)
class ThinPoolStatus:
    """A thin pool. Metadata in blocks of 4096 bytes, data in the pool's chunks; `chunk_size` of its table tells their size.

    `mode`: `failed` says that nothing else is known (all numbers are 0). `error_if_no_space`: writers fail at once if it is full, and
    do not wait. `held_root`: the block of its metadata snapshot, if there is one.
    """

    mode: PoolMode
    transaction: int = 0
    metadata_used: int = 0
    metadata_total: int = 0
    data_used: int = 0
    data_total: int = 0
    held_root: int | None = None
    needs_check: bool = False
    error_if_no_space: bool = False


@dataclass(frozen=True, slots=True)
class ThinStatus:
    """A thin volume: how much of it is mapped, in sectors of 512 bytes. `failed`: its pool has, and nothing is known."""

    mapped: int
    failed: bool = False


def thin_pool(targets: Sequence[Target]) -> ThinPoolStatus:
    """Read the status of a thin pool. Raises ValueError if the device is not one, or its answer is none that is known."""
    words = _words(targets, "thin-pool")
    if words[0] in {"Fail", "Error"}:
        return ThinPoolStatus("failed")
    try:
        transaction, metadata, data, held, *options = words
        metadata_used, metadata_total = map(int, metadata.split("/"))
        data_used, data_total = map(int, data.split("/"))
        mode = next(mode for mode in _MODES if mode in options)
        return ThinPoolStatus(
            mode,
            int(transaction),
            metadata_used,
            metadata_total,
            data_used,
            data_total,
            None if held == "-" else int(held),
            "needs_check" in options,
            "error_if_no_space" in options,
        )
    except (ValueError, StopIteration):
        raise ValueError(f"not the status of a thin pool: {' '.join(words)!r}") from None


_MODES: tuple[PoolMode, ...] = ("rw", "ro", "out_of_data_space")


def thin(targets: Sequence[Target]) -> ThinStatus:
    """Read the status of a thin volume. Raises ValueError if the device is not one, or its answer is none that is known."""
    words = _words(targets, "thin")
    if words[0] in {"Fail", "Error"}:
        return ThinStatus(0, failed=True)
    return ThinStatus(int(words[0]))


def chunk_size(targets: Sequence[Target]) -> int:
    """Return the bytes of a pool's chunks, from its table. Raises ValueError if the device is not a thin pool."""
    return int(_words(targets, "thin-pool")[2]) * SECTOR


def _words(targets: Sequence[Target], kind: str) -> list[str]:
    if len(targets) != 1 or targets[0].kind != kind or not targets[0].text:
        found = ", ".join(target.kind for target in targets) or "no table"
        raise ValueError(f"not a {kind} device: it has {found}")
    return targets[0].text.split()
