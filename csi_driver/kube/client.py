"""The Kubernetes API as JSON over HTTP. Configuration, credentials and transport are the official client's.

The generated models are not used: a thousand PVCs as models weigh several times what they weigh as dictionaries, and
a watch of them is decoded for fields that nobody reads (docs/adr/0004).
"""

import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, kube_config, load_incluster_config, load_kube_config
from kubernetes.aio.config.openid import OpenIDRequestor

from csi_driver import __version__
from csi_driver.domain.errors import AlreadyExists, NotFound, Precondition, Unavailable
from csi_driver.environment import without_proxies
from csi_driver.kube.errors import ApiRejected, Conflict, ResourceVersionExpired
from csi_driver.kube.resources import Kind

Object = dict[str, Any]
"""One document of the API. Do not change one in place that came from an informer."""

Objects = list[Object]

REQUEST_SECONDS = 15.0
"""For one response. An API server that needs longer is overloaded, and every call is repeated anyway."""

PAGE = 500
"""Objects of one page of a list: the size that the API's own clients use."""

QUIET_SECONDS = 90.0
"""How long a watch may be silent: the API server ends each before that."""

USER_AGENT = f"tidemark/{__version__}"
"""The client, in an audit log."""

MERGE_PATCH = "application/merge-patch+json"


