"""The container image is built as it would be for a release, and does its work as a container on a node does.

There is no container engine here: a node is a mount namespace, and the container a chroot in namespaces of its own that
shares with the node what a privileged pod shares. What is in the image, and what is not, is what this is about.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build.sh"
SANITY = HERE.parent / "tools" / "csi-sanity.sh"
SPECS = 77
"""Of 96 in csi-sanity v5.5.0: those for capabilities that the agent does not claim are skipped."""
COMMANDS = ("debootstrap", "buildah", "unshare", "nsenter", "losetup")

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow(seconds=120),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("image"),
]

MOST_BYTES = 420_000_000
"""Of all files in the image, as they lie on a disk."""

# The node's side: mounts below DIR are shared with the container, /dev is the host's so that new loop devices are seen. The
# image's own files are read-only, as they are in the chart's pods. It lives until its standard input is closed.
NODE = """
set -eu
mount --bind "$1" "$1"
mount --make-shared "$1"
mkdir -p "$2$1"
mount --bind "$2" "$2"
mount -o remount,bind,ro "$2"
mount --rbind /dev "$2/dev"
mount --rbind /sys "$2/sys"
mount -t tmpfs tmpfs "$2/run"
mount -t tmpfs tmpfs "$2/tmp"
mkdir -p "$2$1"
mount --bind "$1" "$2$1"
echo ready
read -r end || true
"""


@dataclass(frozen=True)
class Image:
    """The image's configuration, and its files as a container has them."""

    config: dict[str, Any]
    root: Path


def output(*argv: object, **options: int) -> str:
    run = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
        **options,
    )
    assert run.returncode == 0, f"{argv} ended with {run.returncode}:\n{run.stdout}\n{run.stderr}"
    return run.stdout.strip()


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build the image where the tree has changed since the last time, and lay out its files."""
    if os.geteuid():
        pytest.skip("needs root: builds an image, mounts and attaches loop devices")
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: install Debian's buildah, debootstrap and util-linux")
    name = output("sh", BUILD)
    inspected = json.loads(output("sh", BUILD, "buildah", "inspect", "--type", "image", name))
    container = output("sh", BUILD, "buildah", "from", "--pull-never", name)
    try:
        root = Path(output("sh", BUILD, "buildah", "mount", container))
        yield Image(inspected["OCIv1"]["config"], root)
    finally:
        output("sh", BUILD, "buildah", "rm", container)


def loops() -> dict[str, tuple[str, str]]:
    """Loop devices: device number and inode of what each is backed by."""
    output_text = output("losetup", "--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO")
    devices = json.loads(output_text)["loopdevices"] if output_text else []
    return {device["name"]: (device["back-maj:min"].strip(), str(device["back-ino"])) for device in devices}


def attached(directory: Path) -> tuple[list[str], list[str]]:
    """The devices of the pools whose images lie in `directory`, and those of the volumes in these pools.

    By device and inode: with the node, every path to the files of a pool is gone.
    """
    stat = directory.stat()
    number = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"
    files = {str(path.stat().st_ino) for path in directory.glob("*.img")}
    found = loops()
    pools = [name for name, (device, inode) in found.items() if device == number and inode in files]
    numbers = {f"{os.major(rdev)}:{os.minor(rdev)}" for rdev in (os.stat(name).st_rdev for name in pools)}
    return pools, [name for name, (device, _) in found.items() if device in numbers]


def detach_below(directory: Path) -> None:
    """Take away what a node's power switch does not: its loop devices."""
    pools, volumes = attached(directory)
    for name in volumes + pools:
        output("losetup", "--detach", name)


