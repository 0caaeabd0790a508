"""A plain model of disks and snapshots as bytes, and the bench that compares it with a real agent, object by object.

It shares no code with the product but the client, the form of ids, and the reading of mountinfo.
"""

import errno
import fcntl
import mmap
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from agent_rig import AgentRig, drop_caches_of

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.ids import Kind, name_hash
from csi_driver.domain.model import Capability, Mode, SizeRange, Source
from csi_driver.host import mountinfo
from csi_driver.rpc.client import CallRefused, Client, Node

UNIT = 64 << 10
"""The step in which raw disks are sized here."""
SETTLE_SECONDS = 5.0
"""How long a child of a killed agent may take to die with its device, and the trash to become empty."""
FOREIGN_SECONDS = 90.0
"""How long somebody else's mount namespace may keep a device from being detached (tests/image has one for half a minute)."""

_BLKZEROOUT = 0x127F
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878

Content = bytes | dict[str, bytes]
"""What a disk holds: all its bytes, or the files of its file system."""
Life = tuple[str, int]
"""An id and which of the objects that had it: the same name made again is another one."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume. `fs` is empty for a raw one; `parent` is what it was made from, a disk if `is_clone`.

    `rollbacks`: name, snapshot, safety snapshot.
    """

    id: str
    name: str
    life: int
    fs: str
    size: int
    content: Content
    format: str = "blank"
    shown: bool = False
    parent: Life = ("", 0)
    is_clone: bool = False
    rollbacks: tuple[tuple[str, str, str], ...] = ()
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A snapshot, of `source`; `group` is its group's id."""

    id: str
    name: str
    life: int
    source: Life
    fs: str
    size: int
    content: Content
    format: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A group snapshot; its members are cuts that name it."""

    id: str
    name: str
    life: int
    size: int


Item = Disk | Cut | Group
World = dict[str, Item]
"""All objects by id. Never changed in place."""
Nodes = dict[str, Node]
"""What the agent says that there is, by id."""


@dataclass(frozen=True, slots=True)
class Op:
    """One call (or stage with publish) on the object `on`, and what it does to the world.

    `done` tells from the agent's tree whether it has happened; `answer` checks what was answered. Until a call that was
    cut off is repeated, the disk `loose` may be half shown or hidden, formatted or not, and have a safety snapshot more.
    `then` runs between a cut-off call and its repetition, told whether it has happened. `span` stretches the delay before
    the kill.
    """

    what: str
    on: Item
    call: Callable[[Client], Any]
    done: Callable[[Nodes], bool]
    after: Callable[[World, Nodes], World]
    answer: Callable[[Any, Nodes], object] = lambda _answer, _nodes: None
    loose: str = ""
    then: Callable[[bool], None] = lambda _done: None
    span: float = 1.0


Kill = float | str | None
"""When the agent is killed: so many milliseconds after the call; "seen": as soon as the call's effect can be seen;
"early": at the first thing that can be seen, a freeze that is announced or a safety snapshot; or not at all."""


def id_of(kind: Kind, name: str) -> str:
    """The id that a name gets; of a rig's agent."""
    return f"node1:default:{name_hash(kind, name)}"


def member_id(group: str, source_id: str) -> str:
    """The id of a group's member."""
    return id_of("snapshot", f"{group}\0{source_id}")


def put(world: World, *items: Item) -> World:
    """The world with these objects new or changed."""
    return world | {item.id: item for item in items}


def drop(world: World, *ids: str) -> World:
    """The world without these objects."""
    return {key: item for key, item in world.items() if key not in ids}


def capability(fs: str) -> Capability:
    """How a disk is used."""
    return Capability("mount", Mode.MULTI_WRITER, fs) if fs else Capability("block", Mode.MULTI_WRITER)


def cut_of(disk: Disk, cut_id: str, name: str, life: int, group: str = "") -> Cut:
    """A snapshot of a disk as it is now."""
    source = (disk.id, disk.life)
    return Cut(cut_id, name, life, source, disk.fs, disk.size, disk.content, disk.format, group)


