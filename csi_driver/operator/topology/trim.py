"""What the informers of the topology controller keep of PVCs and of pods without a node."""

from csi_driver.kube.client import Object
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.data_source import data_source_of
from csi_driver.operator.trim import trim_metadata

_PVC_SPEC = ("dataSource", "dataSourceRef", "storageClassName", "volumeName", "resources")


def trim_pvc(pvc: Object) -> Object:
    """Return what is read of a PVC."""
    metadata, spec = pvc["metadata"], pvc.get("spec") or {}
    selected = (metadata.get("annotations") or {}).get(SELECTED_NODE)
    trimmed = _trim(pvc)
    if selected:
        trimmed["metadata"]["annotations"] = {SELECTED_NODE: selected}
    return {
        **trimmed,
        "spec": {key: spec[key] for key in _PVC_SPEC if spec.get(key)},
        "pending": (pvc.get("status") or {}).get("phase") == "Pending" and "deletionTimestamp" not in metadata,
    }


def trim_unscheduled_pod(pod: Object) -> Object:
    """Return what is read of a pod without a node."""
    volumes = (pod.get("spec") or {}).get("volumes") or []
    name = pod["metadata"]["name"]
    pvcs = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
    pvcs += [f"{name}-{volume['name']}" for volume in volumes if "ephemeral" in volume]
    conditions = (pod.get("status") or {}).get("conditions") or []
    scheduled: Object = next((condition for condition in conditions if condition.get("type") == "PodScheduled"), {})
    unschedulable = scheduled.get("reason") == "Unschedulable"
    return {
        **_trim(pod),
        "pvcs": pvcs,
        "scheduler_message": scheduled.get("message") or "" if unschedulable else "",
        "since": scheduled.get("lastTransitionTime") or "" if unschedulable else "",
    }


def is_pending(pvc: Object) -> bool:
    """Whether a trimmed PVC waits for a volume that is made of a data source."""
    return bool(pvc["pending"]) and "volumeName" not in pvc["spec"] and data_source_of(pvc) is not None


def without_version(obj: Object) -> Object:
    """Return a trimmed object without its resourceVersion: many writes change nothing that is read here."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return {**obj, "metadata": metadata}


def _trim(obj: Object) -> Object:
    return {"apiVersion": obj.get("apiVersion", ""), "kind": obj.get("kind", ""), "metadata": trim_metadata(obj)}
