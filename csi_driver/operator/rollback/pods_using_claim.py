"""The pods that use a PVC, and what a person can do about each."""

from collections.abc import Iterable, Mapping
from typing import Any

_SCALED = {"Deployment": "deployment", "StatefulSet": "statefulset", "ReplicaSet": "replicaset"}
_MOST_SHOWN = 3


def pods_using(pods: Iterable[Mapping[str, Any]], pvc: str) -> list[Mapping[str, Any]]:
    """Return the pods that use a PVC of their namespace: those with a node that have not ended. The kubelet sees no others."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName")
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and any(_pvc_of(pod, volume) == pvc for volume in pod["spec"].get("volumes") or ())
    ]


def describe_users(pods: Iterable[Mapping[str, Any]], namespace: str, pvc: str) -> str:
    """Say which pods use the PVC, by pod and controller, and what to do, as one sentence of a bounded length."""
    by_name = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    users, advices = [], []
    for pod in by_name[:_MOST_SHOWN]:
        kind, name = controller_of(pod)
        pod_name = pod["metadata"]["name"]
        users.append(f"pod {pod_name} ({kind} {name})" if kind else f"pod {pod_name}")
        advice = _advice(kind, name, pod_name, namespace)
        if pod["metadata"].get("deletionTimestamp") and not kind:
            advice = f"pod {pod_name} is terminating"
        if advice not in advices:
            advices.append(advice)
    if len(by_name) > _MOST_SHOWN:
        users.append(f"{len(by_name) - _MOST_SHOWN} more")
    return (
        f"PVC {namespace}/{pvc} is in use by {', '.join(users)}: {', '.join(advices)}; "
        "the rollback continues when nothing uses the volume"
    )


def controller_of(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Return kind and name of what would create the pod again; for a ReplicaSet of a Deployment, the Deployment."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            kind, name = str(owner["kind"]), str(owner["name"])
            # A Deployment names its ReplicaSets after itself and this hash: no right to read them is needed.
            suffix = "-" + (pod["metadata"].get("labels") or {}).get("pod-template-hash", "\0")
            if kind == "ReplicaSet" and name.endswith(suffix):
                return "Deployment", name.removesuffix(suffix)
            return kind, name
    return "", ""


def _pvc_of(pod: Mapping[str, Any], volume: Mapping[str, Any]) -> str | None:
    if "persistentVolumeClaim" in volume:
        return str(volume["persistentVolumeClaim"]["claimName"])
    return f"{pod['metadata']['name']}-{volume['name']}" if "ephemeral" in volume else None


def _advice(kind: str, name: str, pod: str, namespace: str) -> str:
    if kind in _SCALED:
        return f"scale it to 0 (kubectl -n {namespace} scale {_SCALED[kind]}/{name} --replicas=0)"
    if kind == "Job":
        return f"wait for Job {name} to end, or suspend it"
    if kind:
        return f"stop {kind} {name}, or scale it to 0"
    return f"delete it (kubectl -n {namespace} delete pod {pod})"
