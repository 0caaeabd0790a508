"""A Kubernetes API in memory, over HTTP: as much of its behaviour as the controller relies on, and faults on demand.

    async with FakeApi() as fake:
        api = await fake.connect()
        fake.put(NODES, {"metadata": {"name": "n1"}})

Not a cluster: nothing schedules, binds, collects garbage or defaults. Selectors and patches: fake_documents.py.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from csi_driver.kube import resources as kinds
from csi_driver.kube.client import Api
from csi_driver.kube.resources import Kind
from support.fake_documents import apply_merge_patch, matches

Object = dict[str, Any]
ALL_KINDS = [value for value in vars(kinds).values() if isinstance(value, Kind)]
CUSTOM = ("snapshot.storage.k8s.io", "groupsnapshot.storage.k8s.io", "tidemark.dev")
WITH_STATUS = {
    kind for kind in ALL_KINDS if kind.group in CUSTOM or kind in {kinds.PODS, kinds.NODES, kinds.PVCS, kinds.PVS}
}


@dataclass
class Call:
    """One request as it came; `verb` as in RBAC: get list watch create update patch delete."""

    verb: str
    kind: Kind
    namespace: str
    name: str
    subresource: str
    query: dict[str, str]
    body: Any = None


class Fault(Exception):
    """What a hook raises to refuse a call."""

    def __init__(self, status: int, reason: str = "", message: str = "") -> None:
        super().__init__(message or reason)
        self.status, self.reason = status, reason


Hook = Callable[[Call], Awaitable[None] | None]


@dataclass
class _Change:
    version: int
    kind: Kind
    old: Object | None
    new: Object | None


@dataclass
class _Watcher:
    kind: Kind
    queue: asyncio.Queue[_Change | str] = field(default_factory=asyncio.Queue)


class FakeApi:
    """`calls` is the log of requests; `hooks` see each before it is served and may raise Fault, or wait."""

    def __init__(self, unserved: Iterable[Kind] = ()) -> None:
        self.calls: list[Call] = []
        self.hooks: list[Hook] = []
        self.unserved: set[Kind] = set(unserved)
        self.silent = False
        """Watches stay open and say nothing any more, as after a power cut of the API server's machine."""
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = {kind: {} for kind in ALL_KINDS}
        self._history: list[_Change] = []
        self._forgotten = 0
        self._watchers: list[_Watcher] = []
        self._version = itertools.count(101)
        self._last = 100
        self._clients: list[Api] = []

    async def __aenter__(self) -> FakeApi:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for client in self._clients:
            await client.close()
        self.cut_watches()
        await self._runner.cleanup()

    async def listen(self, port: int = 0) -> None:
        """Begin to take connections; `port` as before, to come back after `deaf`."""
        self._site = web.TCPSite(self._runner, "127.0.0.1", port)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def deaf(self) -> None:
        """Take no new connections, and end those that watch."""
        await self._site.stop()
        self.cut_watches()

    def kubeconfig(self, path: Path, user: Object | None = None) -> str:
        """Write a kubeconfig that leads here, with a token or what else `user` says."""
        cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "fake"}}
        named = {"name": "fake", "user": user or {"token": "of-a-test"}}
        path.write_text(
            json.dumps({"clusters": [cluster], "contexts": [context], "users": [named], "current-context": "fake"})
        )
        return str(path)

    async def connect(self) -> Api:
        """A client of this API; closed with it."""
        from kubernetes.aio.client.configuration import Configuration

        made = Api(Configuration(host=f"http://127.0.0.1:{self.port}"))
        self._clients.append(made)
        return made

    # ---- what a test says and sees, past HTTP and hooks

    def put(self, kind: Kind, body: Object, namespace: str = "") -> Object:
        """Make or replace an object whole, its status too."""
        body = copy.deepcopy(body)
        if kind.namespaced:
            body["metadata"].setdefault("namespace", namespace or "default")
        old = self._objects[kind].get(_key(body))
        for key in ("uid", "creationTimestamp"):
            if old:
                body["metadata"].setdefault(key, old["metadata"][key])
        return self._store(kind, old, body)

    def change(self, kind: Kind, name: str, patch: Object, namespace: str = "") -> Object:
        """Merge into an object that is there, its status too."""
        old = self._objects[kind][_place(kind, namespace or "default", name)]
        return self._store(kind, old, apply_merge_patch(old, patch))

    def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """One object, or None."""
        found = self._objects[kind].get(_place(kind, namespace or "default", name))
        return copy.deepcopy(found)

    def all(self, kind: Kind) -> list[Object]:
        """All objects of a kind, in the order of their keys."""
        return [copy.deepcopy(obj) for _, obj in sorted(self._objects[kind].items())]

    def remove(self, kind: Kind, name: str, namespace: str = "") -> None:
        """Take an object away, finalizers or not."""
        old = self._objects[kind].pop(_place(kind, namespace or "default", name))
        self._record(kind, old, None)

    def asked(self, verb: str, kind: Kind) -> list[Call]:
        """The calls of a verb on a kind."""
        return [call for call in self.calls if (call.verb, call.kind) == (verb, kind)]

    def forget(self) -> None:
        """Forget all history: watches from an older version are told that it is gone."""
        self._history.clear()
        self._forgotten = self._last

    def bookmark(self) -> None:
        """Tell all watches the newest version."""
        self._last = next(self._version)
        self._tell("BOOKMARK")

    def cut_watches(self) -> None:
        """End all watches in the middle, as a restart of the API server does."""
        self._tell("CUT")

    @property
    def watching(self) -> int:
        """Watches that are open."""
        return len(self._watchers)

    # ---- HTTP

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        try:
            call = self._call(request, json.loads(data) if data else None)
            if call is None:
                return self._discover(request.path)
            self.calls.append(call)
            for hook in self.hooks:
                if (waiting := hook(call)) is not None:
                    await waiting
            if call.kind in self.unserved:
                raise Fault(404, "NotFound", "the server could not find the requested resource")
            if call.verb == "watch":
                return await self._watch(request, call)
            return web.json_response(getattr(self, f"_{call.verb}")(call), status=201 if call.verb == "create" else 200)
        except Fault as fault:
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.status}
            return web.json_response(body | {"reason": fault.reason, "message": str(fault)}, status=fault.status)

    def _call(self, request: web.Request, body: Any) -> Call | None:
        parts = request.path.strip("/").split("/")
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
        if not rest:
            return None
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else ""
        rest = rest[2:] if namespace else rest
        kind = next((k for k in ALL_KINDS if (k.group, k.version, k.plural) == (group, version, rest[0])), None)
        if kind is None or (namespace and not kind.namespaced):
            raise Fault(404, "NotFound", f"{request.path} is not known")
        name, subresource = (*rest[1:], "", "")[:2]
        query = dict(request.query)
        read = "get" if name else "watch" if query.get("watch") in {"true", "1"} else "list"
        verb = {"GET": read, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]
        if verb == "patch" and request.content_type != "application/merge-patch+json":
            raise Fault(415, "UnsupportedMediaType", "this fake takes JSON merge patches only")
        return Call(verb, kind, namespace, name, subresource, query, body)

    def _discover(self, path: str) -> web.Response:
        here = [kind for kind in ALL_KINDS if kind not in self.unserved and kind.path().rpartition("/")[0] == path]
        if not here:
            raise Fault(404, "NotFound", "the server could not find the requested resource")
        resources = [{"name": kind.plural, "namespaced": kind.namespaced} for kind in here]
        return web.json_response({"kind": "APIResourceList", "resources": resources})

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        since = int(call.query.get("resourceVersion") or self._last)
        if since < self._forgotten:
            raise Fault(410, "Expired", f"too old resource version: {since} ({self._forgotten})")
        watcher = _Watcher(call.kind)
        for change in self._history:
            if change.version > since and change.kind == call.kind:
                watcher.queue.put_nowait(change)
        self._watchers.append(watcher)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        try:
            async with asyncio.timeout(float(call.query.get("timeoutSeconds", 1800))):
                await response.prepare(request)
                while (change := await watcher.queue.get()) != "CUT":
                    if not self.silent and (event := self._event(call, change)) is not None:
                        await response.write(json.dumps(event).encode() + b"\n")
            if request.transport is not None:
                request.transport.abort()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._watchers.remove(watcher)
        return response

    def _event(self, call: Call, change: _Change | str) -> Object | None:
        if isinstance(change, str):
            return {"type": change, "object": {"metadata": {"resourceVersion": str(self._last)}}}
        was = change.old is not None and _seen(call, change.old)
        now = change.new is not None and _seen(call, change.new)
        if now:
            return {"type": "MODIFIED" if was else "ADDED", "object": change.new}
        if not was:
            return None
        gone = copy.deepcopy(change.old or {})
        gone["metadata"]["resourceVersion"] = str(change.version)
        return {"type": "DELETED", "object": gone}

    # ---- verbs

    def _get(self, call: Call) -> Object:
        return self._found(call)

    def _list(self, call: Call) -> Object:
        found = [obj for _, obj in sorted(self._objects[call.kind].items()) if _seen(call, obj)]
        begin, version = 0, str(self._last)
        if token := call.query.get("continue", ""):
            version, _, place = token.partition(":")
            begin = int(place)
            if int(version) < self._forgotten:
                raise Fault(410, "Expired", "the continue token is too old")
        limit = int(call.query.get("limit") or len(found) or 1)
        metadata = {"resourceVersion": version}
        if begin + limit < len(found):
            metadata["continue"] = f"{version}:{begin + limit}"
        items = [
            {k: v for k, v in obj.items() if k not in {"kind", "apiVersion"}} for obj in found[begin : begin + limit]
        ]
        return {"kind": f"{_title(call.kind)}List", "metadata": metadata, "items": items}

    def _create(self, call: Call) -> Object:
        body = copy.deepcopy(call.body)
        metadata = body.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", metadata["name"]):
            raise Fault(422, "Invalid", f'metadata.name: Invalid value: "{metadata["name"]}"')
        if call.kind.namespaced:
            metadata["namespace"] = call.namespace or "default"
        if _key(body) in self._objects[call.kind]:
            raise Fault(409, "AlreadyExists", f'{call.kind} "{metadata["name"]}" already exists')
        if metadata.pop("resourceVersion", ""):
            raise Fault(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if call.kind in WITH_STATUS:
            body.pop("status", None)
        return self._store(call.kind, None, body)

    def _update(self, call: Call) -> Object:
        return self._write(call, copy.deepcopy(call.body))

    def _patch(self, call: Call) -> Object:
        return self._write(call, apply_merge_patch(self._found(call), call.body), call.body)

    def _write(self, call: Call, new: Object, said: Object | None = None) -> Object:
        old = self._found(call)
        wanted = ((new if said is None else said).get("metadata") or {}).get("resourceVersion")
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            raise Fault(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        if call.kind in WITH_STATUS:
            if call.subresource == "status":
                new = old | ({"status": new["status"]} if "status" in new else {})
            else:
                new = {k: v for k, v in new.items() if k != "status"} | {k: v for k, v in old.items() if k == "status"}
        new = copy.deepcopy(new)
        for key in ("uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion"):
            if key in old["metadata"]:
                new["metadata"][key] = old["metadata"][key]
        if new == old:
            return old
        if old.get("spec") != new.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            self._objects[call.kind].pop(_key(old))
            self._record(call.kind, old, None)
            return new
        return self._store(call.kind, old, new)

    def _delete(self, call: Call) -> Object:
        old = self._found(call)
        for key, value in ((call.body or {}).get("preconditions") or {}).items():
            if value != old["metadata"][key]:
                raise Fault(409, "Conflict", f"the {key} in the precondition ({value}) is not that of the object")
        if old["metadata"].get("finalizers"):
            if "deletionTimestamp" in old["metadata"]:
                return old
            return self._store(call.kind, old, apply_merge_patch(old, {"metadata": {"deletionTimestamp": _now()}}))
        self._objects[call.kind].pop(_key(old))
        self._record(call.kind, old, None)
        return {"kind": "Status", "status": "Success"}

    # ---- store

    def _found(self, call: Call) -> Object:
        found = self._objects[call.kind].get(_place(call.kind, call.namespace, call.name))
        if found is None:
            raise Fault(404, "NotFound", f'{call.kind} "{call.name}" not found')
        return found

    def _store(self, kind: Kind, old: Object | None, new: Object) -> Object:
        new = {"apiVersion": kind.api_version, "kind": _title(kind)} | new
        metadata = new["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", _now())
        metadata.setdefault("generation", 1)
        self._objects[kind][_key(new)] = new
        self._record(kind, old, new)
        return copy.deepcopy(new)

    def _record(self, kind: Kind, old: Object | None, new: Object | None) -> None:
        self._last = next(self._version)
        if new is not None:
            new["metadata"]["resourceVersion"] = str(self._last)
        change = _Change(self._last, kind, copy.deepcopy(old), copy.deepcopy(new))
        self._history.append(change)
        for watcher in self._watchers:
            if watcher.kind == kind:
                watcher.queue.put_nowait(change)

    def _tell(self, what: str) -> None:
        for watcher in self._watchers:
            watcher.queue.put_nowait(what)


def _seen(call: Call, obj: Object) -> bool:
    if call.namespace and obj["metadata"].get("namespace") != call.namespace:
        return False
    return matches(obj, call.query.get("labelSelector", ""), call.query.get("fieldSelector", ""))


def _title(kind: Kind) -> str:
    known = {"storageclasses": "StorageClass", "csinodes": "CSINode"}
    known |= {"persistentvolumeclaims": "PersistentVolumeClaim", "persistentvolumes": "PersistentVolume"}
    known |= {"configmaps": "ConfigMap", "mutatingwebhookconfigurations": "MutatingWebhookConfiguration"}
    known |= {"volumesnapshots": "VolumeSnapshot", "volumesnapshotcontents": "VolumeSnapshotContent"}
    known |= {"volumesnapshotclasses": "VolumeSnapshotClass", "volumegroupsnapshots": "VolumeGroupSnapshot"}
    known |= {"volumegroupsnapshotcontents": "VolumeGroupSnapshotContent", "daemonsets": "DaemonSet"}
    known |= {"volumegroupsnapshotclasses": "VolumeGroupSnapshotClass", "volumerollbacks": "VolumeRollback"}
    known |= {"snapshotschedules": "SnapshotSchedule", "replicasets": "ReplicaSet", "statefulsets": "StatefulSet"}
    return known.get(kind.plural, kind.plural[:-1].capitalize())


def _place(kind: Kind, namespace: str, name: str) -> tuple[str, str]:
    return (namespace if kind.namespaced else "", name)


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
