"""The reconciler of one pod without a node: says why its PVCs keep it from running."""

from collections.abc import Callable
from datetime import datetime

from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.routing import owner_of
from csi_driver.kube.client import Object
from csi_driver.kube.workqueue import Result
from csi_driver.operator.topology.data_source import data_source_of
from csi_driver.operator.topology.event_limiter import EventLimiter
from csi_driver.operator.topology.observe import RESYNC_SECONDS, Informers, Key, PvcStates
from csi_driver.operator.topology.planner import NodeState
from csi_driver.operator.topology.scheduling_events import NodeBoundClaim, UnscheduledPod, events_for, grace_left

MISSING_PV_SECONDS = 2.0
"""Until the next reconciliation of a pod with a bound PVC whose PersistentVolume its informer has not shown yet."""


class PodReconciler:
    """Emits events only, on the pod and on its PVCs. `now` is the wall clock, which the scheduler's times are compared with."""

    def __init__(
        self, informers: Informers, events: EventLimiter, states: PvcStates, driver: str, now: Callable[[], datetime]
    ) -> None:
        self._informers = informers
        self._events = events
        self._states = states
        self._driver = driver
        self._now = now

    async def reconcile(self, key: Key) -> Result:
        """Emit the events that are due for one pod."""
        namespace, name = key
        pod = self._informers.pods.get(name, namespace)
        if pod is None:
            return Result()
        cached = [self._informers.pvcs.get(pvc, namespace) for pvc in pod["pvcs"]]
        pvcs = {pvc["metadata"]["name"]: pvc for pvc in cached if pvc is not None}
        bound = [on_node for pvc in pvcs.values() if (on_node := self._bound_to_node(pvc)) is not None]
        since = datetime.fromisoformat(pod["since"]) if pod["since"] else None
        unscheduled, now = UnscheduledPod(name, pod["scheduler_message"], since), self._now()
        waits = [RESYNC_SECONDS, grace_left(unscheduled, now)] if bound else []
        for event in events_for(unscheduled, bound, now):
            waits.append(await self._events.emit(pvcs[event.pvc] if event.pvc else pod, event.reason, event.message))
        if any(self._lacks_pv(pvc) for pvc in pvcs.values()):
            waits.append(MISSING_PV_SECONDS)
        return Result(min((wait for wait in waits if wait > 0), default=None))

    def _bound_to_node(self, pvc: Object) -> NodeBoundClaim | None:
        owner = None
        if pv := self._informers.pvs.get(pvc["spec"].get("volumeName") or ""):
            owner = owner_of(pv["handle"]) if pv["driver"] == self._driver else None
        else:
            metadata = pvc["metadata"]
            location = self._states.location((metadata["namespace"], metadata["name"]), metadata["uid"])
            owner = location.owner if location is not None else None
        if owner is None or owner == ANY_OWNER:
            return None
        source = data_source_of(pvc)
        node = self._informers.node_state(owner) or NodeState(owner, ready=False)
        return NodeBoundClaim(pvc["metadata"]["name"], node, str(source) if source is not None else "")

    def _lacks_pv(self, pvc: Object) -> bool:
        volume_name = pvc["spec"].get("volumeName")
        return bool(volume_name) and self._informers.pvs.get(volume_name) is None
