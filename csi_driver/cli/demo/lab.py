"""The demo's hands: every disk is made, shown, written and read through CSI and the published device, and checked."""

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
from csi_driver.rpc.clients.cli_client import CallRefused, Client, Rolled

BLOCK = Capability("block", AccessMode.WRITER)
SETTLE = 15.0
"""Seconds until deleted disks have given their blocks back: removal goes on in the background."""

_FLIPPED = 123_456
"""Where a byte is turned when the demo is asked to fail."""


class CheckFailed(Exception):
    """A claim of the demo is not true; the message names it."""


@dataclass
class Checks:
    """Counts what was found true, and ends the demo at the first that is not."""

    passed: int = 0

    def that(self, claim: str, holds: bool, otherwise: str = "") -> None:
        """Count a claim; raise CheckFailed where it does not hold."""
        if not holds:
            raise CheckFailed(f"{claim}{': ' + otherwise if otherwise else ''}")
        self.passed += 1


@dataclass(frozen=True)
class Seen:
    """One disk or snapshot as it was read from its device, with its bytes as the agent counts them."""

    name: str
    kind: str
    labels: tuple[str, ...]
    exclusive: int
    shared: int


@dataclass
class Lab:
    """Disks and snapshots by name. `corrupt`: the name of the one whose device gets a wrong byte when first shown."""

    client: Client
    root: Path
    checks: Checks
    corrupt: str = ""
    model: Model = field(default_factory=Model)
    disks: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def make(self, name: str, source: str = "") -> float:
        """Create a disk, empty or from a snapshot; returns milliseconds."""
        started = time.perf_counter()
        begin = Source("snapshot", self.snapshots[source]) if source else None
        size = SizeRange() if source else SizeRange(SIZE)
        self.disks[name] = self.client.create_volume(name, size, [BLOCK], source=begin).id
        spent = _since(started)
        if source:
            self.model.copy(source, name)
        else:
            self.model.make(name)
        return spent

    def cut(self, disk: str, name: str) -> float:
        """Create a snapshot; returns milliseconds."""
        started = time.perf_counter()
        self.snapshots[name] = self.client.create_snapshot(self.disks[disk], name).id
        spent = _since(started)
        self.model.copy(disk, name)
        return spent

    def roll_back(self, disk: str, snapshot: str, safety: str) -> float:
        """Take a disk back; the safety snapshot is known as `safety` from then on. Returns milliseconds."""
        started = time.perf_counter()
        done: Rolled = self.client.roll_back(self.disks[disk], self.snapshots[snapshot], uuid.uuid4().hex)
        spent = _since(started)
        self.checks.that(f"rolling {disk} back made a safety snapshot", bool(done.safety_id))
        self.snapshots[safety] = done.safety_id
        self.model.copy(disk, safety)
        self.model.copy(snapshot, disk)
        return spent

    def delete_snapshot(self, name: str) -> float:
        """Delete a snapshot; returns milliseconds."""
        started = time.perf_counter()
        self.client.delete_snapshot(self.snapshots.pop(name))
        self.model.drop(name)
        return _since(started)

    def show(self, name: str, disk_id: str, how: Capability = BLOCK) -> Path:
        """Stage and publish a disk; returns the path where it is."""
        staging, target = self.root / "staging" / name, self.root / "published" / name
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.shown[name] = disk_id
        self.client.stage(disk_id, str(staging), how)
        self.client.publish(disk_id, str(staging), str(target), how)
        if name == self.corrupt:
            self.corrupt = ""
            _flip(target)
        return target

    def take_away(self, name: str) -> None:
        """Unpublish and unstage a disk."""
        disk_id = self.shown[name]
        staging, target = self.root / "staging" / name, self.root / "published" / name
        retry_while_busy(lambda: self.client.unpublish(disk_id, str(target)), SETTLE)
        retry_while_busy(lambda: self.client.unstage(disk_id, str(staging)), SETTLE)
        del self.shown[name]

    def write(self, name: str, region: int, label: str) -> None:
        """Write one region of a shown disk through its device, and have it on the disk when this returns."""
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

    def verify(self, claims: dict[str, str]) -> list[Seen]:
        """Read every disk and snapshot, and hold it to the model, and those in `claims` to the words as well."""
        seen: list[tuple[str, str, tuple[str, ...]]] = []
        for name in (*self.disks, *self.snapshots):
            content = self._read(name)
            found = labels(content)
            said = " ".join(label or "-" for label in found)
            right = " ".join(label or "-" for label in labels(bytes(self.model.content[name])))
            self.checks.that(
                f"{name} holds {right}", content == self.model.content[name], f"its device holds {said} (- is empty)"
            )
            kind = "disk" if name in self.disks else "snapshot"
            seen.append((name, kind, found))
            if name in claims:
                said = " ".join(label for label in found if label)
                self.checks.that(f"{name} is {claims[name] or 'empty'}", said == claims[name], f"it is {said}")
        usage = self._usage()
        return [Seen(name, kind, found, *usage[name]) for name, kind, found in seen]

    def _read(self, name: str) -> bytes:
        """The bytes of a disk from its device; of a snapshot, from a disk made of it for the purpose."""
        if name in self.shown:
            return _read_device(self.root / "published" / name)
        if name in self.disks:
            with self.showing(name, self.disks[name]) as path:
                return _read_device(path)
        made = self.client.create_volume(
            f"look-{name}", SizeRange(), [BLOCK], source=Source("snapshot", self.snapshots[name])
        )
        with self.showing(name, made.id) as path:
            content = _read_device(path)
        self.client.delete_volume(made.id)
        return content

    @contextmanager
    def showing(self, name: str, disk_id: str, how: Capability = BLOCK) -> Iterator[Path]:
        """Show a disk for the length of a block. After an error `clear` takes it away: a call may still be at work."""
        yield self.show(name, disk_id, how)
        self.take_away(name)

    def _usage(self) -> dict[str, tuple[int, int]]:
        """Own and shared bytes of everything as the agent counts them, held to the model."""
        ids = {**self.disks, **self.snapshots}
        right = {name: self.model.usage(name) for name in ids}
        end = time.monotonic() + SETTLE
        while True:
            nodes = {node.id: node.usage for node in self.client.tree(with_usage=True)}
            found = {name: (u.exclusive, u.shared) for name, i in ids.items() if (u := nodes.get(i)) is not None}
            if found == right or time.monotonic() > end:
                break
            time.sleep(0.05)
        for name, expected in right.items():
            claim = f"{name} has {expected[0]} bytes of its own and shares {expected[1]}"
            self.checks.that(claim, found.get(name) == expected, f"the agent counts {found.get(name)}")
        return found

    def clear(self) -> None:
        """Take everything away and delete it, whatever state it is in: a call that was broken off may still be at work."""
        shown = dict(self.shown)
        end = time.monotonic() + SETTLE
        while True:
            try:
                self._clear_once(shown)
            except CallRefused as refused:
                if refused.code not in {"ABORTED", "FAILED_PRECONDITION"} or time.monotonic() > end:
                    raise
            else:
                if not self.left() or time.monotonic() > end:
                    return
            time.sleep(0.1)

    def _clear_once(self, shown: dict[str, str]) -> None:
        for name, disk_id in shown.items():
            self.shown[name] = disk_id
            self.take_away(name)
        for node in self.client.tree():
            if node.kind == "volume":
                self.client.delete_volume(node.id)
            elif node.kind == "snapshot":
                self.client.delete_snapshot(node.id)

    def left(self) -> list[str]:
        """Names of what still exists in the pool."""
        return [node.name for node in self.client.tree()]


def _read_device(path: Path) -> bytes:
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # What this machine still remembers is dropped first, so that the bytes come from the disk.
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
