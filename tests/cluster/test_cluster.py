"""The cluster itself, before anything is asked of Tidemark: pods run, and reach each other as on any cluster."""

import urllib.request

from rig.cluster import Cluster
from rig.kubectl import Kubectl
from rig.objects import pod


def test_pods_run_on_every_node_and_reach_each_other(cluster: Cluster, kubectl: Kubectl) -> None:
    serve = "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www"
    names = [node.name for node in cluster.nodes]
    pods = [pod(f"on-{name}", node=name, script=serve) for name in names]
    for each in pods:
        # Else a pod is ready before its server listens.
        each["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    port = {"port": 80, "targetPort": 8080}
    service = {"selector": {"app": f"on-{names[0]}"}, "ports": [port]}
    kubectl.apply(
        *pods,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "first"}, "spec": service},
    )
    kubectl.ready(*(f"on-{name}" for name in names))
    address = kubectl.get("service", "first")["spec"]["clusterIP"]
    for name in names:
        # Debian's static wget crashes (1.35), so this is one by hand. Until a node's kube-proxy has heard of the pod, it refuses.
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 80"
        output = kubectl.sh(f"on-{name}", f"until {ask}; do sleep 0.2; done")
        assert output.endswith("hello"), output
    # As the API server reaches a webhook: by the pod's own address, from the machine's network.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name in names:
        status = kubectl.get("pod", f"on-{name}")["status"]
        assert status["hostIP"] == cluster.node(name).address
        with direct.open(f"http://{status['podIP']}:8080", timeout=10) as answer:
            assert answer.read() == b"hello\n"
