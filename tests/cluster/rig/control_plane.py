"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, on the machine's own network."""

import json
import ssl
import urllib.request
from pathlib import Path

from rig import certificates
from rig.machine import Machine, until
from rig.paths import (
    API,
    AUDIT,
    BRIDGE_ADDRESS,
    ETCD,
    ETCD_PEER,
    KUBECONFIG,
    KUBERNETES_SERVICE,
    LOGS,
    MANAGER_PORT,
    PKI,
    SCHEDULER_PORT,
    SERVICES,
    STATE,
    programs,
)

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    # What service accounts ask for: the chart's rights are compared with it.
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts:tidemark"]},
        # And when somebody took them away for a time, as an uninstallation does.
        {
            "level": "Metadata",
            "verbs": ["create", "delete"],
            "resources": [{"group": "rbac.authorization.k8s.io", "resources": ["rolebindings", "clusterrolebindings"]}],
        },
        {"level": "None"},
    ],
}


class ControlPlane(Machine):
    """Services: etcd, apiserver, controller-manager, scheduler."""

    def __init__(self) -> None:
        super().__init__(STATE / "control-plane")

    def up(self) -> None:
        """Start it, and wait until the API answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        LOGS.mkdir(parents=True, exist_ok=True)
        certificates.make_authority()
        addresses = [BRIDGE_ADDRESS, KUBERNETES_SERVICE, "127.0.0.1"]
        certificates.issue(
            "apiserver", "kube-apiserver", addresses=addresses, names=["kubernetes", "kubernetes.default"]
        )
        certificates.issue("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters")
        certificates.issue("service-accounts", "service-accounts")  # only its key counts: it signs their tokens
        certificates.kubeconfig(KUBECONFIG, "admin", "kubernetes-admin", "system:masters")
        for name in ("controller-manager", "scheduler"):
            certificates.kubeconfig(self.directory / f"{name}.kubeconfig", name, f"system:kube-{name}")
        (self.directory / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        self.start(["unshare", "--pid", "--fork", "--kill-child"], [], self._services(programs()))
        until(f"the API at {API}; see {self.logs}", api_is_ready, 60)

    def _services(self, bin_: Path) -> dict[str, list[str]]:
        here = self.directory
        etcd = [
            *("etcd", f"--data-dir={here}/etcd", f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"),
            *(f"--listen-peer-urls={ETCD_PEER}", f"--initial-advertise-peer-urls={ETCD_PEER}"),
            *(f"--initial-cluster=default={ETCD_PEER}", "--unsafe-no-fsync", "--log-level=warn", "--logger=zap"),
        ]
        apiserver = [
            *(f"{bin_}/kube-apiserver", f"--etcd-servers={ETCD}", f"--bind-address={BRIDGE_ADDRESS}"),
            *(f"--advertise-address={BRIDGE_ADDRESS}", f"--service-cluster-ip-range={SERVICES}"),
            *("--allow-privileged=true", "--authorization-mode=Node,RBAC", "--profiling=false"),
            *("--enable-admission-plugins=NodeRestriction", f"--client-ca-file={PKI}/ca.crt"),
            *(f"--tls-cert-file={PKI}/apiserver.crt", f"--tls-private-key-file={PKI}/apiserver.key"),
            f"--kubelet-certificate-authority={PKI}/ca.crt",
            f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
            f"--kubelet-client-key={PKI}/apiserver-kubelet.key",
            # Nodes have no names that resolve, and webhooks are pods: no service address is reached from here.
            *("--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true"),
            f"--service-account-key-file={PKI}/service-accounts.crt",
            f"--service-account-signing-key-file={PKI}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--audit-policy-file={here}/audit-policy.json",
            *(f"--audit-log-path={AUDIT}", "--audit-log-maxsize=0"),
        ]
        manager = [
            *(f"{bin_}/kube-controller-manager", f"--kubeconfig={here}/controller-manager.kubeconfig"),
            *("--leader-elect=false", "--use-service-account-credentials=true", "--bind-address=127.0.0.1"),
            f"--secure-port={MANAGER_PORT}",
            *(f"--root-ca-file={PKI}/ca.crt", f"--service-account-private-key-file={PKI}/service-accounts.key"),
            # A node that is off is told from one that is slow within 20 seconds, not 50.
            *("--node-monitor-period=2s", "--node-monitor-grace-period=20s", "--profiling=false"),
        ]
        scheduler = [
            *(f"{bin_}/kube-scheduler", f"--kubeconfig={here}/scheduler.kubeconfig", "--leader-elect=false"),
            *("--bind-address=127.0.0.1", f"--secure-port={SCHEDULER_PORT}", "--profiling=false"),
        ]
        return {"etcd": etcd, "apiserver": apiserver, "controller-manager": manager, "scheduler": scheduler}


def api_is_ready() -> bool:
    context = ssl.create_default_context(cafile=str(PKI / "ca.crt"))
    context.load_cert_chain(PKI / "admin.crt", PKI / "admin.key")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"{API}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
