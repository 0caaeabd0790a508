"""The kinds of objects that the controller reads and writes, as paths of the API. Objects stay plain dictionaries."""

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API: `group` is empty for the core, `plural` is its name in paths."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of objects of this kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of one object, or of the collection if `name` is empty; of all namespaces without one."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Kind("", "v1", "pods")
NODES = Kind("", "v1", "nodes", namespaced=False)
PVCS = Kind("", "v1", "persistentvolumeclaims")
PVS = Kind("", "v1", "persistentvolumes", namespaced=False)
SECRETS = Kind("", "v1", "secrets")
CONFIG_MAPS = Kind("", "v1", "configmaps")
EVENTS = Kind("", "v1", "events")
NAMESPACES = Kind("", "v1", "namespaces", namespaced=False)
LEASES = Kind("coordination.k8s.io", "v1", "leases")
STORAGE_CLASSES = Kind("storage.k8s.io", "v1", "storageclasses", namespaced=False)
CSI_NODES = Kind("storage.k8s.io", "v1", "csinodes", namespaced=False)
MUTATING_WEBHOOKS = Kind("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", namespaced=False)
DAEMON_SETS = Kind("apps", "v1", "daemonsets")
DEPLOYMENTS = Kind("apps", "v1", "deployments")
REPLICA_SETS = Kind("apps", "v1", "replicasets")
STATEFUL_SETS = Kind("apps", "v1", "statefulsets")
JOBS = Kind("batch", "v1", "jobs")
SNAPSHOTS = Kind("snapshot.storage.k8s.io", "v1", "volumesnapshots")
SNAPSHOT_CONTENTS = Kind("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", namespaced=False)
SNAPSHOT_CLASSES = Kind("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", namespaced=False)
GROUP_SNAPSHOTS = Kind("groupsnapshot.storage.k8s.io", "v1", "volumegroupsnapshots")
GROUP_CONTENTS = Kind("groupsnapshot.storage.k8s.io", "v1", "volumegroupsnapshotcontents", namespaced=False)
GROUP_CLASSES = Kind("groupsnapshot.storage.k8s.io", "v1", "volumegroupsnapshotclasses", namespaced=False)
ROLLBACKS = Kind("tidemark.dev", "v1alpha1", "volumerollbacks")
SCHEDULES = Kind("tidemark.dev", "v1alpha1", "snapshotschedules")
