"""The certificates of a cluster: made once by however many replicas, renewed, rotated, and never lost half-way."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import timedelta

import pytest
from certificates_rig import AGENT, AUTHORITY, CONTROLLER, NAMESPACE, CertificatesRig, content
from support.fake_api import Call, FakeApi, Fault

from csi_driver.domain.errors import DriverError, Precondition, Unavailable
from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.operator.certificates import reconciler as certificates
from csi_driver.operator.certificates.rotation import Idle

CHANGING = {"create", "update", "patch", "delete"}


@pytest.fixture
def trusting(fake: FakeApi) -> CertificatesRig:
    return CertificatesRig(fake)


async def at_rest(trusting: CertificatesRig) -> None:
    await (await trusting.replica()).do_all()
    trusting.check_rest()
    trusting.peers.load_all()


async def rotate(trusting: CertificatesRig) -> None:
    """One replica, and peers that load what is there whenever it waits for them."""
    keeper = await trusting.replica()
    for _ in range(10):
        rest = await keeper.do_all()
        if not rest.waiting:
            return
        trusting.peers.load_all()
    raise AssertionError("the rotation does not end")


async def test_from_nothing(trusting: CertificatesRig) -> None:
    await at_rest(trusting)
    assert trusting.secret(CONTROLLER)["type"] == trusting.secret(AGENT)["type"] == "kubernetes.io/tls"
    assert set(trusting.expiry) == {"authority", "controller", "agent"}
    left = trusting.expiry["agent"] - trusting.now
    assert timedelta(days=89) < left < timedelta(days=91)
    before = len([call for call in trusting.fake.calls if call.verb in CHANGING])
    await (await trusting.replica()).do_all()
    assert len([call for call in trusting.fake.calls if call.verb in CHANGING]) == before, "at rest nothing is written"


async def test_two_replicas_at_once_end_with_one_authority(trusting: CertificatesRig) -> None:
    """Both see nothing, and both decide to make all; each then has what the first of them wrote."""
    waiting = 0
    both = asyncio.Event()

    async def together(call: Call) -> None:
        nonlocal waiting
        if call.verb == "create" and call.kind == SECRETS and not both.is_set():
            waiting += 1
            if waiting == 2:
                both.set()
            await both.wait()

    trusting.fake.hooks.append(together)
    replicas = [await trusting.replica() for _ in range(2)]
    await asyncio.gather(*(replica.do_all() for replica in replicas))
    assert waiting == 2
    trusting.check_rest()
    assert trusting.emitter.reasons == ["CaCreated"]


async def test_a_certificate_is_renewed_and_nothing_else_changes(trusting: CertificatesRig) -> None:
    await at_rest(trusting)
    root, before = trusting.authority(), {name: content(trusting.fake, name) for name in (CONTROLLER, AGENT)}
    trusting.now += timedelta(days=61)
    await (await trusting.replica()).do_all()
    trusting.check_rest()
    assert trusting.authority() == root
    for name, old in before.items():
        assert content(trusting.fake, name)["tls.crt"] != old["tls.crt"]
        assert content(trusting.fake, name)["tls.key"] != old["tls.key"]


async def test_a_rotation_waits_for_every_peer(trusting: CertificatesRig) -> None:
    """Whoever has not loaded the last step is named, and meanwhile nobody refuses anybody."""
    await at_rest(trusting)
    root = trusting.authority()
    trusting.ask_for_rotation()
    keeper = await trusting.replica()
    late = {(secret, peer) for secret, peers in trusting.peers.loaded.items() for peer in peers}
    for phase in (1, 2):
        for secret, peer in sorted(late):
            rest = await keeper.do_all()
            assert peer in rest.waiting, f"phase {phase}"
            assert (trusting.authority() == root) == (phase == 1)
            trusting.peers.load(secret, peer)
            trusting.peers.check()
    assert await keeper.do_all() == Idle()
    trusting.check_rest()
    trusting.peers.check()
    trusting.peers.load_all()
    trusting.peers.check()
    assert trusting.authority() != root
    assert "tidemark.dev/rotate" not in trusting.secret(AUTHORITY)["metadata"].get("annotations", {})
    reasons = [reason for reason in trusting.emitter.reasons if reason != "RotationWaiting"]
    assert reasons == ["CaCreated", "RotationStarted", "NextCaPromoted", "RotationCompleted"]
    waits = [message for reason, message in trusting.emitter.events if reason == "RotationWaiting"]
    assert "n-1, n-2, pod-1, pod-2" in waits[0]


async def test_an_authority_is_rotated_before_it_ends(trusting: CertificatesRig) -> None:
    await at_rest(trusting)
    root = trusting.authority()
    trusting.now += timedelta(days=2500)
    await rotate(trusting)
    trusting.check_rest()
    assert trusting.authority() != root


@pytest.mark.parametrize(("what", "writes"), [("first", 4), ("rotation", 11)])
async def test_the_process_ends_between_any_two_writes(trusting: CertificatesRig, what: str, writes: int) -> None:
    """A replica ends before its n-th write, for every n (what it only reads changes nothing); another goes on, and at no
    moment a peer refuses another.
    """
    fake, peers = trusting.fake, trusting.peers
    gap = 0
    while True:
        for obj in fake.all(SECRETS):
            fake.remove(SECRETS, obj["metadata"]["name"], NAMESPACE)
        peers.__init__(fake)  # type: ignore[misc]
        root = b""
        if what == "rotation":
            await at_rest(trusting)
            root = trusting.authority()
            trusting.ask_for_rotation()
        count = 0

        def end(call: Call, gap: int = gap) -> None:
            nonlocal count
            peers.check()
            count += call.verb in CHANGING
            if count > gap:
                raise Fault(503, "ServiceUnavailable", "the process has ended")

        fake.hooks[:] = [end]
        try:
            await rotate(trusting)
            ended = False
        except DriverError:
            ended = True
        fake.hooks[:] = [lambda _: peers.check()]
        await rotate(trusting)
        trusting.check_rest()
        assert trusting.authority() != root
        if not ended:
            break
        gap += 1
    assert gap == writes, "each write was the first that was not made"


async def test_replicas_that_rotate_together(trusting: CertificatesRig) -> None:
    await at_rest(trusting)
    root = trusting.authority()
    trusting.ask_for_rotation()
    replicas = [await trusting.replica() for _ in range(3)]
    for _ in range(10):
        await asyncio.gather(*(replica.do_all() for replica in replicas))
        trusting.peers.load_all()
        trusting.peers.check()
    trusting.check_rest()
    assert trusting.authority() != root
    assert trusting.emitter.reasons.count("RotationStarted") == 1


async def test_a_lost_authority_is_replaced_without_a_refusal(trusting: CertificatesRig) -> None:
    await at_rest(trusting)
    root = trusting.authority()
    trusting.fake.remove(SECRETS, AUTHORITY, NAMESPACE)
    trusting.fake.hooks.append(lambda _: trusting.peers.check())
    await rotate(trusting)
    trusting.check_rest()
    assert trusting.authority() != root
    assert trusting.emitter.events[1] == (
        "CaCreated",
        "created a CA, because the key of the trusted one was lost",
    )


@pytest.mark.parametrize("name", [CONTROLLER, AGENT])
@pytest.mark.parametrize("damage", ["gone", "empty", "no PEM", "key of another"])
async def test_a_damaged_certificate_is_issued_again(trusting: CertificatesRig, name: str, damage: str) -> None:
    await at_rest(trusting)
    root = trusting.authority()
    if damage == "gone":
        trusting.fake.remove(SECRETS, name, NAMESPACE)
    else:
        key = content(trusting.fake, AUTHORITY)["tls.key"]
        value = {"empty": b"", "no PEM": b"\xff", "key of another": key}[damage]
        trusting.fake.change(SECRETS, name, {"data": {"tls.key": b64encode(value).decode()}}, NAMESPACE)
    await (await trusting.replica()).do_all()
    trusting.check_rest()
    assert trusting.authority() == root


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("value", ["", "bm8gUEVN", "not base64"])
async def test_a_damaged_authority_is_never_overwritten(trusting: CertificatesRig, key: str, value: str) -> None:
    await at_rest(trusting)
    trusting.fake.change(SECRETS, AUTHORITY, {"data": {key: value}}, NAMESPACE)
    before = trusting.fake.all(SECRETS)
    with pytest.raises(Precondition, match="Secret tidemark-authority does not hold a CA") as caught:
        await (await trusting.replica()).do_all()
    assert "PRIVATE" not in str(caught.value)
    assert trusting.fake.all(SECRETS) == before


async def test_the_webhook_follows(trusting: CertificatesRig) -> None:
    """All that the chart wrote beside is left; without a webhook there is nothing to do."""
    await at_rest(trusting)
    obj = trusting.fake.get(MUTATING_WEBHOOKS, "tidemark-pin")
    assert obj is not None
    assert obj["webhooks"][0]["clientConfig"]["service"] == {"name": "s"}
    trusting.fake.change(MUTATING_WEBHOOKS, "tidemark-pin", {"webhooks": [{"name": "a", "clientConfig": {}}]})
    await (await trusting.replica()).do_all()
    assert trusting.hook() == trusting.authority()
    trusting.fake.remove(MUTATING_WEBHOOKS, "tidemark-pin")
    assert await (await trusting.replica()).do_all() == Idle()


async def test_others_who_change_the_same_secret_without_end_are_told(
    trusting: CertificatesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "MAX_STEPS", 12)
    await at_rest(trusting)

    def undo(call: Call) -> None:
        if call.verb == "get" and call.name == AGENT:
            trusting.fake.change(SECRETS, AGENT, {"data": {"ca.crt": "eA=="}}, NAMESPACE)

    trusting.fake.hooks.append(undo)
    with pytest.raises(Unavailable, match="keep changing: another process"):
        await (await trusting.replica()).do_all()
