"""An agent that the command line believes in: objects in a list, calls noted, refusals on demand."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

import pytest

from csi_driver.cli.main import main
from csi_driver.rpc.clients.cli_channel import CallRefused
from csi_driver.rpc.clients.cli_messages import (
    Agent,
    CreatedVolume,
    GroupSnapshotResult,
    Node,
    PoolSpace,
    RollbackResult,
    SnapshotResult,
)

GIB = 1 << 30
TAKEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POOL = PoolSpace("default", "n1", "reflink", "/srv", "u", 20 * GIB, 15 * GIB, 10 * GIB, 30 * GIB, GIB, 2.0, 3, 1)


def object_id(name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"n1:default:{digest}"


def node(name: str, kind: Any = "volume", **more: Any) -> Node:
    made = Node(object_id(name), name, kind, "default", 10 * GIB, TAKEN, f"uid-{name}", format="ext4")
    return replace(made, **more)


def snapshot(name: str, of: Node, **more: Any) -> Node:
    return node(name, "snapshot", parent_id=of.id, parent_uid=of.uid, **more)


class FakeAgent:
    """In place of Client. `refusals`: what a call is answered with, by its name."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.pool = POOL
        self.calls: list[tuple[Any, ...]] = []
        self.refusals: dict[str, CallRefused] = {}
        self.size_step = 4096

    def __call__(self, *_: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def called(self, method: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == method]

    def _note(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method in self.refusals:
            raise self.refusals[method]

    def _change(self, object_id: str, **fields: Any) -> None:
        self.nodes = [replace(item, **fields) if item.id == object_id else item for item in self.nodes]

    def tree(self, pool: str = "", volume_id: str = "", with_usage: bool = False) -> list[Node]:
        self._note("tree" if volume_id else "whole_tree")
        return list(self.nodes)

    def pools(self) -> list[PoolSpace]:
        self._note("pools")
        return [self.pool]

    def agent(self) -> Agent:
        return Agent("csi.tidemark.dev", "1", True, "n1", {})

    def create_volume(self, name: str, size: Any, capabilities: Any, parameters: Any = None, source: Any = None) -> Any:
        self._note("create_volume", name, size.required, source)
        existing = next((item for item in self.nodes if item.name == name), None)
        if existing is None:
            asked = max(size.required or GIB, self.size_step)
            existing = node(name, size=-(-asked // self.size_step) * self.size_step)
            if source is not None:
                parent = next(item for item in self.nodes if item.id == source.id)
                taken = {"parent_id": parent.id, "parent_uid": parent.uid, "size": parent.size, "format": parent.format}
                existing = replace(existing, **taken)
            self.nodes.append(existing)
        return CreatedVolume(existing.id, existing.size)

    def delete_volume(self, volume_id: str) -> None:
        self._note("delete_volume", volume_id)
        self.nodes = [item for item in self.nodes if item.id != volume_id]

    delete_snapshot = delete_group = delete_volume

    def expand_volume(self, volume_id: str, size: Any) -> tuple[int, bool]:
        self._note("expand_volume", volume_id, size.required)
        before = next(item for item in self.nodes if item.id == volume_id)
        self._change(volume_id, size=max(before.size, size.required))
        return max(before.size, size.required), bool(before.used_by)

    def grow(self, volume_id: str, path: str) -> int:
        self._note("grow", volume_id, path)
        return 0

    def create_snapshot(self, volume_id: str, name: str) -> SnapshotResult:
        self._note("create_snapshot", volume_id, name)
        return SnapshotResult(object_id(name), GIB, volume_id, TAKEN, True)

    def create_group(self, name: str, volume_ids: Sequence[str]) -> GroupSnapshotResult:
        self._note("create_group", name, list(volume_ids))
        return GroupSnapshotResult(object_id(name), TAKEN, ())

    def stage(self, volume_id: str, staging: str, _capability: Any) -> None:
        self._note("stage", volume_id)
        self._change(volume_id, used_by=(staging,))

    def publish(self, volume_id: str, staging: str, target: str, _capability: Any, read_only: bool = False) -> None:
        self._note("publish", volume_id, target, read_only)
        self._change(volume_id, used_by=(staging, target))

    def unpublish(self, volume_id: str, target: str) -> None:
        self._note("unpublish", volume_id, target)
        used = next(item for item in self.nodes if item.id == volume_id).used_by
        self._change(volume_id, used_by=tuple(path for path in used if path != target))

    def unstage(self, volume_id: str, _staging: str) -> None:
        self._note("unstage", volume_id)
        self._change(volume_id, used_by=())

    def roll_back(self, volume_id: str, snapshot_id: str, name: str, **options: Any) -> RollbackResult:
        self._note("roll_back", volume_id, snapshot_id, name, options)
        volume = next(item for item in self.nodes if item.id == volume_id)
        again = [item for item in volume.rollbacks if item.name == name]
        if again:
            return again[0]
        safety = snapshot("safety-" + "0" * 32, volume, created=TAKEN)
        done = RollbackResult(name, snapshot_id, TAKEN, safety.id)
        self.nodes.append(safety)
        self._change(volume_id, rollbacks=(replace(done, already_done=True),))
        return done


class CommandLine:
    """Types commands. `code`, `out` and `err` are of the last one."""

    def __init__(self, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.agent = agent
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.setattr("csi_driver.rpc.clients.cli_client.Client", agent)

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run a command. Returns stdout, or for a refusal what is on stderr as one line."""
        self._monkeypatch.setattr(sys, "argv", ["tidemark", *words])
        try:
            main()
            ended: Any = 0
        except SystemExit as exit_:
            ended = exit_.code or 0
        out, err = self._capsys.readouterr()
        assert ended == code, (words, out, err)
        return out if code == 0 else " ".join(err.replace("│", " ").split())
