"""The agent of this tree beside the agent of another checkout: the same calls, in turns, on pools of the same kind.

`python -m bench.versus ../before [ROUNDS]`; the other checkout needs a `.venv` of its own. Each round makes every call once on
each agent, and the two change places from round to round, so that what else the machine does meets both alike.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench.footprint import resident_mib
from bench.rig import agent, machine
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)
MOUNT = Capability("mount", AccessMode.MULTI_WRITER, "ext4")
SIZE = SizeRange(64 << 20)

Timed = Callable[[str, Callable[[], object]], object]
"""Makes a call and keeps its seconds under a name."""


class Side:
    """One of the two agents: its client, and the seconds of its calls by name."""

    def __init__(self, client: Client, root: Path) -> None:
        self.client = client
        self.root = root
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.idle = client.create_volume("idle", SIZE, [BLOCK]).id

    def timed(self, name: str, call: Callable[[], object]) -> object:
        """Make the call; its seconds are kept under `name`."""
        started = time.perf_counter()
        answer = call()
        self.seconds[name].append(time.perf_counter() - started)
        return answer

    def round(self, number: int) -> None:
        """A volume's whole life, and a snapshot of an idle volume with one extent."""
        client, timed = self.client, self.timed
        staging, target = self.root / f"stage-{number}", self.root / f"target-{number}"
        staging.mkdir()
        idle = timed("CreateSnapshot, idle, 1 extent", lambda: client.create_snapshot(self.idle, f"i{number}"))
        volume = timed("CreateVolume", lambda: client.create_volume(f"v{number}", SIZE, [MOUNT])).id  # type: ignore[attr-defined]
        timed("NodeStageVolume, new ext4", lambda: client.stage(volume, str(staging), MOUNT))
        timed("NodeStageVolume, repeated", lambda: client.stage(volume, str(staging), MOUNT))
        timed("NodePublishVolume", lambda: client.publish(volume, str(staging), str(target), MOUNT))
        snapshot = timed("CreateSnapshot, mounted ext4", lambda: client.create_snapshot(volume, f"m{number}"))
        timed("NodeUnpublishVolume", lambda: client.unpublish(volume, str(target)))
        timed("NodeUnstageVolume", lambda: client.unstage(volume, str(staging)))
        timed("NodeStageVolume, second time", lambda: client.stage(volume, str(staging), MOUNT))
        client.unstage(volume, str(staging))
        for made in (idle, snapshot):
            timed("DeleteSnapshot", lambda made=made: client.delete_snapshot(made.id))
        timed("DeleteVolume", lambda: client.delete_volume(volume))


def versus(other: Path, rounds: int) -> list[dict[str, object]]:
    """Medians in ms of this tree and of the other, their ratio, and the memory of both agents afterwards in MiB."""
    with (
        tempfile.TemporaryDirectory() as here,
        tempfile.TemporaryDirectory() as there,
        agent() as ours,
        agent(tree=other) as theirs,
        Client(ours.endpoint) as our_client,
        Client(theirs.endpoint) as their_client,
    ):
        after, before = Side(our_client, Path(here)), Side(their_client, Path(there))
        for number in range(rounds):
            for side in (after, before) if number % 2 else (before, after):
                side.round(number)
        rows: list[dict[str, object]] = []
        for name, seconds in after.seconds.items():
            now, then = statistics.median(seconds) * 1e3, statistics.median(before.seconds[name]) * 1e3
            rows.append(
                {"what": name, "before_ms": round(then, 2), "after_ms": round(now, 2), "ratio": round(now / then, 2)}
            )
        assert ours.process
        assert theirs.process
        for what, children in (("agent", False), ("agent with its helper processes", True)):
            now, then = resident_mib(ours.process.pid, children), resident_mib(theirs.process.pid, children)
            rows.append({"what": f"resident MiB, {what}", "before": then, "after": now, "ratio": round(now / then, 2)})
        return rows


if __name__ == "__main__":
    print(machine())
    for row in versus(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 100):
        print(row, flush=True)
