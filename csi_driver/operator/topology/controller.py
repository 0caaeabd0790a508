"""Leads waiting claims to the node of their source where the webhook did not, and tells why a pod cannot follow."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from csi_driver.domain.errors import DriverError, NotFound, Unavailable
from csi_driver.domain.routing import owner_of
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.informer import Informer
from csi_driver.kube.quantity import whole
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
    decide,
)
from csi_driver.operator.topology.scheduling_events import NodeBoundClaim, UnscheduledPod, events_for
from csi_driver.service.agents import AgentCapacity

LOOK_SECONDS = 2.0
"""Between two looks at what waits."""

LONGEST_SEARCH = 15.0
"""Seconds between two searches for a source that lies nowhere yet."""

TELL_SECONDS = 300.0
"""Before the same is told of the same object again."""

CHANGE_SECONDS = 30.0
"""Before the same is told in other words: figures in them change all the time."""

AT_ONCE = 8
"""Claims that are looked at together: a silent agent must not hold up the claims of others."""

log = structlog.get_logger()


@dataclass(slots=True)
class _ClaimState:
    """What is remembered of one claim while it waits."""

    spot: SourceLocation | None = None
    tries: Attempts = field(default_factory=Attempts)
    searches: int = 0
    search_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Informers:
    """Mirrors of what is looked at: claims and pods without a node as below, nodes and volumes as discovery keeps them."""

    claims: Informer
    pods: Informer
    nodes: Informer
    volumes: Informer
    classes: Informer


class TopologyController:
    """One leader runs it. Claims of other drivers, and of classes that bind at once, are left alone."""

    def __init__(
        self,
        api: Api,
        copies: Informers,
        agents: AgentCapacity,
        events: EventRecorder,
        driver: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._copies = copies
        self._agents = agents
        self._events = events
        self._driver = driver
        self._sources = DataSourceResolver(self._get, driver)
        self._clock = clock
        self._now = now
        self._known: dict[str, _ClaimState] = {}
        self._told: dict[tuple[str, str], tuple[str, float]] = {}
        self._asked: dict[tuple[object, ...], asyncio.Task[int | AgentUnreachable]] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        copies = self._copies
        for mirror in (copies.claims, copies.pods, copies.nodes, copies.volumes, copies.classes):
            await mirror.wait_synced()
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Once over all claims and pods that wait."""
        waiting = [claim for claim in self._copies.claims.all() if _waits(claim)]
        uids = {claim["metadata"]["uid"] for claim in waiting}
        self._known = {uid: known for uid, known in self._known.items() if uid in uids}
        await asyncio.gather(*(self._try(claim) for claim in waiting))
        for pod in self._copies.pods.all():
            await self._look_at_pod(pod)
        old = self._clock() - TELL_SECONDS
        self._told = {key: (words, at) for key, (words, at) in self._told.items() if at > old}
        self._asked.clear()

    # ---- claims

    async def _try(self, claim: Object) -> None:
        async with self._few:
            try:
                await self._look_at_claim(claim)
            except DriverError as error:
                metadata = claim["metadata"]
                log.warning("claim is not led", namespace=metadata["namespace"], claim=metadata["name"], why=str(error))

    async def _look_at_claim(self, claim: Object) -> None:
        known = self._known.setdefault(claim["metadata"]["uid"], _ClaimState())
        storage_class = await self._sources.storage_class(claim)
        if storage_class is None or (spot := await self._spot(claim, known)) is None:
            return
        parameters = {str(key): str(value) for key, value in (storage_class.get("parameters") or {}).items()}
        spec = claim["spec"]
        waiting = PendingClaim(
            source=str(data_source_of(claim)),
            owner=spot.owner,
            site=self._site(spot.owner),
            selected=(claim["metadata"].get("annotations") or {}).get(SELECTED_NODE),
            wanted=whole(((spec.get("resources") or {}).get("requests") or {}).get("storage")) or 0,
            room=None,
        )
        verdict = decide(waiting, known.tries, self._clock())
        if isinstance(verdict, QueryCapacity):
            waiting = replace(waiting, room=await self._room(spot, parameters))
            verdict = decide(waiting, known.tries, self._clock())
        match verdict:
            case SelectNode(node):
                known.tries = Attempts(known.tries.pins + 1, self._clock())
                await self._pin(claim, node, waiting.selected)
            case EmitEvent(reason, words):
                await self._tell(claim, reason, words)

    async def _spot(self, claim: Object, known: _ClaimState) -> SourceLocation | None:
        """Where its source lies. Once known it stays: a snapshot and a disk never move."""
        if known.spot is None and self._clock() >= known.search_at:
            source = data_source_of(claim)
            found = await self._sources.find(source, claim["metadata"]["namespace"]) if source is not None else None
            if found is not None and found.pool and found.owner != "*":
                known.spot = found
            else:
                known.searches += 1
                known.search_at = self._clock() + backoff(known.searches, LONGEST_SEARCH)
        return known.spot

    async def _room(self, spot: SourceLocation, parameters: dict[str, str]) -> int | AgentUnreachable:
        """Asked once for all claims of one look that are alike."""
        key = (spot, *sorted(parameters.items()))
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._ask(spot, parameters))
        return await self._asked[key]

    async def _ask(self, spot: SourceLocation, parameters: dict[str, str]) -> int | AgentUnreachable:
        try:
            return await self._agents.available_capacity(spot.owner, spot.pool, parameters)
        except Unavailable:
            return AgentUnreachable()

    async def _pin(self, claim: Object, node: str, before: str | None) -> None:
        metadata = claim["metadata"]
        note = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": {SELECTED_NODE: node}}}
        try:
            await self._api.patch(PVCS, metadata["name"], note, metadata["namespace"])
        except (Conflict, NotFound) as error:
            log.info("claim has changed", namespace=metadata["namespace"], claim=metadata["name"], why=str(error))
        else:
            log.info("claim is led", namespace=metadata["namespace"], claim=metadata["name"], node=node, before=before)

    # ---- pods

    async def _look_at_pod(self, pod: Object) -> None:
        namespace = pod["metadata"]["namespace"]
        found = [self._copies.claims.get(name, namespace) for name in pod["claims"]]
        claims = {claim["metadata"]["name"]: claim for claim in found if claim is not None}
        anchors = [anchor for claim in claims.values() if (anchor := self._anchor(claim)) is not None]
        since = datetime.fromisoformat(pod["since"]) if pod["since"] else None
        for notice in events_for(UnscheduledPod(pod["metadata"]["name"], pod["says"], since), anchors, self._now()):
            await self._tell(claims[notice.claim] if notice.claim else pod, notice.reason, notice.words)

    def _anchor(self, claim: Object) -> NodeBoundClaim | None:
        owner = None
        if volume := self._copies.volumes.get(claim["spec"].get("volumeName") or ""):
            owner = owner_of(volume["handle"]) if volume["driver"] == self._driver else None
        elif (known := self._known.get(claim["metadata"]["uid"])) is not None and known.spot is not None:
            owner = known.spot.owner
        if owner is None or owner == "*":
            return None
        source = data_source_of(claim)
        site = self._site(owner) or NodeState(owner, ready=False)
        return NodeBoundClaim(claim["metadata"]["name"], site, str(source) if source is not None else "")

    # ---- both

    def _site(self, owner: str) -> NodeState | None:
        node = node_for_owner(self._copies.nodes, owner)
        return NodeState(node["metadata"]["name"], node["ready"], node["cordoned"]) if node is not None else None

    async def _tell(self, obj: Object, reason: str, words: str) -> None:
        key, now = (obj["metadata"]["uid"], reason), self._clock()
        before, at = self._told.get(key, ("", float("-inf")))
        if now - at >= (TELL_SECONDS if words == before else CHANGE_SECONDS):
            self._told[key] = (words, now)
            await self._events.emit(obj, "Warning", reason, words)

    async def _get(self, kind: Kind, name: str, namespace: str) -> Object | None:
        """From a copy where there is one that keeps the whole of it; else from the API."""
        if kind == STORAGE_CLASSES:
            return self._copies.classes.get(name)
        return await self._api.get(kind, name, namespace)


