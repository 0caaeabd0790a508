"""Reconciles the CA and the certificates of a cluster: observes, asks rotation.py for the next step, and does it.

Each step is one write under the version that it was decided on, so that several replicas may do this at once, and the
process may end between any two of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from csi_driver.domain.certificates import fingerprint
from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound, Unavailable
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.kube.tls_secret import LOADED_PREFIX
from csi_driver.operator.certificates import ca, rotation
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle, write_ca_bundle

ROTATE = "tidemark.dev/rotate"
"""Annotation on the CA's Secret that requests a rotation, with any value; removed when the rotation starts."""

PERIOD_SECONDS = 30.0
"""Between two reconciliations while there is nothing to do."""

WAITING_SECONDS = 5.0
"""Between two checks of peers that have not loaded their certificates yet."""

MAX_STEPS = 100
"""In one reconciliation: more than a whole rotation has. Beyond it, another process changes the same Secrets forever."""

log = structlog.get_logger()


class EventRecorder(Protocol):
    """Writes events: kube.events.Events."""

    async def emit(self, obj: Object, type: Any, reason: str, message: str) -> None:  # noqa: A002
        """Write one event about an object."""
        ...


Peers = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Given a Secret of type TLS, returns what each peer that must load it has loaded: a fingerprint by name, empty if the
peer does not answer."""


@dataclass(frozen=True, slots=True)
class CertificateSpec:
    """A certificate to keep in a Secret of type TLS."""

    role: str
    """Label of the metric: controller or agent."""
    secret: str
    names: rotation.Names
    """Its DNS names."""
    peers: Peers


@dataclass(slots=True)
class _Observation:
    """One observation."""

    ca_object: Object | None
    ca_secret: secrets.CaSecret | None
    issued: dict[rotation.Names, Object | None] = field(default_factory=dict)
    webhook: Object | None = None

    @property
    def ca(self) -> secrets.CaSecret:
        assert self.ca_secret is not None, "every step but the first has a CA"
        return self.ca_secret


class Certificates:
    """`webhook`: name of the MutatingWebhookConfiguration that gets the CA bundle; empty: none.

    `set_expiry(role, ends)` receives what each reconciliation has read.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        secret: str,
        specs: Sequence[CertificateSpec],
        webhook: str,
        events: EventRecorder,
        set_expiry: Callable[[str, datetime], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._secret = secret
        self._specs = {spec.names: spec for spec in specs}
        self._webhook = webhook
        self._events = events
        self._set_expiry = set_expiry
        self._now = now
        self._waiting: tuple[str, ...] = ()

    async def run(self) -> None:
        """Reconcile until cancelled. Every replica does so: no certificate waits for a leader."""
        while True:
            pause = WAITING_SECONDS
            try:
                if not (await self.reconcile()).waiting:
                    pause = PERIOD_SECONDS
            except DriverError as error:
                log.warning("certificate reconcile failed, retrying", why=str(error))
            await asyncio.sleep(pause)

    async def reconcile(self) -> rotation.Idle:
        """Do all steps that can be done now. Raises Unavailable, or Precondition if a Secret has invalid content."""
        for _ in range(MAX_STEPS):
            step = await self.step()
            if isinstance(step, rotation.Idle):
                return step
        raise Unavailable(
            f"the certificates of {self._secret} keep changing: another process is writing the same Secrets"
        )

    async def step(self) -> rotation.Step:
        """Do one step and return it. If another replica was faster, nothing was done."""
        observation = await self._observe()
        step = rotation.next_step(self._state(observation, None), self._now())
        if isinstance(step, rotation.CheckPeers):
            stale_peers = await self._stale_peers(observation)
            step = rotation.next_step(self._state(observation, stale_peers), self._now())
        if isinstance(step, rotation.Idle):
            await self._report_waiting(observation, step.waiting)
            return step
        try:
            await self._do(step, observation)
        except (Conflict, AlreadyExists, NotFound) as error:
            log.info("another replica was faster", step=_describe(step), why=str(error))
        return step

    # ---- observe

    async def _observe(self) -> _Observation:
        obj = await self._api.get(SECRETS, self._secret, self._namespace)
        observation = _Observation(obj, secrets.read(obj) if obj is not None else None)
        for names, spec in self._specs.items():
            observation.issued[names] = await self._api.get(SECRETS, spec.secret, self._namespace)
        if self._webhook:
            observation.webhook = await self._api.get(MUTATING_WEBHOOKS, self._webhook)
        return observation

    def _state(self, observation: _Observation, stale_peers: tuple[str, ...] | None) -> rotation.ObservedState:
        ca_secret = observation.ca_secret
        trusted = ca_secret.trusted if ca_secret is not None else []
        issued = {
            names: _read_issued(obj, trusted) if obj is not None else None for names, obj in observation.issued.items()
        }
        state = ca_secret.state if ca_secret is not None else None
        for names, secret in issued.items():
            if secret is not None and secret.certificate is not None:
                self._set_expiry(self._specs[names].role, secret.certificate.ends)
        if state is not None and state.signer is not None:
            self._set_expiry("authority", state.signer.ends)
        annotations = ((observation.ca_object or {}).get("metadata") or {}).get("annotations") or {}
        bundle = read_ca_bundle(observation.webhook)
        return rotation.ObservedState(state, issued, bundle, ROTATE in annotations, stale_peers)

    async def _stale_peers(self, observation: _Observation) -> tuple[str, ...]:
        stale: set[str] = set()
        for names, obj in observation.issued.items():
            if obj is None:
                return (self._specs[names].secret,)
            data = obj["data"]
            current = fingerprint(secrets.decoded(data, "ca.crt"), secrets.decoded(data, "tls.crt"))
            loaded = await self._specs[names].peers(obj)
            stale.update(peer for peer, its_fingerprint in loaded.items() if its_fingerprint != current)
        return tuple(sorted(stale))

    # ---- act

    async def _do(self, step: rotation.Step, observation: _Observation) -> None:
        log.info("certificate step", step=_describe(step))
        match step:
            case rotation.CreateCa():
                await self._create_ca(observation)
            case rotation.IssueCertificate(names):
                await self._issue(names, observation)
            case rotation.UpdateCaBundle(names):
                await self._update(names, observation, {"ca.crt": secrets.encoded(observation.ca.bundle)})
            case rotation.UpdateWebhookCaBundle():
                assert observation.webhook is not None
                await write_ca_bundle(self._api, observation.webhook, observation.ca.bundle)
            case rotation.CreateNextCa():
                message = "added the next CA to all CA bundles"
                await self._update_ca(observation, observation.ca.with_next_ca(self._now()), "RotationStarted", message)
            case rotation.PromoteNextCa():
                message = "the next CA signs; all certificates are issued again by it"
                await self._update_ca(observation, observation.ca.with_next_promoted(), "NextCaPromoted", message)
            case rotation.RemoveOldCa():
                message = "removed the old CA from all CA bundles"
                await self._update_ca(observation, observation.ca.with_old_removed(), "RotationCompleted", message)

    async def _create_ca(self, observation: _Observation) -> None:
        trusted: set[bytes] = set()
        for obj in observation.issued.values():
            try:
                trusted.update(ca.split(secrets.decoded((obj or {}).get("data") or {}, "ca.crt")))
            except ValueError:
                continue
        content = secrets.recreate(sorted(trusted), self._now())
        data = {key: value for key, value in content.data().items() if value is not None}
        body = {"metadata": {"name": self._secret, "labels": _LABELS}, "type": "Opaque", "data": data}
        obj = await self._api.create(SECRETS, body, self._namespace)
        message = "created a CA" + (", because the key of the trusted one was lost" if trusted else "")
        await self._events.emit(obj, "Warning" if trusted else "Normal", "CaCreated", message)

    async def _update_ca(self, observation: _Observation, content: secrets.CaSecret, reason: str, message: str) -> None:
        assert observation.ca_object is not None
        metadata: Object = {"resourceVersion": observation.ca_object["metadata"]["resourceVersion"]}
        if reason == "RotationStarted":
            metadata["annotations"] = {ROTATE: None}
        patch = {"metadata": metadata, "data": content.data()}
        obj = await self._api.patch(SECRETS, self._secret, patch, self._namespace)
        await self._events.emit(obj, "Normal", reason, message)

    async def _issue(self, names: rotation.Names, observation: _Observation) -> None:
        ca_secret = observation.ca
        assert ca_secret.signer is not None
        pair = ca.issue(ca_secret.signer, *names, now=self._now())
        content = {"ca.crt": ca_secret.bundle, "tls.crt": pair.certificate, "tls.key": pair.key}
        data = {key: secrets.encoded(value) for key, value in content.items()}
        if observation.issued[names] is not None:
            await self._update(names, observation, data)
            return
        metadata = {"name": self._specs[names].secret, "labels": _LABELS}
        body = {"metadata": metadata, "type": "kubernetes.io/tls", "data": data}
        await self._api.create(SECRETS, body, self._namespace)

    async def _update(self, names: rotation.Names, observation: _Observation, data: Mapping[str, str]) -> None:
        obj = observation.issued[names]
        assert obj is not None
        # What pods have reported about the old content no longer holds.
        reports = {key: None for key in obj["metadata"].get("annotations") or {} if key.startswith(LOADED_PREFIX)}
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"], "annotations": reports}
        await self._api.patch(SECRETS, self._specs[names].secret, {"metadata": metadata, "data": data}, self._namespace)

    async def _report_waiting(self, observation: _Observation, waiting: tuple[str, ...]) -> None:
        if waiting and waiting != self._waiting and observation.ca_object is not None:
            log.info("rotation waits for peers", peers=waiting)
            message = f"waiting for these peers to load their certificates: {', '.join(waiting)}"
            await self._events.emit(observation.ca_object, "Normal", "RotationWaiting", message)
        self._waiting = waiting


_LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/managed-by": "tidemark-controller"}


def _describe(step: rotation.Step) -> str:
    return " ".join([type(step).__name__, *getattr(step, "names", ())])


def _read_issued(obj: Object, trusted: Sequence[bytes]) -> rotation.IssuedSecret:
    data = obj.get("data") or {}
    try:
        pair = ca.KeyPair(secrets.decoded(data, "tls.crt"), secrets.decoded(data, "tls.key"))
        certificate = ca.describe(pair.certificate, trusted) if ca.key_matches(pair) else None
        return rotation.IssuedSecret(secrets.decoded(data, "ca.crt"), certificate)
    except ValueError:
        return rotation.IssuedSecret(b"", None)
