"""Which pods keep a claim in use, and what a person does about each."""

from collections.abc import Iterable, Mapping
from typing import Any

_SCALED = {"Deployment": "deployment", "StatefulSet": "statefulset", "ReplicaSet": "replicaset"}
_SHOWN = 3


def pods_using(pods: Iterable[Mapping[str, Any]], claim: str) -> list[Mapping[str, Any]]:
    """The pods that use a claim of their namespace: those with a node that have not ended. The kubelet sees no others."""
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName")
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and any(_claim_of(pod, volume) == claim for volume in pod["spec"].get("volumes") or ())
    ]


def describe_users(pods: Iterable[Mapping[str, Any]], namespace: str, claim: str) -> str:
    """Who uses the claim, by pod and controller, and what to do, as one sentence of a bounded length."""
    found = sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
    named, to_do = [], []
    for pod in found[:_SHOWN]:
        kind, name = controller(pod)
        pod_name = pod["metadata"]["name"]
        named.append(f"pod {pod_name} ({kind} {name})" if kind else f"pod {pod_name}")
        advice = _advice(kind, name, pod_name, namespace)
        if pod["metadata"].get("deletionTimestamp") and not kind:
            advice = f"pod {pod_name} is ending already"
        if advice not in to_do:
            to_do.append(advice)
    if len(found) > _SHOWN:
        named.append(f"{len(found) - _SHOWN} more")
    return (
        f"claim {namespace}/{claim} is in use by {', '.join(named)}: {', '.join(to_do)}; "
        "the rollback goes on by itself when nobody uses the disk"
    )


def controller(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and name of what would bring the pod back; a ReplicaSet of a Deployment is told by the Deployment."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            kind, name = str(owner["kind"]), str(owner["name"])
            # A Deployment names its ReplicaSets after itself and this hash: no right to read them is needed.
            suffix = "-" + (pod["metadata"].get("labels") or {}).get("pod-template-hash", "\0")
            if kind == "ReplicaSet" and name.endswith(suffix):
                return "Deployment", name.removesuffix(suffix)
            return kind, name
    return "", ""


def _claim_of(pod: Mapping[str, Any], volume: Mapping[str, Any]) -> str | None:
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
