"""The schema of records: the number that each begins with, and the steps from one to the next.

A new key needs no other number: it is optional, and an older driver keeps it. The number rises where an older driver must
not go on: a new value of a key that has a fixed set of them, or another meaning. The release before that one reads the new
schema already and writes the old one, so that `helm rollback` finds what it can read.
"""

import json
from collections.abc import Callable
from typing import Any

from csi_driver.domain.errors import Damaged
from csi_driver.domain.fields import Fields

SCHEMA = 1
"""What is written, and the newest that is read."""

STEPS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}
"""By the schema that a step begins at: given kind and record, the record as the next schema has it."""


def dump(raw: dict[str, Any]) -> bytes:
    """A record as bytes to be written."""
    numbered = {"schema": SCHEMA} | raw
    try:
        return json.dumps(numbered, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, in what another version noted: only an escape can hold that
        return json.dumps(numbered, separators=(",", ":")).encode()


def load(data: bytes, kind: str) -> Fields:
    """A record of this kind, as this schema has it. Raises Damaged that names both numbers where no step leads here."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"a record is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise Damaged(f"a record of another kind lies where a {kind}'s must")
    fields = Fields(_as_this_one(raw, kind), f"a {kind}'s record")
    fields.number("schema")
    fields.text("kind")
    return fields


def _as_this_one(raw: dict[str, Any], kind: str) -> dict[str, Any]:
    found = raw.get("schema")
    if type(found) is not int or found < 1:
        raise Damaged(f"a {kind}'s record has schema {found!r}, which no driver wrote; this driver reads {SCHEMA}")
    if found > SCHEMA:
        raise Damaged(
            f"a {kind}'s record has schema {found}, and this driver reads {SCHEMA}: a newer driver wrote it; use that one again"
        )
    for schema in range(found, SCHEMA):
        step = STEPS.get(schema)
        if step is None:
            raise Damaged(
                f"a {kind}'s record has schema {found}, this driver reads {SCHEMA} and has no step from {schema} to "
                f"{schema + 1}: use the versions between the two first, in their order"
            )
        raw = step(kind, raw) | {"schema": schema + 1}
    return raw
