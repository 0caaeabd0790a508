"""Carries out the demo: creates, publishes, writes and reads disks through CSI and the published device, and checks them."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from csi_driver.cli.common import retry_while_busy
from csi_driver.cli.demo.model import REGION, SIZE, Model, labels, pattern
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import CallRefused, Client, Node, RollbackResult

BLOCK = Capability("block", AccessMode.WRITER)
SETTLE = 15.0
"""Seconds until deleted disks have given their blocks back: removal goes on in the background."""

_FLIPPED = 123_456
"""Offset of the byte that is changed when the demo is asked to fail."""


class CheckFailed(Exception):
    """A check of the demo failed; the message names it."""


@dataclass
class Checks:
    """Counts checks that passed, and ends the demo at the first that fails."""

    passed: int = 0

    def that(self, statement: str, is_true: bool, otherwise: str = "") -> None:
        """Count a statement. Raises CheckFailed if it is not true."""
        if not is_true:
            raise CheckFailed(f"{statement}{': ' + otherwise if otherwise else ''}")
        self.passed += 1


@dataclass(frozen=True)
class Content:
    """One disk or snapshot as read from its device, with its space as the agent counts it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    exclusive: int
    shared: int


@dataclass
class Lab:
    """Disks and snapshots by name. `corrupt`: the name of the one whose device gets a wrong byte when first published."""

    client: Client
    root: Path
    checks: Checks
    corrupt: str = ""
    model: Model = field(default_factory=Model)
    disks: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    mounted: dict[str, str] = field(default_factory=dict)

    @property
    def mounts(self) -> Path:
        """The directory below which commands mount volumes."""
        return self.root / "mnt"

    @property
    def staged(self) -> Path:
        """The directory below which commands stage volumes."""
        return self.root / "staged"

    def make(self, name: str, source: str = "") -> float:
        """Create a disk, empty or from a snapshot; returns milliseconds."""
        started = time.perf_counter()
        clone_of = Source("snapshot", self.snapshots[source]) if source else None
        size = SizeRange() if source else SizeRange(SIZE)
        self.disks[name] = self.client.create_volume(name, size, [BLOCK], source=clone_of).id
        milliseconds = _since(started)
        if source:
            self.model.copy(source, name)
        else:
            self.model.make(name)
        return milliseconds

    def take_snapshot(self, disk: str, name: str) -> float:
        """Take a snapshot; returns milliseconds."""
        started = time.perf_counter()
        self.snapshots[name] = self.client.create_snapshot(self.disks[disk], name).id
        milliseconds = _since(started)
        self.model.copy(disk, name)
        return milliseconds

    def roll_back(self, disk: str, snapshot: str, safety: str) -> float:
        """Roll a disk back, with a safety snapshot that is called `safety` from then on. Returns milliseconds."""
        started = time.perf_counter()
        done: RollbackResult = self.client.roll_back(self.disks[disk], self.snapshots[snapshot], uuid.uuid4().hex)
        milliseconds = _since(started)
        self.checks.that(f"rolling {disk} back took a safety snapshot", bool(done.safety_id))
        self.snapshots[safety] = done.safety_id
        self.model.copy(disk, safety)
        self.model.copy(snapshot, disk)
        return milliseconds

    def delete_snapshot(self, name: str) -> float:
        """Delete a snapshot; returns milliseconds."""
        started = time.perf_counter()
        self.client.delete_snapshot(self.snapshots.pop(name))
        self.model.drop(name)
        return _since(started)

    def publish(self, name: str, disk_id: str, how: Capability = BLOCK) -> Path:
        """Stage and publish a disk; returns its path."""
        staging, target = self.root / "staging" / name, self.root / "published" / name
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.mounted[name] = disk_id
        self.client.stage(disk_id, str(staging), how)
        self.client.publish(disk_id, str(staging), str(target), how)
        if name == self.corrupt:
            self.corrupt = ""
            _flip(target)
        return target

    def unpublish(self, name: str) -> None:
        """Unpublish and unstage a disk."""
        disk_id = self.mounted[name]
        staging, target = self.root / "staging" / name, self.root / "published" / name
        retry_while_busy(lambda: self.client.unpublish(disk_id, str(target)), SETTLE)
        retry_while_busy(lambda: self.client.unstage(disk_id, str(staging)), SETTLE)
        del self.mounted[name]

    def write(self, name: str, region: int, label: str) -> None:
        """Write one region of a published disk through its device, durably."""
        data = pattern(label)
        device = os.open(self.root / "published" / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < REGION:
                done += os.pwrite(device, data[done:], region * REGION + done)
            os.fsync(device)
        finally:
            os.close(device)
        self.model.write(name, region, label)

    def verify(self, expected: dict[str, str]) -> list[Content]:
        """Read every disk and snapshot and compare it with the model, and those in `expected` with these labels as well."""
        contents: list[tuple[str, str, tuple[str, ...]]] = []
        for name in (*self.disks, *self.snapshots):
            content = self._read(name)
            found_labels = labels(content)
            actual = " ".join(label or "-" for label in found_labels)
            correct = " ".join(label or "-" for label in labels(bytes(self.model.content[name])))
            self.checks.that(
                f"{name} holds {correct}",
                content == self.model.content[name],
                f"its device holds {actual} (- is empty)",
            )
            kind = "disk" if name in self.disks else "snapshot"
            contents.append((name, kind, found_labels))
            if name in expected:
                actual = " ".join(label for label in found_labels if label)
                self.checks.that(f"{name} is {expected[name] or 'empty'}", actual == expected[name], f"it is {actual}")
        usage = self._usage()
        return [Content(name, kind, its_labels, *usage[name]) for name, kind, its_labels in contents]

    def _read(self, name: str) -> bytes:
        """Read a disk from its device, a snapshot from a temporary clone of it."""
        if name in self.mounted:
            return _read_device(self.root / "published" / name)
        if name in self.disks:
            with self.published(name, self.disks[name]) as path:
                return _read_device(path)
        clone = self.client.create_volume(
            f"check-{name}", SizeRange(), [BLOCK], source=Source("snapshot", self.snapshots[name])
        )
        with self.published(name, clone.id) as path:
            content = _read_device(path)
        self.client.delete_volume(clone.id)
        return content

    @contextmanager
    def published(self, name: str, disk_id: str, how: Capability = BLOCK) -> Iterator[Path]:
        """Publish a disk for the length of a block. After an error `clear` unpublishes it: a call may still be running."""
        yield self.publish(name, disk_id, how)
        self.unpublish(name)

    def _usage(self) -> dict[str, tuple[int, int]]:
        """Return own and shared bytes of all objects as the agent counts them, compared with the model."""
        ids = {**self.disks, **self.snapshots}
        correct = {name: self.model.usage(name) for name in ids}
        end = time.monotonic() + SETTLE
        while True:
            nodes = {node.id: node.usage for node in self.client.tree(with_usage=True)}
            counted = {name: (u.exclusive, u.shared) for name, i in ids.items() if (u := nodes.get(i)) is not None}
            if counted == correct or time.monotonic() > end:
                break
            time.sleep(0.05)
        for name, expected in correct.items():
            statement = f"{name} has {expected[0]} bytes of its own and shares {expected[1]}"
            self.checks.that(statement, counted.get(name) == expected, f"the agent counts {counted.get(name)}")
        return counted

    def clear(self) -> None:
        """Unpublish and delete everything, in any state: an interrupted call may still be running."""
        mounted = dict(self.mounted)
        end = time.monotonic() + SETTLE
        while True:
            try:
                self._clear_once(mounted)
            except CallRefused as refused:
                if refused.code not in {"ABORTED", "FAILED_PRECONDITION"} or time.monotonic() > end:
                    raise
            else:
                if not self.remaining() or time.monotonic() > end:
                    return
            time.sleep(0.1)

    def _clear_once(self, mounted: dict[str, str]) -> None:
        for name, disk_id in mounted.items():
            self.mounted[name] = disk_id
            self.unpublish(name)
        for node in self.client.tree():
            if node.kind == "volume":
                self._take_from_commands(node)
                self.client.delete_volume(node.id)
            elif node.kind == "snapshot":
                self.client.delete_snapshot(node.id)

    def _take_from_commands(self, node: Node) -> None:
        """Unmount what a command has mounted: an interrupted one cannot."""
        for path in node.used_by:
            if Path(path).is_relative_to(self.mounts):
                self.client.unpublish(node.id, path)
        for path in node.used_by:
            if Path(path).is_relative_to(self.staged):
                self.client.unstage(node.id, path)

    def remaining(self) -> list[str]:
        """Return the names of what still exists in the pool."""
        return [node.name for node in self.client.tree()]


def _read_device(path: Path) -> bytes:
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The page cache is dropped first, so that the bytes come from the disk.
        os.posix_fadvise(device, 0, 0, os.POSIX_FADV_DONTNEED)
        content = bytearray()
        while part := os.pread(device, SIZE, len(content)):
            content += part
        return bytes(content)
    finally:
        os.close(device)


def _flip(path: Path) -> None:
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        byte = os.pread(device, 1, _FLIPPED)
        os.pwrite(device, bytes([byte[0] ^ 1]), _FLIPPED)
        os.fsync(device)
    finally:
        os.close(device)


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
