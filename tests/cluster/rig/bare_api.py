"""An API server with nothing behind it but etcd: no node, no controller. For what needs its behaviour and its clock alone."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rig.machine import RigError, until
from rig.paths import CHART, programs

TOKEN = "of-a-test"


def why_not() -> str:
    """Why there is none here; empty where there is."""
    return "" if shutil.which("etcd") else "needs etcd: install Debian's etcd-server"


class BareApi:
    """On ports of its own, with its data in `directory`; `kubeconfig` leads there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        """Start both, wait until the API answers, and install the definitions of snapshots and ours."""
        etcd, peer, self.port = _ports(3)
        here = self.directory
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (here / "accounts.key").write_bytes(pem)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (here / "accounts.pub").write_bytes(public)
        (here / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n")
        cluster = {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bare", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "bare", "context": {"cluster": "bare", "user": "admin"}}],
            "current-context": "bare",
        }
        self.kubeconfig.write_text(json.dumps(content))
        self.kubeconfig.chmod(0o600)
        urls = {"client": f"http://127.0.0.1:{etcd}", "peer": f"http://127.0.0.1:{peer}"}
        self._start(
            "etcd",
            *("etcd", f"--data-dir={here}/etcd", "--unsafe-no-fsync", "--log-level=warn", "--logger=zap"),
            *(f"--listen-client-urls={urls['client']}", f"--advertise-client-urls={urls['client']}"),
            *(f"--listen-peer-urls={urls['peer']}", f"--initial-advertise-peer-urls={urls['peer']}"),
            f"--initial-cluster=default={urls['peer']}",
        )
        self._apiserver = [
            *(
                str(programs() / "kube-apiserver"),
                f"--etcd-servers={urls['client']}",
                f"--cert-dir={here}/certificates",
            ),
            *("--bind-address=127.0.0.1", f"--secure-port={self.port}", "--endpoint-reconciler-type=none"),
            *(f"--token-auth-file={here}/tokens.csv", "--authorization-mode=RBAC", "--profiling=false"),
            *("--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection", "--v=0"),
            *(f"--service-account-key-file={here}/accounts.pub", "--service-account-issuer=https://bare"),
            f"--service-account-signing-key-file={here}/accounts.key",
        ]
        self.resume()
        for definitions in (programs() / "crd", CHART / "files" / "crds"):
            self.kubectl("apply", "--server-side", f"--filename={definitions}")
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")

    def kubectl(self, *words: str) -> str:
        argv = [str(programs() / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words]
        run = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
        if run.returncode:
            raise RigError(f"kubectl {' '.join(words)}: {run.stderr.strip()}")
        return run.stdout

    def cut(self) -> None:
        """Kill the API server; etcd keeps what there is."""
        self._end("apiserver", signal.SIGKILL)

    def resume(self) -> None:
        """Start the API server again, and wait until it answers."""
        self._start("apiserver", *self._apiserver)
        until(f"the API; see {self.directory}/apiserver.log", self._ready, 60)

    def down(self) -> None:
        """End both."""
        for name in list(self._processes):
            self._end(name, signal.SIGKILL)

    def _start(self, name: str, *argv: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env={**os.environ, "NO_PROXY": "*"}
            )

    def _end(self, name: str, number: int) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait(10)

    def _ready(self) -> bool:
        if self._processes["apiserver"].poll() is not None:
            raise RigError(f"the API server has ended: see {self.directory}/apiserver.log")
        context = ssl._create_unverified_context()
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        asked = urllib.request.Request(
            f"https://127.0.0.1:{self.port}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with opener.open(asked, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