class Api:
    """One connection pool to one API server. Every call raises Unavailable if no response came, or a later one may succeed."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._host = str(configuration.host).rstrip("/")
        self._rest = _Rest(configuration)

    @classmethod
    async def connect(cls, kubeconfig: str = "", proxy: str = "") -> "Api":
        """Connect with the pod's own account, or with a kubeconfig file. Raises Precondition if there is neither.

        Nothing is sent yet. `proxy`: the URL of a proxy, instead of the kubeconfig's `proxy-url`; those of the environment are
        ignored.
        """
        configuration = Configuration()
        files = [os.path.expanduser(path) for path in kubeconfig.split(os.pathsep) if path]
        if files and not any(map(os.path.exists, files)):
            # The client's own words are of the content that an empty configuration lacks.
            raise Precondition(
                f"cannot connect to a Kubernetes API with {kubeconfig}: there is no such file; use --kubeconfig FILE"
            )
        try:
            if kubeconfig:
                await load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
            else:
                load_incluster_config(configuration)
        except (ConfigException, OSError) as error:
            source = kubeconfig or "the pod's service account"
            raise Precondition(
                f"cannot connect to a Kubernetes API with {source}: {error}; use --kubeconfig FILE"
            ) from error
        except (TypeError, AttributeError, yaml.YAMLError) as error:  # of a file that is empty, a list, no YAML at all
            raise Precondition(
                f"cannot connect to a Kubernetes API with {kubeconfig}: it is no kubeconfig; use --kubeconfig FILE"
            ) from error
        if proxy:
            configuration.proxy = proxy
        return cls(configuration)

    async def close(self) -> None:
        """Close all connections; running calls fail."""
        await self._rest.close()

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """Return one object as it is now, or None."""
        try:
            return await self._call("GET", kind.path(namespace, name))
        except NotFound:
            return None

    async def list(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> Objects:
        """Return all objects as they are now; `labels` and `fields` are selectors as kubectl takes them."""
        objects: Objects = []
        async for items, _ in self.pages(kind, namespace, labels, fields):
            objects.extend(items)
        return objects

    async def list_served(self, kind: Kind, namespace: str = "", labels: str = "") -> Objects:
        """As `list`; none if the cluster does not serve the kind, because its CRD is not installed."""
        try:
            return await self.list(kind, namespace, labels)
        except NotFound:
            return []

    async def pages(
        self, kind: Kind, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[tuple[Objects, str]]:
        """Yield the pages of a list, each with the version of the whole list. May raise ResourceVersionExpired in the middle."""
        token = ""
        while True:
            query = {"limit": str(PAGE), "continue": token, "labelSelector": labels, "fieldSelector": fields}
            answer = await self._call("GET", kind.path(namespace), query)
            # The items of a list of a built-in kind lack apiVersion and kind.
            title = str(answer.get("kind", "")).removesuffix("List")
            items: Objects = answer.get("items") or []
            for item in items:
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", title)
            metadata = answer.get("metadata") or {}
            yield items, metadata.get("resourceVersion", "")
            token = metadata.get("continue", "")
            if not token:
                return

    async def create(self, kind: Kind, body: Object, namespace: str = "") -> Object:
        """Create an object; raises AlreadyExists. `namespace` defaults to that in the body's metadata."""
        namespace = namespace or (body.get("metadata") or {}).get("namespace", "")
        return await self._call("POST", kind.path(namespace), body={"apiVersion": kind.api_version, **body})

    async def replace(self, kind: Kind, body: Object, subresource: str = "") -> Object:
        """Replace a whole object that was read and then changed. Raises Conflict, NotFound."""
        metadata = body["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"], subresource)
        return await self._call("PUT", path, body={"apiVersion": kind.api_version, **body})

    async def patch(self, kind: Kind, name: str, body: Object, namespace: str = "", subresource: str = "") -> Object:
        """Change the fields in `body` and leave the rest (JSON merge patch: null removes, a list is replaced).

        With metadata.resourceVersion in it, only that version is changed. Raises Conflict, NotFound.
        """
        return await self._call("PATCH", kind.path(namespace, name, subresource), body=body, content=MERGE_PATCH)

    async def delete(
        self, kind: Kind, name: str, namespace: str = "", uid: str = "", resource_version: str = ""
    ) -> bool:
        """Delete an object; finalizers may delay it. False: it did not exist. Raises Conflict if it has another UID or version."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid or resource_version:
            options["preconditions"] = {key: value for key, value in preconditions.items() if value}
        try:
            await self._call("DELETE", kind.path(namespace, name), body=options)
        except NotFound:
            return False
        return True

    async def served(self, group: str, version: str, plural: str) -> bool:
        """Whether the cluster serves such a kind: the CRD of a custom one may not be installed."""
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        try:
            answer = await self._call("GET", root)
        except NotFound:
            return False
        return any(resource.get("name") == plural for resource in answer.get("resources") or [])

    async def watch(
        self,
        kind: Kind,
        version: str,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        seconds: float = 60,
        quiet: float = QUIET_SECONDS,
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Yield changes after `version`: ADDED, MODIFIED, DELETED with the object, BOOKMARK with a newer version.

        Ends after about `seconds`. Raises ResourceVersionExpired if the version is too old, Unavailable if the connection ends
        in the middle, or if nothing at all came for `quiet` seconds.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, int(seconds))),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=quiet)
        response = await self._send("GET", kind.path(namespace), query, timeout=timeout)
        try:
            if response.status >= 400:
                raise _error_of(response.status, await response.read(), kind.path(namespace))
            while line := await response.content.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise _error_of(int(status.get("code") or 500), json.dumps(status).encode(), kind.path(namespace))
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            raise Unavailable(f"watch of {kind} ended: {_describe(error)}") from error
        finally:
            response.close()

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        try:
            response = await self._send(method, path, query or {}, body, content, timeout)
            try:
                data = await response.read()
            finally:
                response.release()
            if response.status >= 400:
                raise _error_of(response.status, data, path)
            answer: Object = json.loads(data)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(f"the Kubernetes API did not answer {method} {path}: {_describe(error)}") from error
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        content: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        # Called each time: the client reads a pod's token again before it expires.
        auth = await self._configuration.auth_settings()
        headers = {setting["key"]: str(setting["value"]) for setting in auth.values() if setting.get("in") == "header"}
        headers |= {"Accept": "application/json", "Content-Type": content, "User-Agent": USER_AGENT}
        query_string = urlencode({key: value for key, value in query.items() if value})
        url = f"{self._host}{path}" + (f"?{query_string}" if query_string else "")
        try:
            answer = await self._rest.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"cannot reach the Kubernetes API for {method} {path}: {_describe(error)}") from error
        response: aiohttp.ClientResponse = answer.response
        return response


class _Rest(RESTClientObject):  # type: ignore[misc]  # the client's modules are not followed, see pyproject.toml
    """The client's transport, over sockets that notice a peer that lost its power, and without the environment's proxies."""

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        # The client's own has trust_env: a pod's HTTPS_PROXY takes the API's calls then, whatever networks NO_PROXY lists, and
        # a .netrc their credentials. A watch event may be larger than aiohttp's buffer.
        return aiohttp.ClientSession(connector=self._create_connector(), trust_env=False, read_bufsize=1 << 21)

    def _create_connector(self) -> aiohttp.TCPConnector:
        # No limit: each watch holds a connection, and a call must never wait for one of them.
        return aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=_socket)


class _Issuer(OpenIDRequestor):  # type: ignore[misc]  # as above
    """The client's renewal of the token of an `auth-provider` oidc, without the environment's proxies either.

    Its session has trust_env, and that cannot be changed. The variables are hidden for this request, not while all of
    a kubeconfig is loaded: the program that a kubeconfig calls for a token (`exec`) is not ours, and may need them.
    """

    async def refresh_token(self, refresh_token: str) -> Any:
        """See OpenIDRequestor."""
        with without_proxies():
            return await super().refresh_token(refresh_token)


kube_config.OpenIDRequestor = _Issuer  # where the client looks for it


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _error_of(status: int, data: bytes, path: str) -> Exception:
    """Return the error of a response, with the API's own message."""
    try:
        answer = json.loads(data)
        message, reason = str(answer.get("message", "")), str(answer.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason = data[:200].decode(errors="replace"), ""
    message = message or f"{path} answered {status}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if status == 410:
        return ResourceVersionExpired(message)
    if status in {408, 429} or status >= 500:
        return Unavailable(f"the Kubernetes API cannot serve {path} now: {message}")
    if status == 401:
        return Unavailable(f"the Kubernetes API does not accept this account now: {message}")
    return ApiRejected(message, status)


def _describe(error: BaseException) -> str:
    return str(error) or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)


def default_kubeconfig() -> str:
    """Return the kubeconfig that kubectl would use; empty if there is none."""
    configured = os.environ.get("KUBECONFIG", "")
    home = os.path.expanduser("~/.kube/config")
    return configured or (home if os.path.exists(home) else "")
