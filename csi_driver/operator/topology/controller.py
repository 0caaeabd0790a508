"""Selects the node of the data source for pending PVCs that the webhook has missed, and explains unschedulable pods."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from csi_driver.domain.errors import DriverError, NotFound, Unavailable
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.routing import owner_of
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.informer import Informer
from csi_driver.kube.quantity import parse_quantity
from csi_driver.kube.resources import PVCS, STORAGE_CLASSES, Kind
from csi_driver.operator.agents.node_lookup import node_for_owner
from csi_driver.operator.certificates.controller import EventRecorder
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.data_source import DataSourceResolver, SourceLocation, data_source_of
from csi_driver.operator.topology.planner import (
    AgentUnreachable,
    Attempts,
    EmitEvent,
    NodeState,
    PendingClaim,
    QueryCapacity,
    SelectNode,
    backoff,
    next_action,
)
from csi_driver.operator.topology.scheduling_events import NodeBoundClaim, UnscheduledPod, events_for
from csi_driver.operator.trim import trim_metadata
from csi_driver.service.agents import AgentCapacity

PERIOD_SECONDS = 2.0
"""Between two reconciliations of all pending PVCs and pods."""

MAX_SEARCH_BACKOFF_SECONDS = 15.0
"""Between two searches for a data source that has no place yet."""

REPEAT_EVENT_SECONDS = 300.0
"""Before the same event on the same object is repeated."""

CHANGED_EVENT_SECONDS = 30.0
"""Before an event with another message: numbers in messages change all the time."""

MAX_CONCURRENT = 8
"""PVCs that are reconciled together: an agent that does not answer must not delay the PVCs of others."""

log = structlog.get_logger()


@dataclass(slots=True)
class _ClaimState:
    """What is remembered of one PVC while it is pending."""

    location: SourceLocation | None = None
    attempts: Attempts = field(default_factory=Attempts)
    searches: int = 0
    search_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Informers:
    """PVCs and pods trimmed as below, nodes and PVs as agents/discovery.py trims them."""

    pvcs: Informer
    pods: Informer
    nodes: Informer
    pvs: Informer
    storage_classes: Informer


class TopologyController:
    """The leader runs it. PVCs of other drivers, and of classes that bind immediately, are left alone."""

    def __init__(
        self,
        api: Api,
        informers: Informers,
        capacities: AgentCapacity,
        events: EventRecorder,
        driver: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._informers = informers
        self._capacities = capacities
        self._events = events
        self._driver = driver
        self._sources = DataSourceResolver(self._get, driver)
        self._clock = clock
        self._now = now
        self._states: dict[str, _ClaimState] = {}
        self._emitted: dict[tuple[str, str], tuple[str, float]] = {}
        self._queries: dict[tuple[object, ...], asyncio.Task[int | AgentUnreachable]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def run(self) -> None:
        """Reconcile every two seconds, until cancelled."""
        informers = self._informers
        for informer in (informers.pvcs, informers.pods, informers.nodes, informers.pvs, informers.storage_classes):
            await informer.wait_synced()
        while True:
            await self.reconcile()
            await asyncio.sleep(PERIOD_SECONDS)

    async def reconcile(self) -> None:
        """Process all pending PVCs with a data source and all pods without a node, once."""
        pending = [pvc for pvc in self._informers.pvcs.all() if _is_pending(pvc)]
        uids = {pvc["metadata"]["uid"] for pvc in pending}
        self._states = {uid: state for uid, state in self._states.items() if uid in uids}
        await asyncio.gather(*(self._try_pvc(pvc) for pvc in pending))
        for pod in self._informers.pods.all():
            await self._reconcile_pod(pod)
        oldest = self._clock() - REPEAT_EVENT_SECONDS
        self._emitted = {key: (message, at) for key, (message, at) in self._emitted.items() if at > oldest}
        self._queries.clear()

    # ---- PVCs

    async def _try_pvc(self, pvc: Object) -> None:
        async with self._slots:
            try:
                await self._reconcile_pvc(pvc)
            except DriverError as error:
                metadata = pvc["metadata"]
                log.warning(
                    "PVC reconcile failed, retrying",
                    namespace=metadata["namespace"],
                    pvc=metadata["name"],
                    why=str(error),
                )

    async def _reconcile_pvc(self, pvc: Object) -> None:
        state = self._states.setdefault(pvc["metadata"]["uid"], _ClaimState())
        storage_class = await self._sources.storage_class(pvc)
        if storage_class is None or (location := await self._locate(pvc, state)) is None:
            return
        parameters = {str(key): str(value) for key, value in (storage_class.get("parameters") or {}).items()}
        requests = (pvc["spec"].get("resources") or {}).get("requests") or {}
        pending = PendingClaim(
            source=str(data_source_of(pvc)),
            owner=location.owner,
            source_node=self._node_state(location.owner),
            selected_node=(pvc["metadata"].get("annotations") or {}).get(SELECTED_NODE),
            requested=parse_quantity(requests.get("storage")) or 0,
            capacity=None,
        )
        action = next_action(pending, state.attempts, self._clock())
        if isinstance(action, QueryCapacity):
            pending = replace(pending, capacity=await self._capacity(location, parameters))
            action = next_action(pending, state.attempts, self._clock())
        match action:
            case SelectNode(node):
                state.attempts = Attempts(state.attempts.count + 1, self._clock())
                await self._select_node(pvc, node, pending.selected_node)
            case EmitEvent(reason, message):
                await self._emit(pvc, reason, message)

    async def _locate(self, pvc: Object, state: _ClaimState) -> SourceLocation | None:
        """Return where the data source is. Once known it stays: snapshots and volumes never move."""
        if state.location is None and self._clock() >= state.search_at:
            source = data_source_of(pvc)
            location = await self._sources.find(source, pvc["metadata"]["namespace"]) if source is not None else None
            if location is not None and location.pool and location.owner != ANY_OWNER:
                state.location = location
            else:
                state.searches += 1
                state.search_at = self._clock() + backoff(state.searches, MAX_SEARCH_BACKOFF_SECONDS)
        return state.location

    async def _capacity(self, location: SourceLocation, parameters: dict[str, str]) -> int | AgentUnreachable:
        """Query the agent, once for all PVCs of one reconciliation that are alike."""
        key = (location, *sorted(parameters.items()))
        if key not in self._queries:
            self._queries[key] = asyncio.create_task(self._query_agent(location, parameters))
        return await self._queries[key]

    async def _query_agent(self, location: SourceLocation, parameters: dict[str, str]) -> int | AgentUnreachable:
        try:
            return await self._capacities.available_capacity(location.owner, location.pool, parameters)
        except Unavailable:
            return AgentUnreachable()

    async def _select_node(self, pvc: Object, node: str, before: str | None) -> None:
        metadata = pvc["metadata"]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": {SELECTED_NODE: node}}}
        try:
            await self._api.patch(PVCS, metadata["name"], patch, metadata["namespace"])
        except (Conflict, NotFound) as error:
            log.info("PVC has changed", namespace=metadata["namespace"], pvc=metadata["name"], why=str(error))
        else:
            log.info(
                "set selected-node on PVC",
                namespace=metadata["namespace"],
                pvc=metadata["name"],
                node=node,
                before=before,
            )

    # ---- pods

    async def _reconcile_pod(self, pod: Object) -> None:
        namespace = pod["metadata"]["namespace"]
        cached = [self._informers.pvcs.get(name, namespace) for name in pod["pvcs"]]
        pvcs = {pvc["metadata"]["name"]: pvc for pvc in cached if pvc is not None}
        bound = [on_node for pvc in pvcs.values() if (on_node := self._bound_to_node(pvc)) is not None]
        since = datetime.fromisoformat(pod["since"]) if pod["since"] else None
        unscheduled = UnscheduledPod(pod["metadata"]["name"], pod["scheduler_message"], since)
        for event in events_for(unscheduled, bound, self._now()):
            await self._emit(pvcs[event.pvc] if event.pvc else pod, event.reason, event.message)

    def _bound_to_node(self, pvc: Object) -> NodeBoundClaim | None:
        owner = None
        if pv := self._informers.pvs.get(pvc["spec"].get("volumeName") or ""):
            owner = owner_of(pv["handle"]) if pv["driver"] == self._driver else None
        elif (state := self._states.get(pvc["metadata"]["uid"])) is not None and state.location is not None:
            owner = state.location.owner
        if owner is None or owner == ANY_OWNER:
            return None
        source = data_source_of(pvc)
        node = self._node_state(owner) or NodeState(owner, ready=False)
        return NodeBoundClaim(pvc["metadata"]["name"], node, str(source) if source is not None else "")

    # ---- both

    def _node_state(self, owner: str) -> NodeState | None:
        node = node_for_owner(self._informers.nodes, owner)
        return NodeState(node["metadata"]["name"], node["ready"], node["cordoned"]) if node is not None else None

    async def _emit(self, obj: Object, reason: str, message: str) -> None:
        key, now = (obj["metadata"]["uid"], reason), self._clock()
        last_message, at = self._emitted.get(key, ("", float("-inf")))
        if now - at >= (REPEAT_EVENT_SECONDS if message == last_message else CHANGED_EVENT_SECONDS):
            self._emitted[key] = (message, now)
            await self._events.emit(obj, "Warning", reason, message)

    async def _get(self, kind: Kind, name: str, namespace: str) -> Object | None:
        """Read storage classes from their informer, which caches them whole; all else from the API."""
        if kind == STORAGE_CLASSES:
            return self._informers.storage_classes.get(name)
        return await self._api.get(kind, name, namespace)


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


def _trim(obj: Object) -> Object:
    return {"apiVersion": obj.get("apiVersion", ""), "kind": obj.get("kind", ""), "metadata": trim_metadata(obj)}


def _is_pending(pvc: Object) -> bool:
    return bool(pvc["pending"]) and "volumeName" not in pvc["spec"] and data_source_of(pvc) is not None
