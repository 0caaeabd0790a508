"""What the controller adds to a call: the same question to an agent by its own socket, and through a controller."""

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from bench.clients import FakeApi
from bench.rig import quantiles
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.kube.resources import NODES, PODS, SECRETS
from csi_driver.operator.certificates import ca as authority
from csi_driver.rpc import tls
from csi_driver.rpc.clients.cli_client import CallRefused, Client

CALLS = 2_000
BLOCK = Capability("block", AccessMode.MULTI_WRITER)
LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/component": "agent"}


def route() -> list[dict[str, object]]:
    """Milliseconds of a call that only reads and of one that makes a volume, direct and routed, in turns."""
    return asyncio.run(_route())


async def _route() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="tm-") as root, contextlib.ExitStack() as stack:
        async with FakeApi() as fake:
            directory = Path(root)
            port = _free_port()
            _describe(fake, directory, port)
            stack.enter_context(_tidemark(directory, "agent", "--pool", "default=memory", "--node-name", "n-1",
                                          "--listen", f"127.0.0.1:{port}", "--certificates", f"{root}/agent"))  # fmt: skip
            stack.enter_context(_tidemark(directory, "controller", "--kubeconfig", fake.kubeconfig(directory / "config"),
                                          "--controller-secret", "controller", "--agent-secret", "agent",
                                          "--certificates", f"{root}/own"))  # fmt: skip
            return await asyncio.to_thread(_measure, directory)


def _measure(root: Path) -> list[dict[str, object]]:
    direct, routed = _ready(root, "agent"), _ready(root, "controller")
    volume = direct.create_volume("v", SizeRange(1 << 20), [BLOCK]).id
    times: dict[str, list[float]] = {"direct": [], "routed": []}
    made: dict[str, list[float]] = {"direct": [], "routed": []}
    for index in range(CALLS):
        for name, client in (("direct", direct), ("routed", routed)):
            began = time.perf_counter()
            client.tree(volume_id=volume)
            times[name].append(time.perf_counter() - began)
            if index % 20:
                continue
            began = time.perf_counter()
            client.create_volume(f"{name}-{index}", SizeRange(1 << 20), [BLOCK])
            made[name].append(time.perf_counter() - began)
    rows = []
    for what, found in (("GetTree of one volume", times), ("CreateVolume", made)):
        added = statistics.median(found["routed"]) - statistics.median(found["direct"])
        figures = {name: quantiles(one) for name, one in found.items()}
        rows.append({"what": what, "added_p50_ms": round(added * 1e3, 2), **figures})
    direct.close()
    routed.close()
    return rows


def _describe(fake: FakeApi, root: Path, port: int) -> None:
    """The cluster that the controller is to find, and the certificates of both."""
    ca = authority.new_ca()
    for name, role in (("controller", tls.CONTROLLER), ("agent", tls.AGENT)):
        pair = authority.issue(ca, role)
        files = {"ca.crt": ca.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
        (root / name).mkdir()
        for file, data in files.items():
            (root / name / file).write_bytes(data)
        encoded = {file: b64encode(data).decode() for file, data in files.items()}
        fake.put(SECRETS, {"metadata": {"name": name}, "data": encoded}, "tidemark")
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    fake.put(NODES, {"metadata": {"name": "n-1"}, "status": ready})
    owner = [{"kind": "DaemonSet", "name": "tidemark-agent"}]
    container = {"name": "agent", "ports": [{"name": "grpc", "containerPort": port}]}
    pod = {
        "metadata": {"name": "a", "labels": LABELS, "ownerReferences": owner},
        "spec": {"nodeName": "n-1", "containers": [container]},
        "status": {"phase": "Running", "podIP": "127.0.0.1", **ready},
    }
    fake.put(PODS, pod, "tidemark")


@contextlib.contextmanager
def _tidemark(root: Path, command: str, *options: str) -> Iterator[None]:
    argv = [
        sys.executable,
        "-m",
        "csi_driver.cli.main",
        command,
        "--endpoint",
        f"unix://{root}/{command}.sock",
        *options,
    ]
    with (root / f"{command}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _ready(root: Path, command: str) -> Client:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        client = Client(f"unix://{root}/{command}.sock")
        with contextlib.suppress(CallRefused):
            if client.probe():
                return client
        client.close()
        time.sleep(0.1)
    raise SystemExit(f"the {command} is not ready:\n{(root / f'{command}.log').read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
