from __future__ import annotations

import inspect

import grpc
import pytest
from support.rpc_rig import CODE

from csi_driver.domain import errors
from csi_driver.rpc.convert import UnsupportedCapability
from csi_driver.rpc.errors import CODES, MAX_MESSAGE_BYTES, printable, to_status

EXPECTED = {
    "InvalidRequest": CODE.INVALID_ARGUMENT,
    "NotFound": CODE.NOT_FOUND,
    "AlreadyExists": CODE.ALREADY_EXISTS,
    "Busy": CODE.ABORTED,
    "TooSlow": CODE.ABORTED,
    "BadToken": CODE.ABORTED,
    "InUse": CODE.FAILED_PRECONDITION,
    "NotMountable": CODE.FAILED_PRECONDITION,
    "Precondition": CODE.FAILED_PRECONDITION,
    "OutOfSpace": CODE.RESOURCE_EXHAUSTED,
    "OutOfRange": CODE.OUT_OF_RANGE,
    "Unavailable": CODE.UNAVAILABLE,
    "OtherVersion": CODE.UNIMPLEMENTED,
    "Unsupported": CODE.UNIMPLEMENTED,
    "Damaged": CODE.INTERNAL,
}


def test_the_table_is_total() -> None:
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.DriverError) and kind is not errors.DriverError
    }
    assert set(kinds) == set(EXPECTED)
    for name, kind in kinds.items():
        assert CODES[kind] is EXPECTED[name]
        assert to_status(kind("what: do this")) == to_status(kind("what: do this"))
        assert to_status(kind("what: do this")).message == "what: do this"


def test_a_refinement_has_its_base_s_code() -> None:
    assert to_status(UnsupportedCapability("x")).code is CODE.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [RuntimeError("secret"), OSError(28, "secret"), errors.DriverError("secret")])
def test_a_defect_says_a_number_and_nothing_else(error: Exception) -> None:
    status = to_status(error)
    assert status.code is grpc.StatusCode.INTERNAL
    assert status.incident
    assert status.incident in status.message
    assert "secret" not in status.message
    assert to_status(error).incident != status.incident


@pytest.mark.parametrize("text", ["x" * 5000, "ä" * 2000, "\N{CROSS MARK}" * 700, "\0" * 4000, "a\n" * 3000])
def test_messages_are_capped_in_bytes(text: str) -> None:
    message = to_status(errors.NotFound(text)).message
    assert len(message.encode()) <= MAX_MESSAGE_BYTES
    assert "..." in message


def test_what_to_do_survives_a_long_quotation() -> None:
    message = to_status(errors.NotFound(f"volume {'x' * 100_000!r} does not exist: list those that do")).message
    assert message.startswith("volume 'xxx")
    assert message.endswith("does not exist: list those that do")


def test_messages_cannot_steer_a_terminal() -> None:
    assert printable("a\nb\x1b[31m\u202e\0", 100) == "a\\nb\\x1b[31m\\u202e\\x00"
    assert printable("größe 名前", 100) == "größe 名前"
    assert printable("\ud800", 100) == "\\ud800"
