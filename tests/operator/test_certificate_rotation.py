"""Which step of the certificates follows from what is observed: no step before everybody has followed the last one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from csi_driver.domain.certificates import Certificate
from csi_driver.operator.certificates.rotation import (
    CaState,
    CheckPeers,
    CreateCa,
    CreateNextCa,
    Idle,
    IssueCertificate,
    IssuedSecret,
    Names,
    ObservedState,
    PromoteNextCa,
    RemoveOldCa,
    UpdateCaBundle,
    UpdateWebhookCaBundle,
    next_step,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AGENT: Names = ("agent",)
CONTROLLER: Names = ("controller", "hook.ns.svc")


def ca_certificate(name: str, age: int = 10) -> Certificate:
    begins = NOW - timedelta(days=age)
    return Certificate(name, (), "", begins, begins + timedelta(days=3000))


def issued(names: Names, signer: str = "A", bundle: bytes = b"A", age: int = 10) -> IssuedSecret:
    begins = NOW - timedelta(days=age)
    return IssuedSecret(bundle, Certificate(f"of {names[0]}", names, signer, begins, begins + timedelta(days=90)))


def at_rest(signer: str = "A", bundle: bytes = b"A") -> ObservedState:
    each = {names: issued(names, signer, bundle) for names in (CONTROLLER, AGENT)}
    return ObservedState(CaState(ca_certificate(signer), None, False, bundle), each, bundle, False, None)


INTRODUCED = CaState(ca_certificate("A"), ca_certificate("B"), False, b"AB")
SIGNING = CaState(ca_certificate("B"), None, True, b"AB")
LOST = CaState(None, ca_certificate("B"), True, b"AB")


def test_all_is_well() -> None:
    assert next_step(at_rest(), NOW) == Idle()
    assert next_step(replace(at_rest(), webhook_bundle=None), NOW) == Idle()


def test_from_nothing() -> None:
    nothing = ObservedState(None, {CONTROLLER: None, AGENT: None}, b"", False, None)
    assert next_step(nothing, NOW) == CreateCa()
    made = replace(nothing, ca=at_rest().ca)
    assert next_step(made, NOW) == IssueCertificate(CONTROLLER)
    one = replace(made, issued={CONTROLLER: issued(CONTROLLER), AGENT: None})
    assert next_step(one, NOW) == IssueCertificate(AGENT)
    assert next_step(replace(one, issued=at_rest().issued), NOW) == UpdateWebhookCaBundle()


@pytest.mark.parametrize(
    ("age", "step"),
    [
        (0, Idle()),
        (59, Idle()),
        (60, IssueCertificate(AGENT)),
        (89, IssueCertificate(AGENT)),
        (400, IssueCertificate(AGENT)),
    ],
)
def test_a_certificate_is_renewed_at_two_thirds(age: int, step: object) -> None:
    state = at_rest()
    assert next_step(replace(state, issued={**state.issued, AGENT: issued(AGENT, age=age)}), NOW) == step


@pytest.mark.parametrize(
    "unfit",
    [
        None,
        IssuedSecret(b"A", None),
        issued(("another",)),
        issued((*AGENT, "one more")),
        issued(AGENT, signer="somebody"),
        issued(AGENT, signer=""),
    ],
)
def test_what_does_not_fit_is_issued_again(unfit: IssuedSecret | None) -> None:
    assert next_step(
        replace(at_rest(), issued={CONTROLLER: issued(CONTROLLER), AGENT: unfit}), NOW
    ) == IssueCertificate(AGENT)


@pytest.mark.parametrize(("age", "step"), [(1999, Idle()), (2000, CreateNextCa()), (3100, CreateNextCa())])
def test_a_ca_is_rotated_at_two_thirds(age: int, step: object) -> None:
    old = CaState(ca_certificate("A", age), None, False, b"A")
    assert next_step(replace(at_rest(), ca=old), NOW) == step


def test_a_rotation_step_by_step() -> None:
    """Each line: what is there, and the only step that may follow."""
    state = replace(at_rest(), rotation_requested=True)
    assert next_step(state, NOW) == CreateNextCa()
    state = replace(at_rest(), ca=INTRODUCED)
    assert next_step(state, NOW) == UpdateCaBundle(CONTROLLER)
    updated = issued(CONTROLLER, bundle=b"AB")
    assert next_step(replace(state, issued={CONTROLLER: updated, AGENT: issued(AGENT)}), NOW) == UpdateCaBundle(AGENT)
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    assert next_step(replace(state, issued=both), NOW) == UpdateWebhookCaBundle()
    state = replace(state, issued=both, webhook_bundle=b"AB")
    assert next_step(state, NOW) == CheckPeers()
    assert next_step(replace(state, stale_peers=("n-1",)), NOW) == Idle(("n-1",))
    assert next_step(replace(state, stale_peers=()), NOW) == PromoteNextCa()
    state = replace(state, ca=SIGNING)
    assert next_step(state, NOW) == IssueCertificate(CONTROLLER)
    assert next_step(replace(state, stale_peers=()), NOW) == IssueCertificate(CONTROLLER)
    again = {names: issued(names, "B", b"AB") for names in (CONTROLLER, AGENT)}
    state = replace(state, issued=again)
    assert next_step(state, NOW) == CheckPeers()
    assert next_step(replace(state, stale_peers=("n-1", "pod")), NOW) == Idle(("n-1", "pod"))
    assert next_step(replace(state, stale_peers=()), NOW) == RemoveOldCa()
    state = replace(state, ca=at_rest("B", b"B").ca)
    assert next_step(state, NOW) == UpdateCaBundle(CONTROLLER)
    alone = {names: issued(names, "B", b"B") for names in (CONTROLLER, AGENT)}
    assert next_step(replace(state, issued=alone), NOW) == UpdateWebhookCaBundle()
    assert next_step(replace(state, issued=alone, webhook_bundle=b"B"), NOW) == Idle()


def test_a_second_request_waits_for_the_first_rotation() -> None:
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    state = ObservedState(INTRODUCED, both, b"AB", True, ("n-1",))
    assert next_step(state, NOW) == Idle(("n-1",))


def test_a_certificate_is_renewed_in_the_middle_of_a_rotation_by_who_signs_then() -> None:
    both = {CONTROLLER: issued(CONTROLLER, "A", b"AB"), AGENT: issued(AGENT, "A", b"AB", age=70)}
    assert next_step(ObservedState(INTRODUCED, both, b"AB", False, ("n-1",)), NOW) == IssueCertificate(AGENT)


def test_a_lost_ca_is_replaced_as_if_it_were_rotated() -> None:
    """What it signed stays in use until all trust its successor, unless one is due: nobody could sign it."""
    state = replace(at_rest(), ca=LOST)
    assert next_step(state, NOW) == UpdateCaBundle(CONTROLLER)
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    state = ObservedState(LOST, both, b"AB", False, ("n-1",))
    assert next_step(state, NOW) == Idle(("n-1",))
    assert next_step(replace(state, stale_peers=()), NOW) == PromoteNextCa()
    due = {**both, AGENT: issued(AGENT, "A", b"AB", age=70)}
    assert next_step(replace(state, issued=due), NOW) == PromoteNextCa()


def test_an_expired_ca_waits_for_nobody() -> None:
    """No peer could be asked over a connection that it vouches for."""
    expired = CaState(ca_certificate("A", 3001), ca_certificate("B"), False, b"AB")
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    assert next_step(ObservedState(expired, both, b"AB", False, None), NOW) == PromoteNextCa()
