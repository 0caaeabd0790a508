"""The HTTPS endpoint of the admission webhook for PVCs: AdmissionReview in, AdmissionReview out.

It blocks nobody: if anything fails, the PVC is admitted unchanged.
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
"""For one PVC: the API server waits for two."""

POLL_SECONDS = 5.0
"""Between two checks whether the certificate has changed."""

FIRST_POLL_SECONDS = 0.2
"""As POLL_SECONDS, until there is a certificate."""

MOST_BYTES = 4 << 20
"""Of one review: more than the API accepts for an object."""

Annotate = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Returns the annotations to add to a PVC that is about to be created."""

log = structlog.get_logger()


class Webhook:
    """Serves /pin on `address` with the certificate in a directory, and reloads it without a break."""

    def __init__(self, address: tuple[str, int], certificates: Path, annotate: Annotate) -> None:
        self._host, self.port = address
        self._directory = certificates
        self._annotate = annotate
        self._loaded: tuple[bytes, bytes] | None = None
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    async def run(self) -> None:
        """Serve as soon as there is a certificate, until cancelled. Raises Precondition."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.add_routes([web.post("/pin", self._review)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            while True:
                if self._load() and not runner.addresses:
                    await web.TCPSite(runner, self._host, self.port, ssl_context=self._tls).start()
                    self.port = runner.addresses[0][1]
                    log.info("admission webhook listening", port=self.port)
                await asyncio.sleep(POLL_SECONDS if self._loaded is not None else FIRST_POLL_SECONDS)
        except OSError as error:
            raise Precondition(
                f"--webhook-address {self._host}:{self.port}: cannot listen ({error.strerror}); choose another, or "
                "omit it"
            ) from error
        finally:
            await runner.cleanup()

    def _load(self) -> bool:
        """Load a changed certificate, for new connections; False while there is none."""
        link = self._directory / "..data"
        directory = link.resolve() if link.is_symlink() else self._directory
        try:
            pair = (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()
            if pair != self._loaded:
                # First into a context that is not in use: a mismatched pair must not replace a good one.
                for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._tls):
                    context.load_cert_chain(directory / "tls.crt", directory / "tls.key", password="")
                self._loaded = pair
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            if self._loaded is not None:
                log.error("load webhook certificate failed", why=str(error))
        return self._loaded is not None

    async def _review(self, request: web.Request) -> web.Response:
        try:
            review = await request.json()
            uid, pvc = review["request"]["uid"], review["request"]["object"]
            # A PVC that is about to be created may lack its namespace.
            pvc["metadata"].setdefault("namespace", review["request"].get("namespace") or "default")
        except (ValueError, KeyError, TypeError, AttributeError):
            return web.Response(status=400, text="not an AdmissionReview of a PVC\n")
        response: Object = {"uid": uid, "allowed": True}
        if annotations := await self._annotations(pvc):
            response |= {
                "patchType": "JSONPatch",
                "patch": b64encode(json.dumps(patch(pvc, annotations)).encode()).decode(),
            }
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    async def _annotations(self, pvc: Object) -> Mapping[str, str]:
        metadata = pvc["metadata"]
        name = metadata.get("name") or metadata.get("generateName")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                annotations = await self._annotate(pvc)
        except (DriverError, TimeoutError) as error:
            why = str(error) or f"no answer within {ANSWER_SECONDS} s"
            log.warning("PVC admitted unchanged", namespace=metadata["namespace"], pvc=name, why=why)
            return {}
        except Exception:
            log.exception("PVC admitted unchanged", namespace=metadata["namespace"], pvc=name)
            return {}
        if annotations:
            log.info("PVC annotated", namespace=metadata["namespace"], pvc=name, annotations=dict(annotations))
        return annotations


def patch(pvc: Object, annotations: Mapping[str, str]) -> list[Object]:
    """Return the JSON patch (RFC 6902) that adds annotations."""
    if not pvc["metadata"].get("annotations"):
        return [{"op": "add", "path": "/metadata/annotations", "value": dict(annotations)}]
    path = "/metadata/annotations/"
    keys = {key: key.replace("~", "~0").replace("/", "~1") for key in annotations}
    return [{"op": "add", "path": path + keys[key], "value": value} for key, value in annotations.items()]
