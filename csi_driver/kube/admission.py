"""The HTTPS endpoint that the API server asks about claims: AdmissionReview in, AdmissionReview out.

It cannot stand in anybody's way: whatever goes wrong, the claim is admitted as it is.
"""

import asyncio
import json
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
from aiohttp import web

from csi_driver.domain.errors import DriverError, Precondition
from csi_driver.kube.client import Object

ANSWER_SECONDS = 1.5
"""For one claim: the API server waits for two."""

LOOK_SECONDS = 5.0
"""Between two looks whether the certificate has changed."""

FIRST_SECONDS = 0.2
"""The same while there is none yet."""

MOST_BYTES = 4 << 20
"""Of one review: more than the API takes for an object."""

Annotate = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Given a claim that is about to be made: annotations that it is to have besides."""

log = structlog.get_logger()


class Webhook:
    """Serves /pin on `address` with the certificate in a directory, and follows its changes without a break."""

    def __init__(self, address: tuple[str, int], certificates: Path, annotate: Annotate) -> None:
        self._host, self.port = address
        self._directory = certificates
        self._annotate = annotate
        self._loaded: tuple[bytes, bytes] | None = None
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    async def run(self) -> None:
        """Serve from the moment on when there is a certificate, until cancelled. Raises Precondition."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.add_routes([web.post("/pin", self._review)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            while True:
                if self._load() and not runner.addresses:
                    await web.TCPSite(runner, self._host, self.port, ssl_context=self._tls).start()
                    self.port = runner.addresses[0][1]
                    log.info("claims are looked at", port=self.port)
                await asyncio.sleep(LOOK_SECONDS if self._loaded is not None else FIRST_SECONDS)
        except OSError as error:
            raise Precondition(
                f"--webhook-address {self._host}:{self.port} cannot be served ({error.strerror}): choose another, or "
                "leave it out"
            ) from error
        finally:
            await runner.cleanup()

    def _load(self) -> bool:
        """Take a changed certificate into use, for new connections; False as long as there is none."""
        link = self._directory / "..data"
        directory = link.resolve() if link.is_symlink() else self._directory
        try:
            found = (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()
            if found != self._loaded:
                # On one that nobody uses first: what does not fit together must not replace what does.
                for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._tls):
                    context.load_cert_chain(directory / "tls.crt", directory / "tls.key", password="")
                self._loaded = found
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            if self._loaded is not None:
                log.error("the webhook's certificate is not replaced", why=str(error))
        return self._loaded is not None

    async def _review(self, request: web.Request) -> web.Response:
        try:
            review = await request.json()
            uid, claim = review["request"]["uid"], review["request"]["object"]
            # A claim that is about to be made need not say its namespace.
            claim["metadata"].setdefault("namespace", review["request"].get("namespace") or "default")
        except (ValueError, KeyError, TypeError, AttributeError):
            return web.Response(status=400, text="not an AdmissionReview of a claim\n")
        response: Object = {"uid": uid, "allowed": True}
        if notes := await self._notes(claim):
            response |= {
                "patchType": "JSONPatch",
                "patch": b64encode(json.dumps(patch(claim, notes)).encode()).decode(),
            }
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    async def _notes(self, claim: Object) -> Mapping[str, str]:
        metadata = claim["metadata"]
        name = metadata.get("name") or metadata.get("generateName")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                notes = await self._annotate(claim)
        except (DriverError, TimeoutError) as error:
            why = str(error) or f"not told within {ANSWER_SECONDS} s"
            log.warning("claim is admitted as it is", namespace=metadata["namespace"], claim=name, why=why)
            return {}
        except Exception:
            log.exception("claim is admitted as it is", namespace=metadata["namespace"], claim=name)
            return {}
        if notes:
            log.info("claim is pinned", namespace=metadata["namespace"], claim=name, notes=dict(notes))
        return notes


def patch(claim: Object, notes: Mapping[str, str]) -> list[Object]:
    """The JSON patch (RFC 6902) that adds annotations."""
    if not claim["metadata"].get("annotations"):
        return [{"op": "add", "path": "/metadata/annotations", "value": dict(notes)}]
    path = "/metadata/annotations/"
    keys = {key: key.replace("~", "~0").replace("/", "~1") for key in notes}
    return [{"op": "add", "path": path + keys[key], "value": value} for key, value in notes.items()]