class Node:
    """A node with the image's root file system laid out on it, and a directory that both sides see."""

    def __init__(self, image: Image, shared: Path) -> None:
        self.image, self.shared = image, shared
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", NODE, "node", shared, image.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def on_node(self, *argv: object) -> list[str]:
        """Argv of a command on the node."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", *map(str, argv)]

    def in_container(self, *arguments: object) -> list[str]:
        """Argv of the image's entry point, process 1 of a privileged container on this node."""
        root = self.image.root
        return self.on_node(
            *("unshare", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child"),
            *(f"--mount-proc={root}/proc", "chroot", root, "/usr/bin/env", "--ignore-environment"),
            *(*self.image.config["Env"], *self.image.config["Entrypoint"], *arguments),
        )

    def close(self) -> None:
        """The node's end: every mount on it goes."""
        self._holder.communicate("end\n", timeout=10)


@pytest.fixture
def node(image: Image, tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        stack.callback(detach_below, tmp_path)
        made = Node(image, tmp_path)
        stack.callback(made.close)
        yield made


def test_what_is_in_it(image: Image) -> None:
    assert image.config["Entrypoint"] == ["tidemark"]
    assert image.config["Cmd"] == ["agent"]
    assert image.config.get("User", "") in ("", "root", "0")
    assert image.config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    for absent in ("usr/bin/gcc", "usr/bin/make", "usr/bin/pip3", "opt/build", "src"):
        assert not (image.root / absent).exists(), absent
    site = image.root / "opt/tidemark/lib/python3.11/site-packages"
    installed = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}
    assert "tidemark_csi" in installed
    assert not installed & {"pip", "setuptools", "hatchling", "grpcio_tools", "mypy"}


def test_a_node_without_lvm_finds_it_in_the_image(image: Image, node: Node) -> None:
    """The lvm of the image answers as the agent asks it, and the tools that it starts for a thin pool are where it looks."""
    argv = node.in_container()
    argv[argv.index("tidemark") :] = ["lvm", "version"]
    assert "LVM version:" in output(*argv)
    argv[-2:] = ["lvm", "lvmconfig", "--type", "full", "global/thin_check_executable"]
    thin_check = output(*argv).partition("=")[2].strip().strip('"')
    assert thin_check
    assert (image.root / thin_check.lstrip("/")).exists(), thin_check
    assert (image.root / "usr/bin/nsenter").exists(), "the way to the node's own lvm"


def test_its_size(image: Image) -> None:
    """Every node pulls it, and the controller's libraries are the greater part."""
    seen = {}
    for path in image.root.rglob("*"):
        status = path.lstat()
        seen[status.st_ino] = status.st_blocks * 512
    assert sum(seen.values()) < MOST_BYTES


@pytest.mark.parametrize("words", [("--help",), ("--pod-name", "x", "--kubeconfig", "/nowhere")])
def test_its_controller_runs_as_nobody(node: Node, words: tuple[str, ...]) -> None:
    """All that it needs is in the image, and for none of it it must be root or write."""
    argv = node.in_container("controller", "--endpoint", "/tmp/csi.sock", *words)
    at = argv.index("chroot") + 2
    argv[at:at] = ["/usr/bin/setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    said = run.stdout + run.stderr
    assert "Traceback" not in said, said
    if "--help" in words:
        assert run.returncode == 0, said
        assert "--agent-secret" in said
    else:
        assert run.returncode == 1, said
        assert "cannot connect to a Kubernetes API with /nowhere" in said


def test_the_demo_runs_in_it(node: Node) -> None:
    output_text = output(*node.in_container("demo"), timeout=120)
    assert "checks passed on XFS reflink" in output_text, output_text


def test_its_agent_conforms(node: Node, tmp_path: Path) -> None:
    """Its pool is made with the image's own tools, a volume of it shows on the node, and csi-sanity runs on the node."""
    suite = output("sh", SANITY, timeout=600)
    endpoint = f"unix://{tmp_path}/csi.sock"
    log = tmp_path / "agent.log"
    argv = node.in_container(
        *(*node.image.config["Cmd"], "--endpoint", endpoint, "--node-name", "image-test"),
        *("--pool-image", tmp_path / "pool.img", "--pool-image-sparse", "--pool-size", "8Gi"),
        *("--pool-mount", tmp_path / "pool"),
    )
    with log.open("wb") as sink:
        container = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        wait_until_ready(node, container, endpoint, log)

        def command(*words: object) -> None:
            output(*node.in_container(*words, "--endpoint", endpoint))

        command("volume", "create", "db", "--size", "1Gi", "--fs", "xfs")
        command("mount", "db", tmp_path / "db")
        assert output(*node.on_node("findmnt", "--noheadings", "--output", "FSTYPE", tmp_path / "db")) == "xfs"
        assert len(attached(tmp_path)[1]) == 1
        command("umount", tmp_path / "db")
        command("volume", "delete", "db")

        conformance = output(
            *node.on_node(suite, f"--csi.endpoint={endpoint}", f"--csi.mountdir={tmp_path}/target"),
            *(f"--csi.stagingdir={tmp_path}/staging", f"--csi.testvolumesize={1 << 30}"),
            *(f"--csi.testvolumeexpandsize={2 << 30}", "--ginkgo.no-color", "--ginkgo.timeout=10m"),
            timeout=660,
        )
        assert int(re.search(r"Ran (\d+) of", conformance)[1]) >= SPECS, conformance
        assert agent_ends(container) == 0
        assert attached(tmp_path)[1] == [], "volumes that are still attached"
    except BaseException:
        print(log.read_text()[-8000:])
        raise
    finally:
        container.kill()
        container.wait()


def wait_until_ready(node: Node, container: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    """Ask the image's own `tidemark status`, by another container, as a probe would."""
    argv = node.in_container("status", "--endpoint", endpoint)
    deadline = time.monotonic() + 60
    while subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        assert container.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def agent_ends(container: "subprocess.Popen[bytes]") -> int:
    """SIGTERM to process 1 of the container, as its engine sends it. Returns the status of the container."""
    pid = container.pid
    agent = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(agent) == 1
    os.kill(int(agent[0]), signal.SIGTERM)
    return container.wait(timeout=60)
