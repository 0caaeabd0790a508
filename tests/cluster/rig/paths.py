"""Where the cluster has its state and its programs, and the addresses that it uses.

All addresses lie in 198.18.0.0/15, which is reserved for benchmarks: nothing collides with the machine's own network, and
nothing that is sent to one of them leaves the machine. TIDEMARK_CLUSTER=1 to 7 names another cluster beside the first one;
where it does not, and scenarios run side by side, each of TIDEMARK_CLUSTERS clusters has its share of the processes.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[3]
CHART = TREE / "charts" / "tidemark"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""Which of the processes this is that run tests side by side: gw0, gw1, ...; empty where there is but one."""
NUMBER = int(os.environ.get("TIDEMARK_CLUSTER") or int(WORKER[2:] or 0) % int(os.environ.get("TIDEMARK_CLUSTERS") or 1))
NAME = f"tidemark{NUMBER}"
"""Of the bridge, and the beginning of the names of what else is the whole machine's."""


def state_of(number: int) -> Path:
    return Path("/var/lib") / (f"tidemark-cluster-{number}" if number else "tidemark-cluster")


STATE = state_of(NUMBER)
"""On a real disk and root's alone: pools lie below it, and keys. One for the machine, whatever tree made it."""

NODES = f"198.18.{32 * NUMBER}.0/19"
BRIDGE_ADDRESS = f"198.18.{32 * NUMBER}.1"
SERVICES = f"198.19.{16 * NUMBER}.0/20"
KUBERNETES_SERVICE = f"198.19.{16 * NUMBER}.1"
API = f"https://{BRIDGE_ADDRESS}:6443"
ETCD = f"http://127.0.0.1:{12300 + 10 * NUMBER}"
ETCD_PEER = f"http://127.0.0.1:{12301 + 10 * NUMBER}"
MANAGER_PORT = 12302 + 10 * NUMBER
SCHEDULER_PORT = 12303 + 10 * NUMBER

PKI = STATE / "pki"
LOGS = STATE / "logs"
AUDIT = LOGS / "audit.log"
RAN = STATE / "ran"
"""Which modules' scenarios have run on it, a line each."""
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
    return f"198.18.{32 * NUMBER}.{10 + index}"


def pod_subnet(index: int) -> str:
    return f"198.18.{32 * NUMBER + index}.0/24"
