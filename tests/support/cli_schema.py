"""The published schema of the command line's documents, made strict: a field that it does not have fails a test."""

import json
from pathlib import Path
from typing import Any

import jsonschema

TREE = Path(__file__).resolve().parent.parent.parent
SCHEMA: dict[str, Any] = json.loads((TREE / "docs" / "reference" / "cli-schema.json").read_text())
OPEN = {"custom_resource", "volume_rollback"}
"""Definitions with fields of Kubernetes."""


def validate(document: Any, definition: str, many: bool = False) -> None:
    """Fail unless a document, or each of a list, is as the schema says, with no other fields."""
    strict = json.loads(json.dumps(SCHEMA))
    for name, part in strict["$defs"].items():
        if name not in OPEN:
            part["additionalProperties"] = False
    reference = {"$ref": f"#/$defs/{definition}"}
    strict |= {"type": "array", "items": reference, "minItems": 1} if many else reference
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(strict, format_checker=checker).validate(document)
