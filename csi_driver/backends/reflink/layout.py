"""The pool's directory: where things lie, and how they appear and disappear in one step. docs/reference/pool-format.md.

All functions block, and leave nothing half-made: what is built lies under `.new` until one rename shows it, and what is
deleted goes to `.trash` by one rename.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.domain.errors import Damaged, DriverError, OutOfSpace, Precondition, Unavailable
from csi_driver.host.fs import files

IMAGE = "disk.img"
RECORD = "record.json"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_GONE = {
    errno.EIO,
    errno.EROFS,
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.ESHUTDOWN,
    errno.EUCLEAN,
    errno.ENOENT,
    errno.ENOTDIR,
}
CrashPoint = Callable[[str], None]
"""Called with a name between any two steps of a change; tests end the process there."""


def _go_on(_: str) -> None:
    return None


class Layout:
    """One pool's directory. `crash_point` exists for tests alone."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.volumes = root / "volumes"
        self.snapshots = root / "snapshots"
        self.groups = root / "groups"
        self.new = root / ".new"
        self.trash = root / ".trash"
        self.freezes = root / ".freeze"
        self.checks = root / ".check"
        self.kept = root / ".kept"
        self.identity = root / "pool.json"
        self.lock = root / ".lock"
        self.crash_point: CrashPoint = _go_on

    def make_directories(self) -> None:
        """Create what is missing below the root, durably."""
        shown, hidden = (self.volumes, self.snapshots, self.groups), (self.new, self.trash, self.freezes)
        for directory in (*shown, *hidden, self.checks, self.kept):
            directory.mkdir(mode=0o700, exist_ok=True)
        files.fsync_directory(self.root)

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Say in the driver's words what the file system refused."""
        try:
            yield
        except DriverError:
            raise
        except OSError as error:
            raise self.error_for(doing, error) from error

    def error_for(self, doing: str, error: OSError) -> DriverError:
        """The driver's error for an OSError of the pool's file system."""
        if error.errno in _FULL:
            return OutOfSpace(
                f"{doing}: pool {self.name} is full ({error.strerror}): delete something or enlarge the pool"
            )
        if error.errno in _GONE:
            return Unavailable(
                f"{doing}: pool {self.name} at {self.root} does not answer as it should ({error.strerror}): "
                "see the node's kernel log, mount or repair it"
            )
        return Precondition(f"{doing}: pool {self.name} refused ({error})")

    @contextmanager
    def new_draft(self, *images: str) -> Iterator[Path]:
        """A directory under `.new` with empty images of these names, removed again unless it was published."""
        path = self.draft_path()
        try:
            self.create_draft(path, *images)
            yield path
        except BaseException:
            self.remove_draft(path)
            raise

    def draft_path(self) -> Path:
        """Where a new draft may be made: nobody else gets the same path."""
        return self.new / secrets.token_hex(8)

    def create_draft(self, draft: Path, *images: str) -> None:
        """Make a draft, with empty images of these names in it."""
        draft.mkdir(mode=0o700)
        self.crash_point("draft made")
        for image in images:
            os.close(os.open(draft / image, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def remove_draft(self, draft: Path) -> None:
        """Remove a draft, as far as that can be done now: the next start does the rest."""
        with suppress(OSError):
            shutil.rmtree(draft)

    def fsync_draft(self, draft: Path, record: bytes) -> None:
        """Make a draft's images and record durable, before it may be shown."""
        for image in sorted(draft.glob("*.img")):
            with image.open("rb") as file:
                os.fsync(file.fileno())
        self.crash_point("images durable")
        with (draft / RECORD).open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        self.crash_point("record written")
        files.fsync_directory(draft)
        self.crash_point("draft durable")

    def publish(self, draft: Path, record: bytes, place: Path) -> None:
        """Show a draft at `place`, which must be free: image and record appear together, durably."""
        self.fsync_draft(draft, record)
        try:
            files.rename_new(draft, place)
        except FileExistsError:
            raise Damaged(
                f"{place} exists although no record of it was read: report this; nothing was changed"
            ) from None
        self.crash_point("published")
        try:
            files.fsync_directory(place.parent)
        except OSError:
            # Not known to be durable, so not said to exist: a retry must find the place free.
            os.rename(place, draft)
            raise
        self.crash_point("publication durable")

    def exchange(self, draft: Path, record: bytes, place: Path) -> None:
        """Put a draft where `place` is, in one step; what was there is thrown away afterwards."""
        self._swap(draft, record, place)
        # It has happened, and what lies in the draft now is nobody's: a pool that is full may refuse the name in the trash.
        try:
            os.rename(draft, self.trash / draft.name)
        except OSError:
            self.remove_draft(draft)
        self.crash_point("old content discarded")

    def exchange_kept(self, draft: Path, record: bytes, place: Path, kept: Path) -> None:
        """Put a draft where `place` is, in one step; what was there lies at `kept` afterwards, or in the draft's place."""
        self._swap(draft, record, place)
        with suppress(OSError):  # it has happened: whoever looks for the draft next puts it there
            self.keep(draft, kept)

    def keep(self, old: Path, kept: Path) -> None:
        """Put what a volume held before an exchange where it is kept."""
        os.rename(old, kept)
        self.crash_point("old content kept")
        files.fsync_directory(kept.parent)

    def _swap(self, draft: Path, record: bytes, place: Path) -> None:
        self.fsync_draft(draft, record)
        files.rename_exchange(draft, place)
        self.crash_point("exchanged")
        try:
            files.fsync_directory(place.parent)
            files.fsync_directory(draft.parent)
        except OSError:
            files.rename_exchange(draft, place)
            raise
        self.crash_point("exchange durable")

    def move_to_trash(self, place: Path) -> None:
        """Make what lies at `place` disappear, durably; its space comes back when the trash is emptied."""
        # Opened first: if that fails, nothing has changed. Nothing can be moved out of the trash again.
        parent = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.rename(place, self.trash / f"{place.name}-{secrets.token_hex(4)}")
            self.crash_point("discarded")
            os.fsync(parent)
        finally:
            os.close(parent)
        self.crash_point("discard durable")

    def replace(self, draft: Path, place: Path, image: str) -> None:
        """Put a draft's image, which is durable, where `place` has its own, in one step. The record stays."""
        self.crash_point("image made")
        os.rename(draft / image, place / image)
        self.crash_point("image replaced")
        files.fsync_directory(place)
        self.crash_point("replacement durable")

    def rewrite(self, place: Path, record: bytes) -> None:
        """Replace the record at `place` alone."""
        files.write_durably(place / RECORD, record)
        self.crash_point("record replaced")

    def remove_leftovers(self) -> None:
        """Remove what a crash left half-made: drafts, none of which was ever shown, and files that replaced nothing."""
        for leftover in self.new.iterdir():
            try:
                os.rename(leftover, self.trash / f"{leftover.name}-{secrets.token_hex(4)}")
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.remove_draft(leftover)  # a pool that is full must be opened, or nothing in it could be deleted
        for leftover in (*self.volumes.glob(f"*/{files.draft(RECORD)}*"), *self.freezes.glob(f"{files.draft('*')}*")):
            leftover.unlink()

    def empty_trash(self) -> None:
        """Give back the space of what was deleted. What cannot be removed now is tried again at the next call."""
        with suppress(OSError):
            for item in self.trash.iterdir():
                self.crash_point("trash to be emptied")
                shutil.rmtree(item, ignore_errors=True)
