"""An agent's start: what it refuses, with status 1 and the way out, and that every option is a variable as well."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from outside_rig import Disk, agent_of, refused, scrape, use
from support.agent_process import AgentRig, ready
from support.machine import why_no_pool
from support.ports import free_port

from csi_driver.agent.host_check import check_host
from csi_driver.agent.settings import PoolSpec, Settings
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import CallRefused, Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(200)]

LVM_LOOKS = "LVM of this node looks into disks of its tenants"
"""Told at start, on a machine with LVM that nobody has told to leave loop devices alone."""

MIB = 1 << 20
XFS = Capability("mount", AccessMode.MULTI_WRITER, "xfs")
BLOCK = Capability("block", AccessMode.MULTI_WRITER)


@pytest.fixture
def launch(disks: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts agents with arguments and variables, waits until they are ready, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "log"

    def one(endpoint: str, arguments: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], Client]:
        started.append(agent_of(arguments, environment, log))
        return started[-1], ready(endpoint, started[-1], log)

    try:
        yield one
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def ended(process: "subprocess.Popen[bytes]") -> int:
    process.terminate()
    return process.wait(30)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Any]:
    """Makes disks, and takes them away."""
    if reason := why_no_pool():
        pytest.skip(reason)
    made: list[Disk] = []

    def make(name: str, *mkfs: str) -> Path:
        if shutil.which(mkfs[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"needs {mkfs[0]}: install Debian's {'btrfs-progs' if 'btrfs' in mkfs[0] else 'package of it'}")
        made.append(Disk(tmp_path, name, *mkfs))
        return made[-1].path

    try:
        yield make
    finally:
        for disk in made:
            disk.clean()


def options(tmp_path: Path, pool: str, *more: str, node: str = "node1") -> list[str]:
    return ["--endpoint", f"unix://{tmp_path}/csi.sock", "--pool", pool, "--node-name", node, *more]


def assert_refused(tmp_path: Path, pool: str, *words: str, node: str = "node1") -> None:
    """Status 1, one line that says what and the way out, no traceback, nothing left."""
    status, said = refused(*options(tmp_path, pool, node=node))
    assert status == 1, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "agent start failed" in line]
    assert len(lines) == 1, said
    for word in words:
        assert word in lines[0], lines[0]
    assert not (tmp_path / "csi.sock").exists()


@pytest.mark.parametrize(
    ("mkfs", "words"),
    [
        (("mkfs.ext4", "-q"), ("is on ext4", "use a directory on XFS", "--pool-image")),
        (("mkfs.xfs", "-q", "-m", "reflink=0"), ("without reflink", "mkfs.xfs -m reflink=1", "--pool-image")),
        (("mkfs.btrfs", "-q"), ("btrfs", "use XFS", "--pool-image")),
    ],
    ids=["ext4", "xfs without reflink", "btrfs"],
)
def test_a_pool_on_another_file_system(
    disks: Any, tmp_path: Path, mkfs: tuple[str, ...], words: tuple[str, ...]
) -> None:
    path = disks("disk", *mkfs)
    before = sorted(os.listdir(path))
    assert_refused(tmp_path, str(path), str(path), *words)
    assert sorted(os.listdir(path)) == before, "nothing is written where nothing can be served"


def test_pools_that_are_not_to_be_served(disks: Any, launch: Any, tmp_path: Path) -> None:
    path = disks("disk", "mkfs.xfs", "-q")
    missing = tmp_path / "missing"
    assert_refused(tmp_path, str(missing), str(missing), "mount the pool's disk there", "--pool-image")

    (path / "photos").mkdir()
    assert_refused(tmp_path, str(path), "'photos'", "not empty", "name an empty directory")
    assert os.listdir(path) == ["photos"]
    (path / "photos").rmdir()

    (path / "inner").mkdir()
    assert_refused(tmp_path, str(path / "inner"), "no mount point", "mount it", "--pool-init")
    assert os.listdir(path / "inner") == []
    (path / "inner").rmdir()

    process, client = launch(f"unix://{tmp_path}/csi.sock", options(tmp_path, str(path)), {})
    client.close()
    assert ended(process) == 0

    assert_refused(tmp_path, str(path), "'node1'", "'node2'", "--node-name", node="node2")
    assert_refused(tmp_path, f"other={path}", "'default'", "'other'", "--pool")
    identity = path / "pool.json"
    ours = identity.read_text()
    identity.write_text(json.dumps({**json.loads(ours), "format": 99}))
    assert_refused(tmp_path, str(path), "format 99", "newer driver")
    identity.write_text(ours[: len(ours) // 2])
    assert_refused(tmp_path, str(path), "pool.json", "restore it")
    identity.write_text(ours)

    file = tmp_path / "file"
    file.touch()
    assert_refused(tmp_path, str(file), "not a directory")
    process, client = launch(f"unix://{tmp_path}/csi.sock", options(tmp_path, str(path)), {})
    client.close()
    assert ended(process) == 0


def test_two_agents_never_share_a_pool_or_a_socket(rig: AgentRig, client: Client, disks: Any, tmp_path: Path) -> None:
    volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
    target = use(rig, client, volume, "target", XFS)
    other = disks("other", "mkfs.xfs", "-q")
    status, said = refused("--endpoint", rig.endpoint, "--pool", str(other), "--node-name", "node1")
    assert status == 1, said
    assert "another process serves" in said
    assert os.listdir(other) == []
    for words in (
        ["--pool", str(rig.pool)],
        ["--pool-image", str(rig.image), "--pool-mount", str(rig.pool)],
    ):
        status, said = refused("--endpoint", f"unix://{tmp_path}/second.sock", "--node-name", "node1", *words)
        assert status == 1, said
        assert "Traceback" not in said
        assert "is another agent running on it?" in said
        assert not (tmp_path / "second.sock").exists()
    (target / "file").write_text("the first one serves on")
    assert client.create_snapshot(volume, "s").ready
    assert rig.process is not None
    assert rig.process.poll() is None


@contextmanager
def socket_taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_what_else_stops_a_start(disks: Any, tmp_path: Path) -> None:
    path = disks("disk", "mkfs.xfs", "-q")
    with_socket = options(tmp_path, str(path))
    (tmp_path / "csi.sock").write_text("a file")
    status, said = refused(*with_socket)
    assert (status, "is no socket" in said, "Traceback" in said) == (1, True, False), said
    (tmp_path / "csi.sock").unlink()

    with socket_taken() as port:
        status, said = refused(*with_socket, "--metrics-address", f"127.0.0.1:{port}")
    assert (status, "Traceback" in said) == (1, False), said
    assert str(port) in said
    assert "--metrics-address" in said
    status, said = refused(*with_socket, "--pool", "b=nvme:/x")
    assert status == 2  # a usage error, before anything is touched
    assert "nvme" in said


def test_every_option_is_a_variable_too(disks: Any, launch: Any, tmp_path: Path) -> None:
    path = disks("disk", "mkfs.xfs", "-q")
    for name in ("one", "two"):
        (path / name).mkdir()
    port = free_port()
    environment = {
        "TIDEMARK_POOL": f"fast={path}/one bulk=reflink:{path}/two",
        "TIDEMARK_POOL_INIT": "true",
        "CSI_ENDPOINT": f"unix://{tmp_path}/env.sock",
        "TIDEMARK_NODE_NAME": "node-env",
        "TIDEMARK_OVERCOMMIT": "3.5",
        "TIDEMARK_RESERVE": "16Mi",
        "TIDEMARK_MAX_SNAPSHOTS": "1",
        "TIDEMARK_FREEZE_DEADLINE": "2.5",
        "TIDEMARK_METRICS_ADDRESS": f"127.0.0.1:{port}",
        "TIDEMARK_LOG_FORMAT": "json",
        "TIDEMARK_DRIVER_NAME": "env.tidemark.dev",
    }
    # And nothing else is: these were meant for other programs.
    ambient = {
        "https_proxy": "http://127.0.0.1:9",
        "GRPC_DNS_RESOLVER": "ares",
        "SSL_CERT_FILE": "/nowhere",
        "TZ": "Asia/Tokyo",
    }
    process, client = launch(f"unix://{tmp_path}/env.sock", [], environment | ambient)
    seen = {line.partition(b"=")[0].decode() for line in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")}
    assert environment.keys() <= seen
    assert not ambient.keys() & seen
    with client:
        who = client.agent()
        assert (who.driver, who.node) == ("env.tidemark.dev", "node-env")
        pools = client.pools()
        assert {(p.name, p.path, p.owner) for p in pools} == {
            ("fast", f"{path}/one", "node-env"),
            ("bulk", f"{path}/two", "node-env"),
        }
        assert {(p.overcommit, p.reserve) for p in pools} == {(3.5, 16 * MIB)}
        volume = client.create_volume("v", SizeRange(16 * MIB), [BLOCK]).id
        assert volume.startswith("node-env:fast:")
        client.create_snapshot(volume, "one")
        with pytest.raises(CallRefused, match="the limit is 1"):
            client.create_snapshot(volume, "two")
        assert scrape(port)["tidemark_pool_volumes", (("pool", "fast"),)] == 1
    assert ended(process) == 0
    log = tmp_path / "log"
    events = {json.loads(line)["event"] for line in log.read_text().splitlines()}
    assert events - {LVM_LOOKS} == {"ready", "call", "stopped"}

    # An option says more than the variable.
    said = ["--node-name", "node-env", "--overcommit", "2"]
    process, client = launch(f"unix://{tmp_path}/env.sock", said, {**environment, "TIDEMARK_NODE_NAME": "other"})
    with client:
        assert {p.overcommit for p in client.pools()} == {2.0}
        assert len(client.tree()) == 2
    assert ended(process) == 0


def test_a_node_whose_lvm_looks_into_disks_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(__file__).parent.parent.parent
    monkeypatch.setattr("csi_driver.agent.host_check.missing_tools", lambda _tools: [])
    monkeypatch.setattr("csi_driver.agent.host_check.os.access", lambda *_: True)
    settings = Settings(pools=(PoolSpec("default", "reflink", "/srv/tidemark"),))
    for why, expected in (("", 0), ("no global_filter", 1)):
        monkeypatch.setattr("csi_driver.host.block.lvm.why_looks_into_volumes", lambda _image, why=why: why)
        with structlog.testing.capture_logs() as lines:
            check_host(settings)
        assert [line["event"] for line in lines] == [LVM_LOOKS] * expected
        for line in lines:
            assert (line["log_level"], line["why"]) == ("warning", why)
            assert (whole / line["what_to_do"]).exists()


def test_a_pool_image_by_variables(rig: AgentRig, launch: Any) -> None:
    environment = {
        "TIDEMARK_POOL_IMAGE": str(rig.image),
        "TIDEMARK_POOL_MOUNT": str(rig.pool),
        "TIDEMARK_POOL_SIZE": "400Mi",
        "TIDEMARK_POOL_IMAGE_SPARSE": "1",
        "TIDEMARK_ENDPOINT": rig.endpoint,
        "TIDEMARK_NODE_NAME": "node1",
        "TIDEMARK_RESERVE": "16Mi",
    }
    process, client = launch(rig.endpoint, [], environment)
    with client:
        assert os.path.getsize(rig.image) == 400 * MIB
        assert os.stat(rig.image).st_blocks * 512 < 100 * MIB
        assert [(p.name, p.path) for p in client.pools()] == [("default", str(rig.pool))]
    assert ended(process) == 0
    assert subprocess.run(["mountpoint", "-q", str(rig.pool)], check=False).returncode == 0, "left for what is in use"


def test_a_pool_image_grows_at_a_start_and_never_shrinks(rig: AgentRig, launch: Any) -> None:
    words = ["--endpoint", rig.endpoint, "--pool-image", str(rig.image), "--pool-mount", str(rig.pool)]
    words += ["--pool-image-sparse", "--node-name", "node1", "--reserve", "16Mi"]
    process, client = launch(rig.endpoint, [*words, "--pool-size", "1Gi"], {})
    with client:
        volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
        target = use(rig, client, volume, "target", XFS)
        (before,) = client.pools()
    assert ended(process) == 0
    (target / "file").write_text("in use meanwhile")
    process, client = launch(rig.endpoint, [*words, "--pool-size", "2Gi"], {})
    with client:
        (after,) = client.pools()
        assert after.total - before.total > 900 * MIB
        assert (target / "file").read_text() == "in use meanwhile"
    assert ended(process) == 0
    status, said = refused(*words, "--pool-size", "1Gi")
    assert (status, "Traceback" in said) == (1, False), said
    assert "has 2 GiB and --pool-size asks for 1 GiB: a pool never shrinks" in said
    process, client = launch(rig.endpoint, words, {})
    with client:
        assert client.pools()[0].total == after.total
    assert ended(process) == 0


def test_a_start_that_fails_leaves_no_image(rig: AgentRig, disks: Any, launch: Any) -> None:
    """Made for a pool beside one that cannot be served, it would take the host's space for nothing."""
    other = disks("other", "mkfs.ext4", "-q")
    words = ["--endpoint", rig.endpoint, "--pool-image", str(rig.image), "--pool-mount", str(rig.pool)]
    words += ["--pool-size", "400Mi", "--node-name", "node1", "--pool", f"image={rig.pool}"]
    status, said = refused(*words, "--pool", f"other={other}")
    assert (status, "is on ext4" in said) == (1, True), said
    assert not rig.image.exists()
    assert subprocess.run(["mountpoint", "-q", str(rig.pool)], check=False).returncode != 0
    process, client = launch(rig.endpoint, words, {})
    client.close()
    assert ended(process) == 0
    status, said = refused(*words, "--pool", f"other={other}")
    assert status == 1
    assert rig.image.exists(), "it was there before"