def grown(content: Content, size: int) -> Content:
    """Bytes with a tail of zeroes up to a size; files stay as they are."""
    return content.ljust(size, b"\0") if isinstance(content, bytes) else content


def same(found: Content, wanted: Content, who: str) -> None:
    """Fail where two contents differ, saying where rather than showing megabytes."""
    if found == wanted:
        return
    if isinstance(found, bytes) and isinstance(wanted, bytes):
        if len(found) != len(wanted):
            raise AssertionError(f"{who}: {len(found)} bytes, {len(wanted)} expected")
        blocks = [at for at in range(0, len(wanted), 512) if found[at : at + 512] != wanted[at : at + 512]]
        raise AssertionError(f"{who}: {len(blocks)} sectors differ, the first at {blocks[0]}, the last at {blocks[-1]}")
    assert isinstance(found, dict)
    assert isinstance(wanted, dict)
    raise AssertionError(
        f"{who}: files { {n: len(d) for n, d in found.items()} }, expected { {n: len(d) for n, d in wanted.items()} }, "
        f"other bytes in {[n for n in found if n in wanted and found[n] != wanted[n]]}"
    )


# ---- bytes on devices and in file systems ----------------------------------------------------------------------------


def write_device(path: str, at: int, data: bytes, direct: bool, lazy: bool) -> None:
    """Write past the page cache (multiples of 4096 only), or into it with an fsync, or, if `lazy`, without."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT | os.O_DSYNC if direct else 0))
    try:
        with mmap.mmap(-1, len(data)) as aligned:
            aligned.write(data)
            assert os.pwrite(fd, aligned, at) == len(data)
        if not direct and not lazy:
            os.fsync(fd)
    finally:
        os.close(fd)


def zero_device(path: str, at: int, length: int) -> None:
    """Have the device write zeroes, in whatever way it likes (a hole, for a loop device)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", at, length))
        os.fsync(fd)
    finally:
        os.close(fd)


def read_device(path: str) -> bytes:
    """All of a device, from its image rather than from its cache."""
    drop_caches_of(path)
    return Path(path).read_bytes()


def write_file(directory: str, name: str, at: int, data: bytes, lazy: bool) -> None:
    """Write a part of a file, or a new one; durably unless `lazy`."""
    fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        assert os.pwrite(fd, data, at) == len(data)
        if not lazy:
            os.fsync(fd)
    finally:
        os.close(fd)
    if not lazy:
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Make names durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_files(directory: str) -> dict[str, bytes]:
    """Every file at the top of a file system."""
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(directory) if entry.is_file()}


def is_frozen(point: str) -> bool:
    """Whether somebody keeps a file system frozen: one more freeze says so, and is undone at once."""
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    finally:
        os.close(fd)
    return False


# ---- the bench -------------------------------------------------------------------------------------------------------


