"""How a file system is: what the kernel says of one that is mounted, and whether an ext4 asks for a check before it is.

Nothing of this can be told from a mount that is there and a statfs that answers. An ext4 that met an error under
`errors=remount-ro` reads `rw` in mountinfo, beside `emergency_ro` (before Linux 6.12 it read `ro`, and between 6.12 and the
version that has that word nothing but its count of errors tells it); one under `errors=continue` differs by its count alone;
an XFS that shut itself down reads `rw`, answers statfs, and refuses an open with EIO.
"""

import errno
import os
import struct

from csi_driver.host.freeze import state as freeze_state

StrPath = str | os.PathLike[str]

LOST = "its superblock is lost"

_SHUT = (errno.EIO, errno.ESHUTDOWN)
_SUPERBLOCK, _LENGTH = 1024, 1024
_MAGIC = 0xEF53
# Offsets in the superblock, by the kernel's documentation of the format; little-endian.
_AT_MAGIC, _AT_ERROR_COUNT = 56, 404  # the state follows the magic number
_CLEAN, _HAS_ERRORS = 1, 2


def errors_of_ext4(name: str) -> int:
    """How many errors the ext4 mounted from the block device `name` has met since it was last checked; 0 where none is mounted.

    The kernel's own count: to ask for it starts nothing and waits for nothing.
    """
    try:
        with open(f"/sys/fs/ext4/{name}/errors_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def is_shut_down(point: str, major: int, minor: int) -> bool:
    """Whether the file system mounted at `point`, the one on `major`:`minor`, refuses an open as shut down. It may hang.

    Raises FreezeError NotOurs, OSError.
    """
    try:
        os.close(freeze_state.open_mount(point, major, minor))
    except OSError as error:
        if not is_of_shut_down(error):
            raise
        return True
    return False


def is_of_shut_down(error: OSError) -> bool:
    """Whether an open failed as it does on a file system that was shut down."""
    return error.errno in _SHUT


def complaint(image: StrPath, *, is_ext4: bool) -> str:
    """Why the ext4 in an image asks for a check before it is mounted, as the rest of "since ..."; empty where it does not.

    `is_ext4`: that is known, so a superblock that is missing was lost. One that a journal is to be replayed for asks for
    nothing: the mount replays it. Nor does one that was mounted often, or a long time ago: that tells nothing of its state, and
    a pod would wait for it. Reads 1 KiB. Raises OSError.
    """
    with open(image, "rb") as file:
        file.seek(_SUPERBLOCK)
        block = file.read(_LENGTH)
    block = block.ljust(_LENGTH, b"\0")
    magic, state = struct.unpack_from("<HH", block, _AT_MAGIC)
    (errors,) = struct.unpack_from("<I", block, _AT_ERROR_COUNT)
    if magic != _MAGIC:
        return LOST if is_ext4 else ""
    if errors:
        return f"its superblock counts {errors} errors"
    if state & _HAS_ERRORS:
        return "its superblock says that it has errors"
    # With a journal, the kernel leaves this bit set while the file system is mounted.
    if not state & _CLEAN:
        return "it has no journal and was not unmounted, or a check of it was broken off"
    return ""
