"""A pod of the agent is killed, stopped, upgraded: the next one, in a mount namespace of its own, takes over what is in use.

The node is this machine, its shared mounts are those below the test's directory, and a container is an agent in mount and
pid namespaces of its own. Somebody writes to a mounted disk and to a block device all the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outside_rig import free, scrape, use
from support.agent_process import AgentRig
from support.machine import why_no_pool
from support.pool_disk import clean, share
from support.ports import free_port

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.host.block import loop
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.fs.mountinfo import Mount
from csi_driver.rpc.clients.cli_client import CallRefused, Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]

MIB = 1 << 20
EXT4, XFS = (Capability("mount", AccessMode.MULTI_WRITER, kind) for kind in ("ext4", "xfs"))
BLOCK = Capability("block", AccessMode.MULTI_WRITER)
CONTAINER = ["unshare", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--mount-proc", "--kill-child"]


class Pods(AgentRig):
    """An agent as the pods of a DaemonSet on one node."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        # Not below the test's directory: with the name of a socket that is made there, it is longer than a socket's may be.
        self._registry = tempfile.TemporaryDirectory(prefix="tm-")
        super().__init__(
            root,
            "2Gi",
            *("--register", self._registry.name, "--kubelet-socket", f"{root}/csi.sock"),
            *("--metrics-address", f"127.0.0.1:{self.port}"),
        )
        self.prefix = CONTAINER

    def end(self, number: signal.Signals) -> None:
        """To process 1 of the container, as its engine does; the container's mount namespace goes with it."""
        assert self.process is not None
        (init,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(init), number)
        self.process.wait(40)

    def clean(self) -> None:
        """By identity: with a container's mount namespace, the paths of its devices' files have gone."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._registry.cleanup()
        until = time.monotonic() + 60
        while True:
            try:
                self._take_away()
                break
            except OSError:  # what was killed is still letting go
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        clean(self.root)

    def _take_away(self) -> None:
        for mount in reversed(mountinfo.read()):
            if mount.point.startswith(f"{self.root}/") and mount.point != str(self.pool):
                mounts.umount(mount.point)
        pool = mountinfo.at(str(self.pool))
        if pool is not None:
            inside = os.makedev(pool.major, pool.minor)
            for device in [device for device in loop.scan(IMAGE) if device.backing[0] == inside]:
                loop.detach(device)
            mounts.umount(self.pool)
        if self.image.exists() and (device := loop.find(self.image, self.image.name)) is not None:
            loop.detach(device)

    def mount_of_pool(self) -> Mount:
        found = mountinfo.at(str(self.pool))
        assert found is not None
        return found


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    if reason := why_no_pool():
        pytest.skip(reason)
    share(tmp_path)
    made = Pods(tmp_path)
    try:
        yield made
    finally:
        made.clean()


class Writer:
    """Writes numbered blocks, each synced, until it is told to stop; whatever goes wrong is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        self.error: OSError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_SYNC, 0o600)
            try:
                while not self._over.is_set():
                    os.pwrite(fd, self._block(self.written), self.written % 2048 * 4096)
                    self.written += 1
            finally:
                os.close(fd)
        except OSError as error:
            self.error = error

    def _block(self, number: int) -> bytes:
        return number.to_bytes(8, "big") * 512

    def goes_on(self, blocks: int = 20) -> None:
        until, wanted = time.monotonic() + 30, self.written + blocks
        while self.written < wanted:
            assert self.error is None, self.error
            assert time.monotonic() < until, "no write came back"
            time.sleep(0.01)

    def end(self) -> None:
        self._over.set()
        self._thread.join(30)
        assert self.error is None, self.error

    def check(self) -> None:
        """All that was written last is there."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            for number in range(max(0, self.written - 2048), self.written):
                assert os.pread(fd, 4096, number % 2048 * 4096) == self._block(number), number
        finally:
            os.close(fd)


def devices_of(pods: Pods) -> dict[tuple[int, int], int]:
    """Which loop device holds which file of the pool, and the pool's own."""
    pool = pods.mount_of_pool()
    inside = os.makedev(pool.major, pool.minor)
    status = pods.image.stat()
    return {
        device.backing: device.number
        for device in loop.scan()
        if device.backing[0] == inside or device.backing == (status.st_dev, status.st_ino)
    }


def image_of(pods: Pods, volume: str) -> Path:
    return pods.pool / "volumes" / volume.rpartition(":")[2] / "disk.img"


def test_what_is_in_use_goes_through_kills_and_upgrades(pods: Pods) -> None:
    uses = {"file": EXT4, "other": XFS, "raw": BLOCK}
    with pods.start() as client:
        volumes = {name: client.create_volume(name, SizeRange(320 * MIB), [how]).id for name, how in uses.items()}
        targets = {name: use(pods, client, volumes[name], name, how) for name, how in uses.items()}
        devices = devices_of(pods)
        assert len(devices) == 4
        pool = pods.mount_of_pool()
    writers = [Writer(targets["file"] / "data"), Writer(targets["other"] / "data"), Writer(targets["raw"])]
    try:
        for turn, number in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
            pods.end(number)
            for writer in writers:
                writer.goes_on()
            with pods.start() as client:
                assert pods.mount_of_pool() == pool
                assert devices_of(pods) == devices
                for name, how in uses.items():  # what a kubelet asks again after its own restart
                    use(pods, client, volumes[name], name, how)
                    assert client.create_snapshot(volumes[name], f"{name} {turn}").ready
                shown = {node.id: sorted(node.used_by) for node in client.tree() if node.kind == "volume"}
                for name, volume in volumes.items():
                    assert str(targets[name]) in shown[volume]
                assert scrape(pods.port)["tidemark_loop_devices", ()] == 3
                assert devices_of(pods) == devices
                for writer in writers:
                    writer.goes_on()
    finally:
        for writer in writers:
            writer.end()
    for writer in writers:
        writer.check()
    with Client(pods.endpoint) as client:
        for name, volume in volumes.items():
            free(pods, client, volume, name)
            assert not targets[name].exists()
            client.delete_volume(volume)
        assert list(devices_of(pods).values()) == [devices[(s := pods.image.stat()).st_dev, s.st_ino]]
    pods.end(signal.SIGTERM)
    assert pods.process is not None
    assert pods.process.returncode == 0
    assert pods.mount_of_pool() == pool


