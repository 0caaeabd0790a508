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
from csi_driver.kube.api import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.kinds import SECRETS, WEBHOOKS
from csi_driver.kube.material import HOLDS
from csi_driver.operator import authority_secret as secrets
from csi_driver.operator import trust
from csi_driver.operator.hook import spread, trusted_by
from csi_driver.service import authority

ROTATE = "tidemark.dev/rotate"
"""Annotation on the authority's Secret that asks for a rotation, with any value; taken away when it begins."""

LOOK_SECONDS = 30.0
"""Between two looks while nothing is to be done."""

WAITING_SECONDS = 5.0
"""Between two questions to peers that have not followed yet."""

MOST_STEPS = 100
"""In one go: more than a whole rotation has. Beyond it somebody else changes the same Secrets without end."""

log = structlog.get_logger()


class Teller(Protocol):
    """Where events go: kube.events.Events."""

    async def emit(self, obj: Object, type: Any, reason: str, message: str) -> None:  # noqa: A002
        """See kube.events."""
        ...


Peers = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Given a Secret of type TLS, what each peer that must load it has loaded: a fingerprint by name, empty for no answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate that is to be kept in a Secret of type TLS."""

    role: str
    """In figures: controller or agent."""
    secret: str
    names: trust.Names
    """The DNS names that it is good for."""
    peers: Peers


@dataclass(slots=True)
class _Found:
    """One observation."""

    authority: Object | None
    keeping: secrets.Keeping | None
    issued: dict[trust.Names, Object | None] = field(default_factory=dict)
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
        wanted: Sequence[Wanted],
        hook: str,
        events: Teller,
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

    async def settle(self) -> trust.Rest:
        """Do all that can be done now. Raises Unavailable, or Precondition where a Secret holds what it must not."""
        for _ in range(MOST_STEPS):
            step = await self.step()
            if isinstance(step, trust.Rest):
                return step
        raise Unavailable(
            f"the certificates of {self._secret} do not come to rest: somebody else changes those Secrets, too"
        )

    async def step(self) -> trust.Step:
        """One step; Rest where there was none to do. Where another replica was faster, nothing was done."""
        found = await self._observe()
        step = trust.next_step(self._observed(found, None), self._now())
        if isinstance(step, trust.Ask):
            step = trust.next_step(self._observed(found, await self._behind(found)), self._now())
        if isinstance(step, trust.Rest):
            await self._tell_waiting(found, step.waiting)
            return step
        try:
            await self._do(step, found)
        except (Conflict, AlreadyExists, NotFound) as error:
            log.info("another replica was faster", step=_words(step), why=str(error))
        return step

    # ---- what there is

    async def _observe(self) -> _Found:
        obj = await self._api.get(SECRETS, self._secret, self._namespace)
        found = _Found(obj, secrets.read(obj) if obj is not None else None)
        for names, one in self._wanted.items():
            found.issued[names] = await self._api.get(SECRETS, one.secret, self._namespace)
        if self._hook:
            found.hook = await self._api.get(WEBHOOKS, self._hook)
        return found

    def _observed(self, found: _Found, behind: tuple[str, ...] | None) -> trust.Observed:
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
        hook = trusted_by(found.hook)
        return trust.Observed(seen, issued, hook, ROTATE in annotations, behind)

    async def _behind(self, found: _Found) -> tuple[str, ...]:
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

    async def _do(self, step: trust.Step, found: _Found) -> None:
        log.info("certificates", step=_words(step))
        match step:
            case trust.MakeAuthority():
                await self._make(found)
            case trust.Issue(names):
                await self._issue(names, found)
            case trust.Spread(names):
                await self._write(names, found, {"ca.crt": secrets.encoded(self._kept(found).bundle)})
            case trust.SpreadToHook():
                assert found.hook is not None
                await spread(self._api, found.hook, self._kept(found).bundle)
            case trust.Begin():
                await self._keep(
                    found, self._kept(found).begun(self._now()), "RotationBegan", "a new authority is made known"
                )
            case trust.Promote():
                words = "the new authority signs; all certificates are issued again by it"
                await self._keep(found, self._kept(found).promoted(), "RotationSigns", words)
            case trust.Drop():
                await self._keep(
                    found, self._kept(found).dropped(), "RotationEnded", "the old authority is trusted no more"
                )

    def _kept(self, found: _Found) -> secrets.Keeping:
        assert found.keeping is not None, "no step but the first comes before there is an authority"
        return found.keeping

    async def _make(self, found: _Found) -> None:
        trusted: set[bytes] = set()
        for obj in found.issued.values():
            try:
                trusted.update(authority.split(secrets.decoded((obj or {}).get("data") or {}, "ca.crt")))
            except ValueError:
                continue
        made = secrets.lost(sorted(trusted), self._now())
        metadata = {"name": self._secret, "labels": _LABELS}
        body = {"metadata": metadata, "type": "Opaque", "data": {k: v for k, v in made.data().items() if v is not None}}
        obj = await self._api.create(SECRETS, body, self._namespace)
        words = "an authority is made" + (", because the one that is trusted was lost" if trusted else "")
        await self._events.emit(obj, "Warning" if trusted else "Normal", "AuthorityMade", words)

    async def _keep(self, found: _Found, keeping: secrets.Keeping, reason: str, words: str) -> None:
        assert found.authority is not None
        metadata: Object = {"resourceVersion": found.authority["metadata"]["resourceVersion"]}
        if reason == "RotationBegan":
            metadata["annotations"] = {ROTATE: None}
        patch = {"metadata": metadata, "data": keeping.data()}
        obj = await self._api.patch(SECRETS, self._secret, patch, self._namespace)
        await self._events.emit(obj, "Normal", reason, words)

    async def _issue(self, names: trust.Names, found: _Found) -> None:
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

    async def _write(self, names: trust.Names, found: _Found, data: Mapping[str, str]) -> None:
        obj = found.issued[names]
        assert obj is not None
        # What was told of the content until now is told of nothing any more.
        told = {key: None for key in obj["metadata"].get("annotations") or {} if key.startswith(HOLDS)}
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"], "annotations": told}
        await self._api.patch(
            SECRETS, self._wanted[names].secret, {"metadata": metadata, "data": data}, self._namespace
        )

    async def _tell_waiting(self, found: _Found, waiting: tuple[str, ...]) -> None:
        if waiting and waiting != self._waiting and found.authority is not None:
            log.info("certificates: waiting", peers=waiting)
            words = f"waiting until these have loaded their certificates: {', '.join(waiting)}"
            await self._events.emit(found.authority, "Normal", "RotationWaits", words)
        self._waiting = waiting


_LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/managed-by": "tidemark-controller"}


def _words(step: trust.Step) -> str:
    return " ".join([type(step).__name__, *getattr(step, "names", ())])


def _issued(obj: Object, trusted: Sequence[bytes]) -> trust.Issued:
    data = obj.get("data") or {}
    try:
        pair = authority.Pair(secrets.decoded(data, "tls.crt"), secrets.decoded(data, "tls.key"))
        certificate = authority.describe(pair.certificate, trusted) if authority.fits(pair) else None
        return trust.Issued(secrets.decoded(data, "ca.crt"), certificate)
    except ValueError:
        return trust.Issued(b"", None)
