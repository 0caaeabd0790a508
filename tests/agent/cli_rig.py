"""The command line on a real pool: an agent whose pool is a directory of an XFS that has room for other files too."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.agent_process import ready
from support.machine import skip_unless_root
from support.pool_disk import Disk, clean, make_disk, share
from support.sizes import GIB

from csi_driver.domain.model import AccessMode, Capability
from csi_driver.rpc.clients.cli_client import Client, Node

HERE = Path(__file__).parent
TREE = HERE.parents[1]


@dataclass(frozen=True)
class Done:
    """How a command ended: -9 was killed."""

    status: int
    stdout: str
    stderr: str


class CliRig:
    """Runs `tidemark` in processes of its own."""

    def __init__(self, place: Path, disk: Disk | None) -> None:
        self.place = place
        self.disk = disk
        self.pool = disk.point / "pool" if disk else place / "no pool"
        if disk:
            self.pool.mkdir()
        self.mounts = place / "mnt"
        self.mounts.mkdir()
        self.endpoint = f"unix://{place}/csi.sock"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))} | {
            "CSI_ENDPOINT": self.endpoint,
            "TIDEMARK_STAGING": str(place / "staging"),
            "PYTHONPATH": str(TREE),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._runner: subprocess.Popen[str] | None = None

    command = (sys.executable, "-m", "csi_driver.cli.main")

    def start(self) -> Client:
        """Start the agent; returns a client of it."""
        argv = [*self.command, "agent", "--endpoint", self.endpoint, "--pool-init"]
        argv += [
            "--pool",
            f"default=reflink:{self.pool}" if self.disk else "default=memory",
            "--runtime-dir",
            str(self.place / "run"),
        ]
        argv += ["--reserve", "64Mi", "--overcommit", "100", "--node-name", "node1"]
        log = self.place / "agent.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output)
        return ready(self.endpoint, self.process, log)

    def stop(self) -> None:
        if self._runner is not None:
            assert self._runner.stdin
            self._runner.stdin.close()
            self._runner.wait(30)
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def order(self, *words: str) -> Done:
        """Give an order to cli_interference.py."""
        if self._runner is None:
            self._runner = subprocess.Popen(
                [sys.executable, str(HERE / "cli_interference.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
            )
        assert self._runner.stdin
        assert self._runner.stdout
        out, err = self.place / "stdout", self.place / "stderr"
        for path in (out, err):
            path.unlink(missing_ok=True)
        self._runner.stdin.write(json.dumps({"words": words, "out": str(out), "err": str(err)}) + "\n")
        self._runner.stdin.flush()
        done = Done(int(self._runner.stdout.readline()), out.read_text(), err.read_text())
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(self, *words: str, status: int | None = None) -> Done:
        """Run `tidemark`; `status`: the exit status that it must have."""
        done = self.order("run", *words)
        if status is not None:
            assert done.status == status, f"{words}: {done.stdout}{done.stderr}"
        return done

    def ok(self, *words: str) -> str:
        return self.run(*words, status=0).stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "-o", "json"))

    def refused(self, *words: str) -> str:
        """The message of a command that fails."""
        return self.run(*words, status=1).stderr

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """A volume, mounted for as long as the block runs."""
        point = self.mounts / name
        self.ok("mount", name, str(point))
        try:
            yield point
        finally:
            self.ok("umount", str(point))

    def content(self, client: Client, name: str) -> bytes:
        """All bytes of a volume, read through its device by the calls that the command makes too."""
        volume_id = next(node.id for node in client.tree() if node.name == name)
        staging, target = self.place / "staged", self.place / "published"
        staging.mkdir(exist_ok=True)
        block = Capability("block", AccessMode.WRITER)
        client.stage(volume_id, str(staging), block)
        try:
            client.publish(volume_id, str(staging), str(target), block)
            try:
                return target.read_bytes()
            finally:
                client.unpublish(volume_id, str(target))
        finally:
            client.unstage(volume_id, str(staging))

    def gives_back(self, free: int, slack: int) -> bool:
        """Wait until the pool's disk has as much free as before; space comes back soon after a deletion, not with it."""
        assert self.disk is not None
        for _ in range(300):
            if self.disk.free() >= free - slack:
                return True
            time.sleep(0.1)
        return False

    def image(self, node: Node) -> Path:
        """The image of a volume or of a snapshot that is in no group."""
        return self.pool / f"{node.kind}s" / node.id.rpartition(":")[2] / "disk.img"


@contextmanager
def memory_cli_rig(place: Path) -> Iterator[tuple[CliRig, Client]]:
    """A rig whose pool is in memory: raw block volumes only, and no root."""
    rig = CliRig(place, None)
    try:
        with rig.start() as client:
            yield rig, client
    finally:
        rig.stop()


@contextmanager
def cli_rig(place: Path, size: int = 4 * GIB) -> Iterator[tuple[CliRig, Client]]:
    """A rig whose agent runs; at the end nothing may be mounted or attached."""
    skip_unless_root()
    share(place)
    try:
        rig = CliRig(place, make_disk(place, size, "disk"))
        try:
            with rig.start() as client:
                yield rig, client
        finally:
            rig.stop()
    finally:
        clean(place)


def clear(client: Client) -> None:
    """Delete every volume, snapshot and group."""
    for node in client.tree():
        if node.kind == "volume":
            client.delete_volume(node.id)
        elif node.kind == "group":
            client.delete_group(node.id)
    for node in client.tree():
        client.delete_snapshot(node.id)


def named(client: Client) -> dict[str, Node]:
    """Return every volume, snapshot and group by its name."""
    return {node.name: node for node in client.tree()}