def keep_claim(claim: Object) -> Object:
    """What is read of a claim."""
    metadata, spec = claim["metadata"], claim.get("spec") or {}
    selected = (metadata.get("annotations") or {}).get(SELECTED_NODE)
    wanted = ("dataSource", "dataSourceRef", "storageClassName", "volumeName", "resources")
    return {
        **_identity(claim),
        "metadata": _identity(claim)["metadata"] | ({"annotations": {SELECTED_NODE: selected}} if selected else {}),
        "spec": {key: spec[key] for key in wanted if spec.get(key)},
        "waits": (claim.get("status") or {}).get("phase") == "Pending" and "deletionTimestamp" not in metadata,
    }


def trim_unscheduled_pod(pod: Object) -> Object:
    """What is read of a pod without a node."""
    volumes = (pod.get("spec") or {}).get("volumes") or []
    name = pod["metadata"]["name"]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
    claims += [f"{name}-{one['name']}" for one in volumes if "ephemeral" in one]
    conditions = (pod.get("status") or {}).get("conditions") or []
    told: Object = next((one for one in conditions if one.get("type") == "PodScheduled"), {})
    refused = told.get("reason") == "Unschedulable"
    return {
        **_identity(pod),
        "claims": claims,
        "says": told.get("message") or "" if refused else "",
        "since": told.get("lastTransitionTime") or "" if refused else "",
    }


def _identity(obj: Object) -> Object:
    wanted = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: obj["metadata"][key] for key in wanted if key in obj["metadata"]}
    return {"apiVersion": obj.get("apiVersion", ""), "kind": obj.get("kind", ""), "metadata": metadata}


def _waits(claim: Object) -> bool:
    return bool(claim["waits"]) and "volumeName" not in claim["spec"] and data_source_of(claim) is not None