HANGS = """
import asyncio, sys
from csi_driver.agent import main as agent
from csi_driver.agent.pools import PoolStartup
from csi_driver.agent.settings import MIB, PoolImage, PoolSpec, Settings

async def hang(self):
    print("opening", flush=True)
    await asyncio.sleep(600)

PoolStartup._open_pools = hang
endpoint, image, mount = sys.argv[1:]
pools = (PoolSpec("default", "reflink", mount),)
settings = Settings(pools, PoolImage(image, mount, 400 * MIB), endpoint=endpoint, node_name="node1")
sys.exit(asyncio.run(agent.run_agent(settings)))
"""


def test_a_start_that_is_broken_off_leaves_no_image(rig: AgentRig) -> None:
    """A kubelet stops what does not become ready, here while the pool is opened in the image that it has just made."""
    argv = [sys.executable, "-c", HANGS, rig.endpoint, str(rig.image), str(rig.pool)]
    rig.process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert rig.process.stdout is not None
    with rig.process.stdout as out:
        assert any(line.strip() == b"opening" for line in out)
        assert rig.image.exists()
        assert rig.stop() == 0
    assert not rig.image.exists()
    assert subprocess.run(["mountpoint", "-q", str(rig.pool)], check=False).returncode != 0


def test_a_small_pool_serves_and_one_that_cannot_says_so_at_its_start(disks: Any, launch: Any, tmp_path: Path) -> None:
    path, log = disks("disk", "mkfs.xfs", "-q"), tmp_path / "log"
    endpoint, words = f"unix://{tmp_path}/csi.sock", options(tmp_path, str(path))
    process, client = launch(endpoint, words, {})
    with client:
        assert client.pools()[0].reserve < 64 * MIB
        client.delete_volume(client.create_volume("v", SizeRange(64 * MIB), [BLOCK]).id)
    assert ended(process) == 0
    assert "no capacity for new volumes" not in log.read_text()
    process, client = launch(endpoint, [*words, "--reserve", "1Gi"], {})
    with client, pytest.raises(CallRefused, match="the pool is empty, so make it larger, or its reserve smaller"):
        client.create_volume("v", SizeRange(64 * MIB), [BLOCK])
    assert ended(process) == 0
    assert "pool has no capacity for new volumes" in log.read_text()
