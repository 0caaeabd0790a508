"""The reconciler of one pending PVC with a data source: observe, plan, execute."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from csi_driver.domain.errors import NotFound
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.quantity import parse_quantity
from csi_driver.kube.resources import PVCS, STORAGE_CLASSES, Kind
from csi_driver.kube.workqueue import Result
from csi_driver.operator.installation import SELECTED_NODE
from csi_driver.operator.topology.capacity_cache import CapacityAnswer, CapacityCache
from csi_driver.operator.topology.data_source import DataSourceResolver, SourceLocation, data_source_of
from csi_driver.operator.topology.event_limiter import EventLimiter
from csi_driver.operator.topology.observe import RESYNC_SECONDS, Informers, Key, PvcState, PvcStates
from csi_driver.operator.topology.planner import (
    Action,
    Attempts,
    EmitEvent,
    NoAction,
    PendingClaim,
    QueryCapacity,
    SelectNode,
    backoff,
    next_action,
)
from csi_driver.operator.topology.trim import is_pending

MAX_SEARCH_BACKOFF_SECONDS = 15.0
"""Between two searches for a data source that has no place yet."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PvcDependencies:
    """What the reconciler works with. `on_located` is called when the place of a PVC's data source becomes known."""

    api: Api
    informers: Informers
    capacities: CapacityCache
    events: EventLimiter
    states: PvcStates
    driver: str
    clock: Callable[[], float]
    on_located: Callable[[Key], None]


class PvcReconciler:
    """Leaves PVCs of other drivers alone, and those of classes that bind immediately."""

    def __init__(self, dependencies: PvcDependencies) -> None:
        self._with = dependencies
        self._clock = dependencies.clock
        self._sources = DataSourceResolver(self._get, dependencies.driver)

    async def reconcile(self, key: Key) -> Result:
        """Select the node of the data source, or say why it cannot be selected. Raises the errors of the API."""
        namespace, name = key
        pvc = self._with.informers.pvcs.get(name, namespace)
        if pvc is None or not is_pending(pvc):
            self._with.states.forget(key)
            return Result()
        storage_class = await self._sources.storage_class(pvc)
        if storage_class is None:
            return Result()
        state = self._with.states.of(key, pvc["metadata"]["uid"])
        if state.location is None and (wait := await self._search(key, pvc, state)) is not None:
            return Result(wait)
        assert state.location is not None
        action, answer = await self._plan(pvc, storage_class, state.location, state.attempts)
        seconds = await self._execute(action, pvc, state)
        if isinstance(action, EmitEvent) and answer is not None:
            seconds = min(seconds, answer.expires - self._clock())
        return Result(max(0.0, min(seconds, RESYNC_SECONDS)))

    async def _search(self, key: Key, pvc: Object, state: PvcState) -> float | None:
        """Find out where the data source is, or return the seconds until the next search. It stays: volumes never move."""
        if self._clock() < state.search_at:
            return state.search_at - self._clock()
        source = data_source_of(pvc)
        location = await self._sources.find(source, pvc["metadata"]["namespace"]) if source is not None else None
        if location is not None and location.pool and location.owner != ANY_OWNER:
            state.location = location
            self._with.on_located(key)
            return None
        state.searches += 1
        wait = backoff(state.searches, MAX_SEARCH_BACKOFF_SECONDS)
        state.search_at = self._clock() + wait
        return wait

    async def _plan(
        self, pvc: Object, storage_class: Object, location: SourceLocation, attempts: Attempts
    ) -> tuple[Action, CapacityAnswer | None]:
        """Plan by what the informers show, and ask the agent only if the plan depends on its capacity."""
        observed = self._observe(pvc, location)
        action = next_action(observed, attempts, self._clock())
        if not isinstance(action, QueryCapacity):
            return action, None
        parameters = {str(key): str(value) for key, value in (storage_class.get("parameters") or {}).items()}
        answer = await self._with.capacities.query(location, parameters)
        return next_action(replace(observed, capacity=answer.capacity), attempts, self._clock()), answer

    def _observe(self, pvc: Object, location: SourceLocation) -> PendingClaim:
        requests = (pvc["spec"].get("resources") or {}).get("requests") or {}
        return PendingClaim(
            source=str(data_source_of(pvc)),
            owner=location.owner,
            source_node=self._with.informers.node_state(location.owner),
            selected_node=(pvc["metadata"].get("annotations") or {}).get(SELECTED_NODE),
            requested=parse_quantity(requests.get("storage")) or 0,
            capacity=None,
        )

    async def _execute(self, action: Action, pvc: Object, state: PvcState) -> float:
        """Act, and return the seconds until there may be something to do that no change announces."""
        match action:
            case SelectNode(node):
                state.attempts = Attempts(state.attempts.count + 1, self._clock())
                await self._select_node(pvc, node)
                return state.attempts.next - self._clock()
            case EmitEvent(reason, message):
                return await self._with.events.emit(pvc, reason, message)
            case NoAction(again_at) if again_at is not None:
                return again_at - self._clock()
        return RESYNC_SECONDS

    async def _select_node(self, pvc: Object, node: str) -> None:
        metadata = pvc["metadata"]
        names = {"namespace": metadata["namespace"], "pvc": metadata["name"]}
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": {SELECTED_NODE: node}}}
        try:
            await self._with.api.patch(PVCS, metadata["name"], patch, metadata["namespace"])
        except (Conflict, NotFound) as error:
            log.info("PVC has changed", **names, why=str(error))
        else:
            before = (metadata.get("annotations") or {}).get(SELECTED_NODE)
            log.info("set selected-node on PVC", **names, node=node, before=before)

    async def _get(self, kind: Kind, name: str, namespace: str) -> Object | None:
        """Read storage classes from their informer, which caches them whole; all else from the API."""
        if kind == STORAGE_CLASSES:
            return self._with.informers.storage_classes.get(name)
        return await self._with.api.get(kind, name, namespace)