class Bench:
    """A real agent on a real pool beside a model of it. `run` and `restart` compare the two every time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rig = AgentRig(root)
        self.world: World = {}
        self.answers: dict[Life, tuple[Callable[[Client], Any], Any]] = {}
        """The call that made an object, and what it was answered."""
        self.steps: list[str] = []
        """What was done since the pool was last empty."""
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self._seen: dict[Life, tuple[str, Any]] = {}
        self._lives = 0

    # -- the agent

    def start(self) -> None:
        """Start the agent and wait for it."""
        self.client = self.rig.start()
        self._channel = grpc.insecure_channel(self.rig.endpoint)
        channel: Any = self._channel  # the stubs are typed for grpc.aio's
        self._csi: Any = csi_pb2_grpc.ControllerStub(channel)

    def _close(self) -> None:
        self.client.close()
        self._channel.close()

    def close(self) -> None:
        """End everything."""
        if hasattr(self, "client"):
            self._close()
        self.rig.clean()

    def begin_anew(self) -> None:
        """After a failure: keep what tells about it, and go on in a new pool."""
        self.failures.append("\n".join(self.steps))
        self.close()
        if self.rig.log.exists():
            self.rig.log.rename(self.root / f"failed-{len(self.failures)}.log")
        for image in self.root.glob("pool.img*"):
            image.unlink()
        for name in ("staging", "target", "looked"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.world, self.steps, self.sound = {}, [], True
        self.start()

    def life(self) -> int:
        """A number for one more object."""
        self._lives += 1
        return self._lives

    def nodes(self) -> Nodes:
        """What the agent says that there is."""
        return {node.id: node for node in self.client.tree()}

    # -- doing

    def run(self, op: Op, kill: Kill = None) -> Any:
        """Do something; returns the answer. With a kill the agent dies meanwhile, and the call is repeated."""
        self._log(op.what if kill is None else f"{op.what}, kill: {kill}")
        done = False
        if kill is None:
            answer = op.call(self.client)
        else:
            answer, done = self._killed(op, kill)
        nodes = self.nodes()
        op.answer(answer, nodes)
        if not done:
            self.world = op.after(self.world, nodes)
        self.check(deep=kill is not None)
        self.counts[op.what.split()[0]] += 1
        if kill is not None:
            self.look(len(self.steps), UNIT)
        return answer

    def _killed(self, op: Op, kill: Kill) -> tuple[Any, bool]:
        """Issue a call, kill the agent, start it again, look, repeat the call. Returns its answer, and whether it had been done."""
        first: list[Any] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                first.append(op.call(self.client))
            except BaseException as error:
                failed.append(error)

        caller = threading.Thread(target=work)
        before = self._trace(op.on, kill)
        caller.start()
        if isinstance(kill, float):
            time.sleep(kill * op.span / 1000)
        else:
            while caller.is_alive() and self._trace(op.on, kill) == before:
                pass
            if kill == "early" and os.listdir(self.rig.pool / ".freeze"):
                # Before the freeze, in it, or after it.
                time.sleep(random.uniform(0, 0.008))
        self.rig.kill()
        caller.join(60)
        assert not caller.is_alive(), "the client waits for an agent that is dead"
        if failed and not (isinstance(failed[0], CallRefused) and failed[0].code == "UNAVAILABLE"):
            raise failed[0]
        self._close()
        self.start()
        nodes = self.nodes()
        done = op.done(nodes)
        fate = "answered" if first else ("done" if done else "not done")
        self._log(f"  {fate} when it was killed")
        self.counts[f"kill: {fate}"] += 1
        self.counts[f"kill: {fate}: {op.what.split()[0]}"] += 1
        self.counts["kills"] += 1
        assert done or not first, f"{op.what} was answered and has not happened"
        self.world = op.after(self.world, nodes) if done else put(self.world, *self._safety(nodes, op.loose))
        self.check(op.loose, deep=True)
        op.then(done)
        again = op.call(self.client)
        if first:
            self.equal_answers(first[0], again)
        return again, done

    def _trace(self, item: Item, kill: Kill) -> tuple[object, ...]:
        """What a call on an object changes at the moment when it takes effect, or, for "early", before."""
        place = self.place(item)
        found: list[object] = []
        for path, field in ((place, "st_ino"), (place / "record.json", "st_ino"), (place / "disk.img", "st_size")):
            try:
                found.append(getattr(path.stat(), field))
            except OSError:
                found.append(None)
        if kill == "early":
            found += [name for name in os.listdir(self.rig.pool / ".freeze") if name.endswith(".frozen.json")]
            found += os.listdir(self.rig.pool / "snapshots")
        return (*found, os.path.lexists(self.target(item.id)))

    def equal_answers(self, first: Any, again: Any) -> None:
        """A repeated call answers as at first (a rollback says besides that it was done before)."""
        if type(first).__name__ == "Rolled":
            first, again = [(r.name, r.snapshot_id, r.at, r.safety_id) for r in (first, again)]
        assert again == first, f"answered {again}, at first {first}"

    def refused(self, code: str, call: Callable[[Client], Any]) -> None:
        """A call must be refused so, and change nothing."""
        self._log(f"  refused: {code}")
        try:
            answer = call(self.client)
        except CallRefused as error:
            found = f"{error.code}: {error.message}"
        else:
            found = f"the answer {answer}"
        assert found.startswith(f"{code}: "), f"{found}; {code} expected"
        self.counts[f"refused: {code}"] += 1

    def restart(self, how: str, delay: float = 0.0, meanwhile: Callable[[], None] = lambda: None) -> None:
        """End the agent (`term`, `kill`, or `twice`: killed again while it starts), start it and look at everything."""
        self._log(f"restart by {how}")
        if how == "term":
            assert self.rig.stop() == 0, "the agent ended with an error"
        else:
            self.rig.kill()
            self.counts["kills"] += 1
        self._close()
        meanwhile()
        if how == "twice":
            self._kill_starting(delay)
        self.start()
        self.check(deep=True)
        self.counts[f"restart by {how}"] += 1

    def _kill_starting(self, delay: float) -> None:
        old = self.rig.process

        def start() -> None:
            # It asserts that the agent lives, which is what is taken away here.
            with suppress(AssertionError):
                self.rig.start().close()

        starter = threading.Thread(target=start)
        starter.start()
        while self.rig.process is old:
            time.sleep(0.001)
        time.sleep(delay / 1000)
        self.rig.kill()
        self.counts["kills"] += 1
        starter.join(60)
        assert not starter.is_alive()

    # -- where things are

    def staging(self, disk_id: str) -> str:
        """Where a disk is staged."""
        return str(self.root / "staging" / disk_id.rsplit(":", 1)[1])

    def target(self, disk_id: str) -> str:
        """Where a disk is published."""
        return str(self.root / "target" / disk_id.rsplit(":", 1)[1])

    def place(self, item: Item) -> Path:
        """The directory in the pool that holds an object, as docs/reference/pool-format.md says."""
        if isinstance(item, Cut) and item.group:
            return self.rig.pool / "groups" / item.group.rsplit(":", 1)[1]
        return self.rig.pool / f"{_KINDS[type(item)]}s" / item.id.rsplit(":", 1)[1]

    def image(self, item: Disk | Cut) -> Path:
        """The file that holds an object's bytes."""
        is_member = isinstance(item, Cut) and item.group
        return self.place(item) / (f"{item.id.rsplit(':', 1)[1]}.img" if is_member else "disk.img")

    def show(self, client: Client, disk_id: str, fs: str) -> None:
        """Stage and publish, as a kubelet does."""
        os.makedirs(self.staging(disk_id), exist_ok=True)
        client.stage(disk_id, self.staging(disk_id), capability(fs))
        client.publish(disk_id, self.staging(disk_id), self.target(disk_id), capability(fs))

    def hide(self, client: Client, disk_id: str) -> None:
        """Unpublish and unstage."""
        client.unpublish(disk_id, self.target(disk_id))
        until = time.monotonic() + FOREIGN_SECONDS
        while True:
            try:
                return client.unstage(disk_id, self.staging(disk_id))
            except CallRefused as error:
                # Somebody on this machine has copied all mounts into a namespace of his own (`unshare -m`): it is refused
                # until that ends, as it should be, and repeated by any kubelet.
                if "another namespace" not in error.message or time.monotonic() > until:
                    raise
            self.counts["waits for other mount namespaces"] += 1
            time.sleep(0.05)

    def places(self, disk_id: str, fs: str) -> list[str]:
        """Every path at which a published disk is seen."""
        return sorted([self.staging(disk_id) + ("" if fs else "/device"), self.target(disk_id)])

    # -- comparing

    def check(self, loose: str = "", deep: bool = False) -> None:
        """Compare all that can be seen with the model. `deep`: also the file systems that are not mounted."""
        nodes = self.nodes()
        names = {item.id: item.name for item in self.world.values()}
        missing = [names[key] for key in names.keys() - nodes.keys()]
        more = [nodes[key].name for key in nodes.keys() - names.keys()]
        assert not missing, f"gone: {missing}"
        assert not more, f"not expected: {more}"
        for item in self.world.values():
            self._check_node(item, nodes[item.id], item.id == loose)
        if not loose:
            self._check_lists()
            self._check_pool()
        self._check_kernel(nodes, loose)
        for item in self.world.values():
            if not isinstance(item, Group) and (deep or not item.fs):
                self._check_content(item, nodes[item.id], item.id == loose)
                if deep and not item.fs and nodes[item.id].used_by and item.id != loose:
                    same(read_device(nodes[item.id].used_by[0]), item.content, f"{item.name!r} through its device")

    def _safety(self, nodes: Nodes, disk_id: str) -> list[Cut]:
        """The safety snapshot of a rollback that was cut off before it happened."""
        disk = self.world.get(disk_id)
        if not isinstance(disk, Disk):
            return []
        mine = [n for n in nodes.values() if n.parent_id == disk_id and n.name.startswith("safety-")]
        made = [cut_of(disk, n.id, n.name, self.life()) for n in mine if n.id not in self.world]
        assert len(made) <= 1, f"more than one safety snapshot: {[cut.name for cut in made]}"
        self.counts["safety snapshots without their rollback"] += len(made)
        return made

    def _check_node(self, item: Item, node: Node, loose: bool) -> None:
        who = f"{type(item).__name__} {item.name!r}"
        life = (item.id, item.life)
        if not loose or life in self._seen:
            assert self._seen.setdefault(life, (node.uid, node.created)) == (node.uid, node.created), (
                f"{who} is another"
            )
        wanted: dict[str, object] = {"size": item.size, "name": item.name, "kind": _KINDS[type(item)], "thick": False}
        if isinstance(item, Cut):
            wanted |= {"format": item.format, "parent_id": item.source[0], "group_id": item.group}
            wanted |= {"parent_uid": self._seen[item.source][0]}
        elif isinstance(item, Disk):
            rollbacks = tuple((r.name, r.snapshot_id, r.safety_id) for r in node.rollbacks)
            assert rollbacks == item.rollbacks, f"{who}: rollbacks {rollbacks}, expected {item.rollbacks}"
            wanted |= {"parent_id": item.parent[0], "parent_uid": self._parent_uid(item), "holder": item.holder}
            if not loose:
                wanted |= {"format": item.format}
                places = self.places(item.id, item.fs) if item.shown else []
                assert sorted(node.used_by) == places, f"{who}: seen at {node.used_by}, expected {places}"
                assert bool(node.device) == item.shown, f"{who}: device {node.device!r}, shown: {item.shown}"
        found = {key: getattr(node, key) for key in wanted}
        assert found == wanted, f"{who}: {found}, expected {wanted}"

    def _parent_uid(self, disk: Disk) -> str:
        # A clone knows the uid of the disk that it was made from for good, a restored one that of a snapshot that is there.
        parent = self.world.get(disk.parent[0])
        lives = parent is not None and parent.life == disk.parent[1]
        return self._seen[disk.parent][0] if disk.is_clone or lives else ""

    def _check_lists(self) -> None:
        disks = {i.id: i.size for i in self.world.values() if isinstance(i, Disk)}
        cuts = {i.id: (i.size, i.source[0], i.group) for i in self.world.values() if isinstance(i, Cut)}
        volumes: list[csi_pb2.Volume] = []
        snapshots: list[csi_pb2.Snapshot] = []
        token = ""
        while True:
            page = self._csi.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=4, starting_token=token), timeout=15)
            volumes += [entry.volume for entry in page.entries]
            if not (token := page.next_token):
                break
        while True:
            cut_page = self._csi.ListSnapshots(
                csi_pb2.ListSnapshotsRequest(max_entries=4, starting_token=token), timeout=15
            )
            snapshots += [entry.snapshot for entry in cut_page.entries]
            if not (token := cut_page.next_token):
                break
        assert len(volumes) == len(disks), "ListVolumes lists something twice, or too little"
        assert len(snapshots) == len(cuts), "ListSnapshots lists something twice, or too little"
        assert {v.volume_id: v.capacity_bytes for v in volumes} == disks
        found = {s.snapshot_id: (s.size_bytes, s.source_volume_id, s.group_snapshot_id) for s in snapshots}
        assert found == cuts
        assert all(s.ready_to_use for s in snapshots)
        (pool,) = self.client.pools()
        assert (pool.volumes, pool.snapshots, pool.committed) == (len(disks), len(cuts), sum(disks.values()))

    def _check_pool(self) -> None:
        """The pool's directory holds what is listed and nothing half-made."""
        pool = self.rig.pool
        wanted: dict[str, set[str]] = {"volumes": set(), "snapshots": set(), "groups": set()}
        members: dict[str, set[str]] = {}
        for item in self.world.values():
            digest = item.id.rsplit(":", 1)[1]
            if isinstance(item, Cut) and item.group:
                members.setdefault(item.group.rsplit(":", 1)[1], {"record.json"}).add(f"{digest}.img")
            else:
                wanted[f"{_KINDS[type(item)]}s"].add(digest)
        for name, digests in wanted.items():
            assert {entry.name for entry in (pool / name).iterdir()} == digests, f"{name}/ is not what is listed"
            for digest in digests:
                files = {entry.name for entry in (pool / name / digest).iterdir()}
                assert files == members.get(digest, {"record.json", "disk.img"}), f"{name}/{digest} holds {files}"
        for name in (".new", ".freeze"):
            assert not list((pool / name).iterdir()), f"{name} is not empty: {list((pool / name).iterdir())}"

    def _check_kernel(self, nodes: Nodes, loose: str) -> None:
        """Loop devices and mounts of what is published and of nothing else; sizes; nothing frozen."""
        disks = [item for item in self.world.values() if isinstance(item, Disk)]
        shown = {str(self.image(disk)): disk for disk in disks if disk.shown and disk.id != loose}
        free = {str(self.image(disk)) for disk in disks if disk.id == loose}
        slow = 0
        until = time.monotonic() + SETTLE_SECONDS
        while (loops := self.loops()).keys() - free != shown.keys():
            slow = 1
            assert time.monotonic() < until, f"loop devices of {sorted(loops)}, expected {sorted(shown)}"
            time.sleep(0.02)
        self.counts["waits for loop devices"] += slow
        for image, disk in shown.items():
            size = int(Path(f"/sys/block/{loops[image]}/size").read_text()) * 512
            assert size == disk.size, f"{disk.name}: the device has {size} bytes, the disk {disk.size}"
        wanted = sorted(place for disk in shown.values() for place in self.places(disk.id, disk.fs))
        ignored = (self.staging(loose), self.target(loose)) if loose else ("?",)
        points = [m.point for m in mountinfo.read() if m.point.startswith(f"{self.root}/")]
        found = sorted(p for p in points if p != str(self.rig.pool) and not p.startswith(ignored))
        assert found == wanted, f"mounts at {found}, expected {wanted}"
        for disk in disks:
            for place in nodes[disk.id].used_by if disk.fs else ():
                assert not is_frozen(place), f"{disk.name} is frozen"

    def loops(self) -> dict[str, str]:
        """The image behind each loop device of the pool's files, and the device's name."""
        found: dict[str, str] = {}
        for device in Path("/sys/block").glob("loop*"):
            with suppress(OSError):
                backing = (device / "loop/backing_file").read_text().strip()
                if backing.startswith(f"{self.rig.pool}/"):
                    assert backing not in found, f"{backing} is attached twice: {found[backing]} and {device.name}"
                    found[backing] = device.name
        return found

    def _check_content(self, item: Disk | Cut, node: Node, loose: bool) -> None:
        who = f"{type(item).__name__} {item.name!r}"
        image = self.image(item)
        assert image.stat().st_size == item.size, f"{who}: the image has {image.stat().st_size} bytes, not {item.size}"
        self.counts["contents compared"] += 1
        if not item.fs:
            same(image.read_bytes(), item.content, who)
        elif isinstance(item, Disk) and node.used_by:
            same(read_files(node.used_by[0]), item.content, who)
        elif item.format == "blank":
            # What is being formatted, for the first time or again, holds nobody's data.
            assert loose or not _has_data(image), f"{who} is blank and holds data"
        else:
            same(self._read_cold(image, item.fs), item.content, who)

    def _read_cold(self, image: Path, fs: str) -> dict[str, bytes]:
        """The files of an image that nobody has mounted, read without changing a byte of it."""
        point = self.root / "looked"
        point.mkdir(exist_ok=True)
        options = {"xfs": "loop,ro,norecovery,nouuid", "ext4": "loop,ro,noload"}[fs]
        subprocess.run(["mount", "-t", fs, "-o", options, str(image), str(point)], check=True)
        try:
            return read_files(str(point))
        finally:
            subprocess.run(["umount", str(point)], check=True)
            until = time.monotonic() + SETTLE_SECONDS
            while str(image) in self.loops() and time.monotonic() < until:
                time.sleep(0.005)

    def look(self, which: int, more: int) -> None:
        """Read an object as its user would: a disk through its device, a snapshot by restoring it (larger by `more`)."""
        # A look at a disk that was never staged would settle its format.
        seen = [i for i in self.world.values() if isinstance(i, Disk) and i.format != "blank" and not i.holder]
        items: list[Disk | Cut] = [*seen, *(i for i in self.world.values() if isinstance(i, Cut))]
        if not items:
            return
        item = items[which % len(items)]
        self._log(f"  look at {item.name!r} through a device")
        place, size, shown = item.id, item.size, isinstance(item, Disk) and item.shown
        if isinstance(item, Cut):
            size += more
            source = Source("snapshot", item.id)
            made = self.client.create_volume("look", SizeRange(size), [capability(item.fs)], source=source)
            assert made.size == size
            place = made.id
        if not shown:
            self.show(self.client, place, item.fs)
        found = read_files(self.target(place)) if item.fs else read_device(self.target(place))
        same(found, grown(item.content, size), f"{item.name!r} through a device")
        if not shown:
            self.hide(self.client, place)
        if isinstance(item, Cut):
            self.client.delete_volume(place)
        self.counts["looks through a device"] += 1
        self.check()

    def finish(self) -> None:
        """Delete everything, and find nothing left."""
        self.check(deep=True)
        for item in list(self.world.values()):
            if isinstance(item, Disk):
                if item.holder:
                    self.client.release(item.id, item.holder)
                if item.shown:
                    self.hide(self.client, item.id)
                self.client.delete_volume(item.id)
            elif isinstance(item, Group):
                self.client.delete_group(item.id)
            elif not item.group:
                self.client.delete_snapshot(item.id)
        self.world = {}
        self.check(deep=True)
        until = time.monotonic() + SETTLE_SECONDS
        while list((self.rig.pool / ".trash").iterdir()):
            assert time.monotonic() < until, "the trash is not emptied"
            time.sleep(0.02)
        self.steps = []

    def _log(self, what: str) -> None:
        self.steps.append(what)


_KINDS: dict[type[Item], str] = {Disk: "volume", Cut: "snapshot", Group: "group"}


def _has_data(image: Path) -> bool:
    with image.open("rb") as file:
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
    return True
