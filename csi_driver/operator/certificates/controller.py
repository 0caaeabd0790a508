"""Keeps the authority and the certificates of a cluster: observes, asks trust.py for the next step, and does it.

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
from csi_driver.operator.certificates import ca as authority
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates import rotation
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle, write_ca_bundle

ROTATE = "tidemark.dev/rotate"
"""Annotation on the authority's Secret that asks for a rotation, with any value; taken away when it begins."""

LOOK_SECONDS = 30.0
"""Between two looks while nothing is to be done."""

WAITING_SECONDS = 5.0
"""Between two questions to peers that have not followed yet."""

MOST_STEPS = 100
"""In one go: more than a whole rotation has. Beyond it somebody else changes the same Secrets without end."""

log = structlog.get_logger()


class EventRecorder(Protocol):
    """Where events go: kube.events.Events."""

    async def emit(self, obj: Object, type: Any, reason: str, message: str) -> None:  # noqa: A002
        """See kube.events."""
        ...


Peers = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Given a Secret of type TLS, what each peer that must load it has loaded: a fingerprint by name, empty for no answer."""


@dataclass(frozen=True, slots=True)
class CertificateSpec:
    """A certificate that is to be kept in a Secret of type TLS."""

    role: str
    """In figures: controller or agent."""
    secret: str
    names: rotation.Names
    """The DNS names that it is good for."""
    peers: Peers


@dataclass(slots=True)
class _Observation:
    """One observation."""

    authority: Object | None
    keeping: secrets.CaSecret | None
    issued: dict[rotation.Names, Object | None] = field(default_factory=dict)
    hook: Object | None = None


class Certificates:
    """`hook`: name of the MutatingWebhookConfiguration that is told whom to trust; empty: none.

    `expiry(role, when)` is told what was found at each look.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        secret: str,
        wanted: Sequence[CertificateSpec],
        hook: str,
        events: EventRecorder,
        expiry: Callable[[str, datetime], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._secret = secret
        self._wanted = {one.names: one for one in wanted}
        self._hook = hook
        self._events = events
        self._expiry = expiry
        self._now = now
        self._waiting: tuple[str, ...] = ()

    async def run(self) -> None:
        """Until cancelled. One replica is enough, and more do no harm: no certificate waits for a leader."""
        while True:
            pause = WAITING_SECONDS
            try:
                if not (await self.settle()).waiting:
                    pause = LOOK_SECONDS
            except DriverError as error:
                log.warning("certificates are not kept", why=str(error))
            await asyncio.sleep(pause)

    async def settle(self) -> rotation.Idle:
        """Do all that can be done now. Raises Unavailable, or Precondition where a Secret holds what it must not."""
        for _ in range(MOST_STEPS):
            step = await self.step()
            if isinstance(step, rotation.Idle):
                return step
        raise Unavailable(
            f"the certificates of {self._secret} do not come to rest: somebody else changes those Secrets, too"
        )

    async def step(self) -> rotation.Step:
        """One step; Rest where there was none to do. Where another replica was faster, nothing was done."""
        found = await self._observe()
        step = rotation.next_step(self._observed(found, None), self._now())
        if isinstance(step, rotation.CheckPeers):
            step = rotation.next_step(self._observed(found, await self._behind(found)), self._now())
        if isinstance(step, rotation.Idle):
            await self._tell_waiting(found, step.waiting)
            return step
        try:
            await self._do(step, found)
        except (Conflict, AlreadyExists, NotFound) as error:
            log.info("another replica was faster", step=_words(step), why=str(error))
        return step

    # ---- what there is

    async def _observe(self) -> _Observation:
        obj = await self._api.get(SECRETS, self._secret, self._namespace)
        found = _Observation(obj, secrets.read(obj) if obj is not None else None)
        for names, one in self._wanted.items():
            found.issued[names] = await self._api.get(SECRETS, one.secret, self._namespace)
        if self._hook:
            found.hook = await self._api.get(MUTATING_WEBHOOKS, self._hook)
        return found

    def _observed(self, found: _Observation, behind: tuple[str, ...] | None) -> rotation.ObservedState:
        keeping = found.keeping
        trusted = keeping.trusted if keeping is not None else []
        issued = {names: _issued(obj, trusted) if obj is not None else None for names, obj in found.issued.items()}
        seen = keeping.seen if keeping is not None else None
        for names, one in issued.items():
            if one is not None and one.certificate is not None:
                self._expiry(self._wanted[names].role, one.certificate.ends)
        if seen is not None and seen.signer is not None:
            self._expiry("authority", seen.signer.ends)
        annotations = ((found.authority or {}).get("metadata") or {}).get("annotations") or {}
        hook = read_ca_bundle(found.hook)
        return rotation.ObservedState(seen, issued, hook, ROTATE in annotations, behind)

    async def _behind(self, found: _Observation) -> tuple[str, ...]:
        late: set[str] = set()
        for names, obj in found.issued.items():
            if obj is None:
                return (self._wanted[names].secret,)
            data = obj["data"]
            held = fingerprint(secrets.decoded(data, "ca.crt"), secrets.decoded(data, "tls.crt"))
            reports = await self._wanted[names].peers(obj)
            late.update(peer for peer, told in reports.items() if told != held)
        return tuple(sorted(late))

    # ---- what is done

    async def _do(self, step: rotation.Step, found: _Observation) -> None:
        log.info("certificates", step=_words(step))
        match step:
            case rotation.MakeAuthority():
                await self._make(found)
            case rotation.Issue(names):
                await self._issue(names, found)
            case rotation.UpdateCaBundle(names):
                await self._write(names, found, {"ca.crt": secrets.encoded(self._kept(found).bundle)})
            case rotation.UpdateWebhookCaBundle():
                assert found.hook is not None
                await write_ca_bundle(self._api, found.hook, self._kept(found).bundle)
            case rotation.CreateNextCa():
                await self._keep(
                    found, self._kept(found).begun(self._now()), "RotationBegan", "a new authority is made known"
                )
            case rotation.Promote():
                words = "the new authority signs; all certificates are issued again by it"
                await self._keep(found, self._kept(found).promoted(), "RotationSigns", words)
            case rotation.RemoveOldCa():
                await self._keep(
                    found, self._kept(found).dropped(), "RotationEnded", "the old authority is trusted no more"
                )

    def _kept(self, found: _Observation) -> secrets.CaSecret:
        assert found.keeping is not None, "no step but the first comes before there is an authority"
        return found.keeping

    async def _make(self, found: _Observation) -> None:
        trusted: set[bytes] = set()
        for obj in found.issued.values():
            try:
                trusted.update(authority.split(secrets.decoded((obj or {}).get("data") or {}, "ca.crt")))
            except ValueError:
                continue
        made = secrets.recreate(sorted(trusted), self._now())
        metadata = {"name": self._secret, "labels": _LABELS}
        body = {"metadata": metadata, "type": "Opaque", "data": {k: v for k, v in made.data().items() if v is not None}}
        obj = await self._api.create(SECRETS, body, self._namespace)
        words = "an authority is made" + (", because the one that is trusted was lost" if trusted else "")
        await self._events.emit(obj, "Warning" if trusted else "Normal", "AuthorityMade", words)

    async def _keep(self, found: _Observation, keeping: secrets.CaSecret, reason: str, words: str) -> None:
        assert found.authority is not None
        metadata: Object = {"resourceVersion": found.authority["metadata"]["resourceVersion"]}
        if reason == "RotationBegan":
            metadata["annotations"] = {ROTATE: None}
        patch = {"metadata": metadata, "data": keeping.data()}
        obj = await self._api.patch(SECRETS, self._secret, patch, self._namespace)
        await self._events.emit(obj, "Normal", reason, words)

    async def _issue(self, names: rotation.Names, found: _Observation) -> None:
        keeping = self._kept(found)
        assert keeping.signer is not None
        pair = authority.issue(keeping.signer, *names, now=self._now())
        content = {"ca.crt": keeping.bundle, "tls.crt": pair.certificate, "tls.key": pair.key}
        data = {key: secrets.encoded(value) for key, value in content.items()}
        if found.issued[names] is not None:
            await self._write(names, found, data)
            return
        metadata = {"name": self._wanted[names].secret, "labels": _LABELS}
        await self._api.create(
            SECRETS, {"metadata": metadata, "type": "kubernetes.io/tls", "data": data}, self._namespace
        )

    async def _write(self, names: rotation.Names, found: _Observation, data: Mapping[str, str]) -> None:
        obj = found.issued[names]
        assert obj is not None
        # What was told of the content until now is told of nothing any more.
        told = {key: None for key in obj["metadata"].get("annotations") or {} if key.startswith(LOADED_PREFIX)}
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"], "annotations": told}
        await self._api.patch(
            SECRETS, self._wanted[names].secret, {"metadata": metadata, "data": data}, self._namespace
        )

    async def _tell_waiting(self, found: _Observation, waiting: tuple[str, ...]) -> None:
        if waiting and waiting != self._waiting and found.authority is not None:
            log.info("certificates: waiting", peers=waiting)
            words = f"waiting until these have loaded their certificates: {', '.join(waiting)}"
            await self._events.emit(found.authority, "Normal", "RotationWaits", words)
        self._waiting = waiting


_LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/managed-by": "tidemark-controller"}


def _words(step: rotation.Step) -> str:
    return " ".join([type(step).__name__, *getattr(step, "names", ())])


def _issued(obj: Object, trusted: Sequence[bytes]) -> rotation.IssuedSecret:
    data = obj.get("data") or {}
    try:
        pair = authority.KeyPair(secrets.decoded(data, "tls.crt"), secrets.decoded(data, "tls.key"))
        certificate = authority.describe(pair.certificate, trusted) if authority.key_matches(pair) else None
        return rotation.IssuedSecret(secrets.decoded(data, "ca.crt"), certificate)
    except ValueError:
        return rotation.IssuedSecret(b"", None)
