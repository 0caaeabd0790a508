"""Where the cluster has its state and its programs, and the addresses that it uses.

All addresses lie in 198.18.0.0/15, which is reserved for benchmarks: nothing collides with the machine's own network, and
nothing that is sent to one of them leaves the machine.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
CHART = TREE / "charts" / "tidemark"
STATE = Path(os.environ.get("TIDEMARK_CLUSTER") or "/var/lib/tidemark-cluster")
"""On a real disk and root's alone: pools lie below it, and keys. One cluster a machine, whatever tree made it."""

BRIDGE = "tidemark0"
BRIDGE_ADDRESS = "198.18.0.1"
NODES = "198.18.0.0/16"
SERVICES = "198.19.0.0/20"
KUBERNETES_SERVICE = "198.19.0.1"
API = f"https://{BRIDGE_ADDRESS}:6443"
ETCD = "http://127.0.0.1:12379"
ETCD_PEER = "http://127.0.0.1:12380"

PKI = STATE / "pki"
LOGS = STATE / "logs"
AUDIT = LOGS / "audit.log"
KUBECONFIG = STATE / "admin.kubeconfig"


@functools.cache
def programs() -> Path:
    """The directory of kubelet, kubectl, helm and so on; they are built first where they are missing."""
    run = subprocess.run(
        ["sh", TREE / "tests" / "tools" / "kubernetes.sh"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    return Path(run.stdout.strip())


def node_address(index: int) -> str:
    return f"198.18.0.{10 + index}"


def pod_subnet(index: int) -> str:
    return f"198.18.{16 + index}.0/24"