def test_a_volume_published_by_one_pod_is_taken_back_by_the_next(pods: Pods) -> None:
    """Of a mount namespace that is gone, the kernel shows other paths for the files behind loop devices."""
    with pods.start() as client:
        one = client.create_volume("one", SizeRange(320 * MIB), [XFS]).id
        gone = client.create_volume("gone", SizeRange(16 * MIB), [BLOCK]).id
        use(pods, client, one, "one", XFS)
        use(pods, client, gone, "gone", BLOCK)
    pods.end(signal.SIGKILL)
    paths = {Path(f"/sys/block/loop{n}/loop/backing_file").read_text().strip() for n in devices_of(pods).values()}
    assert not any(path.startswith(f"{pods.pool}/") for path in paths), "this is what the test is about"
    with pods.start() as client:
        free(pods, client, one, "one")
        # What the kubelet took from under the agent's feet, it may ask for once more.
        free(pods, client, one, "one")
        free(pods, client, gone, "gone")
        assert len(devices_of(pods)) == 1


@contextmanager
def another_node(pods: Pods, volume: str) -> Iterator[int]:
    """A loop device of another container's pool: the kernel shows the same path for its file as for ours."""
    script = (
        'mount -t tmpfs tmpfs "$1" && mkdir -p "$1/volumes/$2" && truncate -s 16M "$1/volumes/$2/disk.img" && '
        'losetup --find --show "$1/volumes/$2/disk.img" && read -r end'
    )
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(pods.pool)]
    with subprocess.Popen(
        [*argv, volume.rpartition(":")[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        device = process.stdout.readline().strip()
        try:
            yield int(device.removeprefix("/dev/loop"))
        finally:
            subprocess.run(["losetup", "--detach", device], check=False)
            process.communicate("\n")


def test_only_devices_of_this_pool_are_swept(pods: Pods) -> None:
    with pods.start() as client:
        volumes = [client.create_volume(name, SizeRange(16 * MIB), [BLOCK]).id for name in ("left", "twin")]
    # Attached in a namespace that is gone, and shown nowhere: as a kill between attaching and mounting leaves it.
    left = image_of(pods, volumes[0])
    argv = ["losetup", "--find", "--show", "--sector-size=4096", "--direct-io=on", str(left)]
    subprocess.run(["unshare", "--mount", "--propagation", "unchanged", *argv], check=True, capture_output=True)
    assert loop.find(left) is not None
    with another_node(pods, volumes[1]) as theirs:
        backing = Path(f"/sys/block/loop{theirs}/loop/backing_file")
        assert backing.read_text().strip() == str(image_of(pods, volumes[1]))
        pods.end(signal.SIGKILL)
        with pods.start() as client:
            assert loop.find(left) is None
            assert backing.exists(), "another container's device"
            assert [node.device for node in client.tree()] == ["", ""]


def told(pods: Pods) -> str:
    with pytest.raises(AssertionError, match="the agent ended"):
        pods.start()
    assert pods.process is not None
    assert pods.process.wait(30) == 1
    (line,) = [line for line in pods.log.read_text().splitlines() if "agent start failed" in line]
    return line


def test_a_pool_image_whose_mount_nobody_would_see(pods: Pods) -> None:
    subprocess.run(["mount", "--make-private", str(pods.root)], check=True)
    line = told(pods)
    assert "Bidirectional" in line
    assert str(pods.root) in line
    assert not pods.image.exists()


@pytest.mark.parametrize("what", ["the container's own layer", "memory", "an emptyDir"])
def test_a_pool_image_that_would_go_with_the_pod(pods: Pods, what: str) -> None:
    place = pods.root / "place"
    place.mkdir()
    if what == "memory":
        mounts.mount("tmpfs", place, "tmpfs")
    elif what == "an emptyDir":
        source = pods.root / "pods/uid/volumes/kubernetes.io~empty-dir/scratch"
        source.mkdir(parents=True)
        mounts.bind(source, place, False)
    else:
        place = Path("/")
    pods.image = place / "pool.img"
    line = told(pods)
    assert what in line
    assert "hostPath" in line
    assert not pods.image.exists()


def test_a_kubelet_directory_that_is_not_shared(pods: Pods) -> None:
    """A pod would write to the directory below the mount, on the node's own disk, and nobody would notice."""
    private = pods.root / "kubelet"
    private.mkdir()
    mounts.bind(private, private, False)
    subprocess.run(["mount", "--make-private", str(private)], check=True)
    with pods.start() as client:
        for how in (XFS, BLOCK):
            volume = client.create_volume(how.access, SizeRange(320 * MIB), [how]).id
            (private / "staging").mkdir(exist_ok=True)
            with pytest.raises(CallRefused, match="Bidirectional") as refusal:
                client.stage(volume, str(private / "staging"), how)
            assert refusal.value.code == "FAILED_PRECONDITION"
        assert [node.device for node in client.tree()] == ["", ""]
