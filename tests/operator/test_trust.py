"""Which step of the certificates follows from what is observed: no step before everybody has followed the last one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from csi_driver.domain.certificates import Certificate
from csi_driver.operator.certificates.rotation import (
    Authority,
    CheckPeers,
    CreateNextCa,
    Idle,
    Issue,
    IssuedSecret,
    MakeAuthority,
    Names,
    ObservedState,
    Promote,
    RemoveOldCa,
    UpdateCaBundle,
    UpdateWebhookCaBundle,
    next_step,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AGENT: Names = ("agent",)
CONTROLLER: Names = ("controller", "hook.ns.svc")


def authority_certificate(name: str, age: int = 10) -> Certificate:
    begins = NOW - timedelta(days=age)
    return Certificate(name, (), "", begins, begins + timedelta(days=3000))


def issued(names: Names, signer: str = "A", trusts: bytes = b"A", age: int = 10) -> IssuedSecret:
    begins = NOW - timedelta(days=age)
    return IssuedSecret(trusts, Certificate(f"of {names[0]}", names, signer, begins, begins + timedelta(days=90)))


def at_rest(signer: str = "A", trusts: bytes = b"A") -> ObservedState:
    each = {names: issued(names, signer, trusts) for names in (CONTROLLER, AGENT)}
    return ObservedState(Authority(authority_certificate(signer), None, False, trusts), each, trusts, False, None)


INTRODUCED = Authority(authority_certificate("A"), authority_certificate("B"), False, b"AB")
SIGNING = Authority(authority_certificate("B"), None, True, b"AB")
LOST = Authority(None, authority_certificate("B"), True, b"AB")


def test_all_is_well() -> None:
    assert next_step(at_rest(), NOW) == Idle()
    assert next_step(replace(at_rest(), hook=None), NOW) == Idle()


def test_from_nothing() -> None:
    nothing = ObservedState(None, {CONTROLLER: None, AGENT: None}, b"", False, None)
    assert next_step(nothing, NOW) == MakeAuthority()
    made = replace(nothing, authority=at_rest().authority)
    assert next_step(made, NOW) == Issue(CONTROLLER)
    one = replace(made, issued={CONTROLLER: issued(CONTROLLER), AGENT: None})
    assert next_step(one, NOW) == Issue(AGENT)
    assert next_step(replace(one, issued=at_rest().issued), NOW) == UpdateWebhookCaBundle()


@pytest.mark.parametrize(
    ("age", "step"), [(0, Idle()), (59, Idle()), (60, Issue(AGENT)), (89, Issue(AGENT)), (400, Issue(AGENT))]
)
def test_a_certificate_is_renewed_at_two_thirds(age: int, step: object) -> None:
    seen = at_rest()
    assert next_step(replace(seen, issued={**seen.issued, AGENT: issued(AGENT, age=age)}), NOW) == step


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
    assert next_step(replace(at_rest(), issued={CONTROLLER: issued(CONTROLLER), AGENT: unfit}), NOW) == Issue(AGENT)


@pytest.mark.parametrize(("age", "step"), [(1999, Idle()), (2000, CreateNextCa()), (3100, CreateNextCa())])
def test_an_authority_is_rotated_at_two_thirds(age: int, step: object) -> None:
    old = Authority(authority_certificate("A", age), None, False, b"A")
    assert next_step(replace(at_rest(), authority=old), NOW) == step


def test_a_rotation_step_by_step() -> None:
    """Each line: what is there, and the only step that may follow."""
    seen = replace(at_rest(), wish=True)
    assert next_step(seen, NOW) == CreateNextCa()
    seen = replace(at_rest(), authority=INTRODUCED)
    assert next_step(seen, NOW) == UpdateCaBundle(CONTROLLER)
    told = issued(CONTROLLER, trusts=b"AB")
    assert next_step(replace(seen, issued={CONTROLLER: told, AGENT: issued(AGENT)}), NOW) == UpdateCaBundle(AGENT)
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    assert next_step(replace(seen, issued=both), NOW) == UpdateWebhookCaBundle()
    seen = replace(seen, issued=both, hook=b"AB")
    assert next_step(seen, NOW) == CheckPeers()
    assert next_step(replace(seen, behind=("n-1",)), NOW) == Idle(("n-1",))
    assert next_step(replace(seen, behind=()), NOW) == Promote()
    seen = replace(seen, authority=SIGNING)
    assert next_step(seen, NOW) == Issue(CONTROLLER)
    assert next_step(replace(seen, behind=()), NOW) == Issue(CONTROLLER)
    again = {names: issued(names, "B", b"AB") for names in (CONTROLLER, AGENT)}
    seen = replace(seen, issued=again)
    assert next_step(seen, NOW) == CheckPeers()
    assert next_step(replace(seen, behind=("n-1", "pod")), NOW) == Idle(("n-1", "pod"))
    assert next_step(replace(seen, behind=()), NOW) == RemoveOldCa()
    seen = replace(seen, authority=at_rest("B", b"B").authority)
    assert next_step(seen, NOW) == UpdateCaBundle(CONTROLLER)
    alone = {names: issued(names, "B", b"B") for names in (CONTROLLER, AGENT)}
    assert next_step(replace(seen, issued=alone), NOW) == UpdateWebhookCaBundle()
    assert next_step(replace(seen, issued=alone, hook=b"B"), NOW) == Idle()


def test_a_second_wish_waits_for_the_first_rotation() -> None:
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    seen = ObservedState(INTRODUCED, both, b"AB", True, ("n-1",))
    assert next_step(seen, NOW) == Idle(("n-1",))


def test_a_certificate_is_renewed_in_the_middle_of_a_rotation_by_who_signs_then() -> None:
    both = {CONTROLLER: issued(CONTROLLER, "A", b"AB"), AGENT: issued(AGENT, "A", b"AB", age=70)}
    assert next_step(ObservedState(INTRODUCED, both, b"AB", False, ("n-1",)), NOW) == Issue(AGENT)


def test_a_lost_authority_is_replaced_as_if_it_were_rotated() -> None:
    """What it signed stays in use until all trust its successor, unless one is due: nobody could sign it."""
    seen = replace(at_rest(), authority=LOST)
    assert next_step(seen, NOW) == UpdateCaBundle(CONTROLLER)
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    seen = ObservedState(LOST, both, b"AB", False, ("n-1",))
    assert next_step(seen, NOW) == Idle(("n-1",))
    assert next_step(replace(seen, behind=()), NOW) == Promote()
    due = {**both, AGENT: issued(AGENT, "A", b"AB", age=70)}
    assert next_step(replace(seen, issued=due), NOW) == Promote()


def test_an_expired_authority_waits_for_nobody() -> None:
    """No peer could be asked over a connection that it vouches for."""
    expired = Authority(authority_certificate("A", 3001), authority_certificate("B"), False, b"AB")
    both = {names: issued(names, "A", b"AB") for names in (CONTROLLER, AGENT)}
    assert next_step(ObservedState(expired, both, b"AB", False, None), NOW) == Promote()
