"""A file that appears whole, or not at all, and never in the place of something that it should not replace."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from csi_driver.cli.failure import Failure

_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""How file systems say that they do not know O_TMPFILE."""


@contextmanager
def new_file(path: str, force: bool, outside: int | None = None) -> Iterator[int]:
    """Yield a descriptor of an empty file, to be filled; it gets its name, durably, when the block ends well.

    `force`: a regular file of that name is replaced. A link, a device or anything else never is, and no link is followed.
    `outside`: a descriptor of a directory that the file must not lie in. Raises Failure, OSError.
    """
    directory, name = os.path.split(os.path.abspath(path))
    if not name:
        raise Failure(f"{path} is not the name of a file: use e.g. db.img")
    try:
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{directory} cannot be opened ({error.strerror}): use a directory that exists") from None
    try:
        check_replaceable(path, parent, name, force)
        if outside is not None and _is_inside(parent, outside):
            raise Failure(f"{path} is inside the pool, where only the agent writes: use a directory outside")
        fd, draft = _open(parent, name)
        try:
            yield fd
            os.fsync(fd)
            if not draft:
                draft = _give_name(fd, parent, name)
            # Checked once more: it took a while, and a rename replaces whatever has the name by now.
            check_replaceable(path, parent, name, force)
            if force or not _linked(path, parent, draft, name):
                os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
                draft = ""
            os.fsync(parent)
        finally:
            if draft:
                with suppress(OSError):
                    os.unlink(draft, dir_fd=parent)
            os.close(fd)
    finally:
        os.close(parent)


def check_replaceable(path: str, parent: int, name: str, force: bool) -> None:
    """Raise Failure if something has the name that must not be replaced."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise Failure(f"{path} is {what}, which is never replaced: use another name")
    if not force:
        raise Failure(f"{path} exists: use another name, or --force to replace it")


def _open(parent: int, name: str) -> tuple[int, str]:
    """Return a new file and its name for now; without a name if the file system can: then a kill leaves nothing."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=parent), ""
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    draft = _draft_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(draft, flags, 0o600, dir_fd=parent), draft


def _give_name(fd: int, parent: int, name: str) -> str:
    draft = _draft_name(name)
    os.link(f"/proc/self/fd/{fd}", draft, dst_dir_fd=parent, follow_symlinks=True)
    return draft


def _linked(path: str, parent: int, draft: str, name: str) -> bool:
    """Give the file its name, which a link never takes from another file; False if the file system has no links."""
    try:
        os.link(draft, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        raise Failure(f"{path} exists by now: use another name, or --force to replace it") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        return False
    return True


def _draft_name(name: str) -> str:
    return f".{name[:200]}.{secrets.token_hex(4)}.part"


def _is_inside(parent: int, outside: int) -> bool:
    """Whether a directory is another one, or lies in it, by whatever path."""
    limit = os.fstat(outside)
    current = os.dup(parent)
    try:
        while True:
            here = os.fstat(current)
            if (here.st_dev, here.st_ino) == (limit.st_dev, limit.st_ino):
                return True
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = above
            up = os.fstat(current)
            if (up.st_dev, up.st_ino) == (here.st_dev, here.st_ino):
                return False
    finally:
        os.close(current)
