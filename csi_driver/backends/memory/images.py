"""Images of a memory pool: memfds, so that another process can open what is published."""

import errno
import fcntl
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Self

from csi_driver.domain.sizes import BLOCK
from csi_driver.host import syscalls
from csi_driver.host.fs import allocation, files

_READ = 1 << 20
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Image:
    """The bytes of one volume or snapshot; holds a file descriptor until `close`.

    `size` is kept here and not read from the file: who writes past the end of a block device is refused, who does so to
    a memfd makes it longer. Such bytes are never copied and are gone when the image grows over them.
    """

    def __init__(self, label: str) -> None:
        self.fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = 0

    @property
    def path(self) -> str:
        """Where any process of the same user, in the same process namespace, may open it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def allocated(self) -> int:
        """Bytes of memory that it takes."""
        return os.fstat(self.fd).st_blocks * 512

    def grow(self, size: int, thick: bool = False) -> Self:
        """Make it larger; what is new reads as zeroes. A smaller size changes nothing."""
        strays = os.fstat(self.fd).st_size - self.size
        if size > self.size:
            if strays > 0:
                syscalls.call("fallocate, punch", "fallocate", self.fd, _PUNCH, self.size, strays)
            if size > os.fstat(self.fd).st_size:
                os.ftruncate(self.fd, size)
            self.size = size
        if thick:
            allocation.fill(self.fd, self.size)
        return self

    def take(self, source: "Image") -> Self:
        """Become a sparse copy. Not one moment where another process writes to the source meanwhile."""
        self.grow(source.size)
        for start, end in source.runs():
            os.lseek(self.fd, start, os.SEEK_SET)
            at = start
            while at < end:
                sent = os.sendfile(self.fd, source.fd, at, end - at)
                if not sent:  # cut short by its user meanwhile: the rest reads as zeroes
                    break
                at += sent
        return self

    def seal(self) -> Self:
        """Make it immutable for everybody: the kernel refuses writes, also by those who have it open."""
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        return self

    def keep_length(self) -> Self:
        """Let nobody cut it short: a volume's user must not."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return self

    def is_empty(self) -> bool:
        """Whether nothing was ever written to it."""
        return next(self.runs(), None) is None

    def erase(self) -> None:
        """Give all its memory back; it reads as zeroes."""
        files.punch_all(self.fd)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Where data lies: (start, end) in bytes, inside its size."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
                end = min(os.lseek(self.fd, start, os.SEEK_HOLE), self.size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            if start >= self.size:
                return
            yield start, end
            at = end

    def blocks(self) -> dict[int, bytes]:
        """A digest of each block of 4096 bytes that holds data, by offset. Reads everything."""
        found: dict[int, bytes] = {}
        for start, end in self.runs():
            for at in range(start, end, _READ):
                data = memoryview(os.pread(self.fd, min(_READ, end - at), at))
                for inner in range(0, len(data), BLOCK):
                    found[at + inner] = blake2b(data[inner : inner + BLOCK], digest_size=16).digest()
        return found

    def close(self) -> None:
        """Let it go. Its memory comes back once nobody else has it open."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
