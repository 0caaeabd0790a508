"""Inside the machine: an agent on the pool, everything that it serves told to the host, and then work until the power is cut.

Every line to the host is "@ " and JSON. What is about to be done is told before ("begin"), what was answered after ("done").
"""

import itertools
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from power_pool import FilePool, LvmPool
from support.machine import KIND

from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import CallRefused, Client, Node

PLACE = Path("/run/places")
SOCKET = "unix:///run/csi.sock"
RAW = Capability("block", AccessMode.MULTI_WRITER)
FILES = {
    "a": Capability("mount", AccessMode.MULTI_WRITER, "xfs"),
    "b": Capability("mount", AccessMode.MULTI_WRITER, "ext4"),
}
"""The two disks with file systems, between which one writer alternates."""
FILES_SIZE = 300 << 20
BLOCK = 4096
DISK = 1 << 20
PAUSE = 0.05
"""Seconds between two pairs of files: the calls, one of which is to be cut off, are to get their turn."""
LOOK = "look-"
_READY_SECONDS = 300.0

_saying = threading.Lock()


def say(**what: Any) -> None:
    """One line to the host, whole."""
    with _saying:
        os.write(1, b"@ " + json.dumps(what).encode() + b"\n")


def stamp(number: int, size: int = BLOCK) -> bytes:
    """Bytes that belong to a number and no other."""
    return number.to_bytes(8, "little") * (size // 8)


class Machine:
    """One boot: a client of its agent, and where its disks are shown."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "csi_driver.cli.main", "agent", "--endpoint", SOCKET, "--node-name", "node1"]
        self.pool = LvmPool() if KIND == "lvm" else FilePool()
        argv += [*self.pool.options, "--reserve", "64Mi", "--overcommit", "100", "--freeze-deadline", "30"]
        self.log = open("/run/agent.log", "wb")  # noqa: SIM115 - as long as the machine
        self.agent = subprocess.Popen(argv, stdout=self.log, stderr=self.log)
        self.client = Client(SOCKET)
        until = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self.agent.poll() is not None or time.monotonic() > until:
                raise SystemExit(Path("/run/agent.log").read_text()[-3000:])
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        with suppress(CallRefused):
            return self.client.probe()
        return False

    def nodes(self) -> dict[str, dict[str, Node]]:
        """What the agent serves, by kind and name."""
        found: dict[str, dict[str, Node]] = {"volume": {}, "snapshot": {}, "group": {}}
        for node in self.client.tree():
            found[node.kind][node.name] = node
        return found

    def show(self, volume_id: str, how: Capability) -> Path:
        """Stage and publish."""
        place = PLACE / volume_id.rsplit(":", 1)[1]
        (place / "staging").mkdir(parents=True, exist_ok=True)
        self.client.stage(volume_id, str(place / "staging"), how)
        self.client.publish(volume_id, str(place / "staging"), str(place / "target"), how)
        return place / "target"

    def hide(self, volume_id: str) -> None:
        """Unpublish and unstage."""
        place = PLACE / volume_id.rsplit(":", 1)[1]
        self.client.unpublish(volume_id, str(place / "target"))
        self.client.unstage(volume_id, str(place / "staging"))


# ---- what is there ---------------------------------------------------------------------------------------------------


def blocks_of(image: Path) -> dict[str, int]:
    """The number in each block that was written; -1 where it is not one whole stamp."""
    found: dict[str, int] = {}
    with image.open("rb") as file:
        for index in itertools.count():
            block = file.read(BLOCK)
            if not block:
                return found
            number = int.from_bytes(block[:8], "little")
            if block != stamp(number):
                found[str(index)] = -1
            elif number:
                found[str(index)] = number
    raise AssertionError


def files_of(directory: Path) -> dict[str, Any]:
    """The files 1, 2, ... of a file system: the last whole one, and which are torn, or missing below it."""
    there = {int(path.name): path.read_bytes() for path in directory.iterdir() if path.name.isdecimal()}
    whole = {number for number, data in there.items() if data == stamp(number)}
    last = max(whole, default=0)
    return {
        "last": last,
        "torn": sorted(there.keys() - whole),
        "missing": [number for number in range(1, last) if number not in there],
    }


def tell_all(machine: Machine) -> None:
    """Everything that the agent serves, and what lies in the pool beside it."""
    for name, node in machine.nodes()["volume"].items():
        if name.startswith(LOOK):  # of a check that was cut off
            machine.client.delete_volume(node.id)
    nodes = machine.nodes()
    for kind in ("volume", "snapshot"):
        for name, node in nodes[kind].items():
            facts: dict[str, Any] = {"size": node.size, "source": node.parent_id, "group": node.group_id}
            with machine.pool.opened(node) as blocks:
                with blocks.open("rb") as file:
                    facts["bytes"] = file.seek(0, os.SEEK_END)
                if node.format not in {"xfs", "ext4"}:
                    facts["blocks"] = blocks_of(blocks)
            if node.format in {"xfs", "ext4"}:
                facts["files"] = look(machine, node)
            say(found=kind, name=name, id=node.id, **facts)
    strange = machine.pool.strange([*nodes["volume"].values(), *nodes["snapshot"].values()])
    say(all=True, strange=strange, loops=machine.pool.devices())


def look(machine: Machine, node: Node) -> dict[str, Any]:
    """The files of a disk or snapshot, as its user sees them."""
    how = Capability("mount", AccessMode.MULTI_WRITER, node.format)
    volume_id = node.id
    if node.kind == "snapshot":
        source = Source("snapshot", node.id)
        volume_id = machine.client.create_volume(f"{LOOK}{node.uid}", SizeRange(), [how], source=source).id
    found = files_of(machine.show(volume_id, how))
    machine.hide(volume_id)
    if node.kind == "snapshot":
        machine.client.delete_volume(volume_id)
    return found


# ---- work ------------------------------------------------------------------------------------------------------------


def write_block(device: Path, index: int, number: int) -> None:
    """Write one block, and return when it is on the disk."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            buffer.write(stamp(number))
            os.pwrite(fd, buffer, index * BLOCK)
    finally:
        os.close(fd)


def alternate(places: dict[str, Path]) -> None:
    """Write file n in a, then file n in b, then n + 1 in a, each durable before the next, for ever."""
    reached = {}
    for name, place in places.items():
        found = files_of(place)
        reached[name] = found["last"]
        for number in found["torn"]:
            (place / str(number)).unlink()
    for number in itertools.count(reached["b"] + 1):
        for name, place in places.items():
            if reached[name] >= number:
                continue
            say(writer=name, begin=number)
            fd = os.open(place / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, stamp(number))
            os.fsync(fd)
            os.close(fd)
            directory = os.open(place, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            say(writer=name, done=number)
        time.sleep(PAUSE)


class Worker:
    """Random calls, one after another."""

    def __init__(self, machine: Machine, random_: random.Random) -> None:
        self._machine, self._client, self._random = machine, machine.client, random_
        self._number = random_.randrange(1, 1 << 30) << 20
        self._shown: dict[str, Path] = {}

    def number(self) -> int:
        """One that was never used."""
        self._number += 1
        return self._number

    def prepare(self) -> None:
        """Show every disk; make the two with file systems where they are not there yet."""
        for name, how in FILES.items():
            if name not in self._machine.nodes()["volume"]:
                self._create_files(name, how)
        for name, node in self._machine.nodes()["volume"].items():
            self._shown[name] = self._machine.show(node.id, FILES.get(name, RAW))
        threading.Thread(target=alternate, args=({name: self._shown[name] for name in FILES},), daemon=True).start()

    def work(self) -> None:
        """One call."""
        volumes, snapshots, groups = self._machine.nodes().values()
        raw = [name for name in volumes if name not in FILES]
        cuts = [s for s in snapshots.values() if not s.group_id]
        raw_cuts = [s for s in cuts if s.format not in {"xfs", "ext4"}]
        alive = {v.id: v for v in volumes.values()}
        own = [s for s in raw_cuts if s.parent_id in alive and s.parent_uid == alive[s.parent_id].uid]
        steps: list[Callable[[], None]] = []
        if raw:
            steps += [lambda: self._write(volumes[self._random.choice(raw)])] * 4
            steps += [lambda: self._expand(volumes[self._random.choice(raw)])]
        if len(raw) < 5:
            steps += [self._create]
            if raw_cuts:
                steps += [lambda: self._clone(self._random.choice(raw_cuts))] * 2
        if len(raw) > 2:
            steps += [lambda: self._delete_volume(volumes[self._random.choice(raw)])]
        if len(cuts) < 8:
            steps += [lambda: self._snapshot(volumes[self._random.choice([*raw, *FILES])])] * 3
        if len(cuts) > 3:
            steps += [lambda: self._delete_snapshot(self._random.choice(cuts))]
        if own and len(cuts) < 12:
            steps += [lambda: self._roll_back(volumes, self._random.choice(own))] * 2
        if len(groups) < 2:
            steps += [lambda: self._group([volumes[name] for name in FILES])] * 2
        else:
            steps += [lambda: self._delete_group(self._random.choice(list(groups.values())))]
        self._random.choice(steps)()

    def _do(self, what: str, call: Callable[[], Any], **facts: Any) -> Any:
        say(begin=what, **facts)
        answer = call()
        say(done=what, safety=getattr(answer, "safety_id", ""))
        return answer

    def _create_files(self, name: str, how: Capability) -> None:
        size = SizeRange(FILES_SIZE)
        self._do("create", lambda: self._client.create_volume(name, size, [how]), name=name, size=FILES_SIZE)

    def _write(self, volume: Node) -> None:
        index, number = self._random.randrange(volume.size // BLOCK), self.number()
        device = self._shown[volume.name]
        self._do("write", lambda: write_block(device, index, number), name=volume.name, block=index, number=number)

    def _create(self) -> None:
        name = f"v{self.number()}"
        made = self._do(
            "create", lambda: self._client.create_volume(name, SizeRange(DISK), [RAW]), name=name, size=DISK
        )
        self._shown[name] = self._machine.show(made.id, RAW)

    def _clone(self, snapshot: Node) -> None:
        name, source = f"c{self.number()}", Source("snapshot", snapshot.id)
        size = snapshot.size + self._random.choice([0, 64 << 10])

        def call() -> Any:
            return self._client.create_volume(name, SizeRange(size), [RAW], source=source)

        made = self._do("clone", call, name=name, size=size, snapshot=snapshot.id)
        self._shown[name] = self._machine.show(made.id, RAW)

    def _expand(self, volume: Node) -> None:
        size = volume.size + (64 << 10)
        self._do("expand", lambda: self._client.expand_volume(volume.id, SizeRange(size)), name=volume.name, size=size)

    def _snapshot(self, volume: Node) -> None:
        name = f"s{self.number()}"
        self._do("snapshot", lambda: self._client.create_snapshot(volume.id, name), name=name, volume=volume.name)

    def _group(self, volumes: list[Node]) -> None:
        name = f"g{self.number()}"
        self._do("group", lambda: self._client.create_group(name, [v.id for v in volumes]), name=name)

    def _delete_volume(self, volume: Node) -> None:
        self._machine.hide(volume.id)
        del self._shown[volume.name]
        self._do("delete volume", lambda: self._client.delete_volume(volume.id), name=volume.name)

    def _delete_snapshot(self, snapshot: Node) -> None:
        self._do("delete snapshot", lambda: self._client.delete_snapshot(snapshot.id), id=snapshot.id)

    def _delete_group(self, group: Node) -> None:
        self._do("delete group", lambda: self._client.delete_group(group.id), id=group.id)

    def _roll_back(self, volumes: dict[str, Node], snapshot: Node) -> None:
        volume = next(v for v in volumes.values() if v.id == snapshot.parent_id)
        name = f"r{self.number()}"
        self._machine.hide(volume.id)
        self._do(
            "rollback",
            lambda: self._client.roll_back(volume.id, snapshot.id, name),
            name=volume.name,
            snapshot=snapshot.id,
        )
        self._shown[volume.name] = self._machine.show(volume.id, RAW)


def main(step: str, seed: str) -> None:
    """`check`: tell what is there, and end in order. `work`: then go on until the end."""
    say(booted=True)
    machine = Machine()
    tell_all(machine)
    if step == "work":
        worker = Worker(machine, random.Random(seed))
        worker.prepare()
        while True:
            worker.work()
    machine.agent.terminate()
    say(ended=machine.agent.wait(60))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException as error:
        say(broken=f"{type(error).__name__}: {error}", log=Path("/run/agent.log").read_text()[-3000:])
        raise
