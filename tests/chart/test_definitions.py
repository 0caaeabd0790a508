"""The definitions of our kinds: every key is one that a definition may have, since an API server drops others without a word.

The validator of test_rendering.py does not look into openAPIV3Schema, whose own schema contains itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rig import CHART, Document, StrictLoader

FILES = sorted((CHART / "files" / "crds").glob("*.yaml"))

SCHEMA = frozenset(
    "additionalItems additionalProperties allOf anyOf default definitions dependencies description enum example "
    "exclusiveMaximum exclusiveMinimum externalDocs format id items maxItems maxLength maxProperties maximum minItems "
    "minLength minProperties minimum multipleOf not nullable oneOf pattern patternProperties properties required title type "
    "uniqueItems x-kubernetes-embedded-resource x-kubernetes-int-or-string x-kubernetes-list-map-keys x-kubernetes-list-type "
    "x-kubernetes-map-type x-kubernetes-preserve-unknown-fields x-kubernetes-validations".split()
)
"""JSONSchemaProps of apiextensions.k8s.io/v1."""

PARTS = {
    "": "apiVersion kind metadata spec",
    ".metadata": "name labels annotations",
    ".spec": "conversion group names preserveUnknownFields scope versions",
    ".spec.names": "categories kind listKind plural shortNames singular",
    ".spec.versions[]": (
        "additionalPrinterColumns deprecated deprecationWarning name schema selectableFields served storage subresources"
    ),
    ".spec.versions[].schema": "openAPIV3Schema",
    ".spec.versions[].subresources": "scale status",
    ".spec.versions[].additionalPrinterColumns[]": "description format jsonPath name priority type",
}
"""CustomResourceDefinition of the same API, object by object, down to the schema."""

RULE = {"fieldPath", "message", "messageExpression", "optionalOldSelf", "reason", "rule"}
"""One of x-kubernetes-validations."""


def strays(node: Any, path: str = "") -> Iterator[str]:
    """Keys of a definition that none has, by their paths."""
    if isinstance(node, list):
        for one in node:
            yield from strays(one, f"{path}[]")
    elif path.endswith(".openAPIV3Schema"):
        yield from strays_of_schema(node, path)
    elif isinstance(node, dict) and path in PARTS:
        yield from (f"{path}.{key}" for key in node if key not in PARTS[path].split())
        for key, value in node.items():
            yield from strays(value, f"{path}.{key}")


def strays_of_schema(node: Document, path: str) -> Iterator[str]:
    """The same for a schema, and those within it."""
    yield from (f"{path}.{key}" for key in node if key not in SCHEMA)
    for name, field in node.get("properties", {}).items():
        yield from strays_of_schema(field, f"{path}.{name}")
    for key in ("items", "additionalProperties", "not"):
        if isinstance(node.get(key), dict):
            yield from strays_of_schema(node[key], f"{path}.{key}")
    for key in ("allOf", "anyOf", "oneOf"):
        for one in node.get(key, []):
            yield from strays_of_schema(one, f"{path}.{key}[]")
    for rule in node.get("x-kubernetes-validations", []):
        yield from (f"{path}: a rule's {key}" for key in rule if key not in RULE)


def sentences(node: Any, path: str = "") -> Iterator[str]:
    """Texts for a reader that are none any more, or that end where a comma was."""
    if isinstance(node, list):
        for one in node:
            yield from sentences(one, f"{path}[]")
    elif isinstance(node, dict):
        for key, value in node.items():
            is_text = key == "description" and not path.endswith(".properties")
            if is_text and not (isinstance(value, str) and value.endswith(".")):
                yield f"{path}.{key}: {value}"
            yield from sentences(value, f"{path}.{key}")


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_key_of_a_definition_is_one_that_definitions_have(path: Path) -> None:
    definition = yaml.load(path.read_text(), StrictLoader)
    assert list(strays(definition)) == []
    assert list(sentences(definition)) == []


def test_a_comma_without_quotes_is_found() -> None:
    """In `{...}` it ends the text, and what follows is a key without a value."""
    (path,) = [path for path in FILES if path.stem == "snapshotschedules"]
    text = path.read_text()
    broken = text.replace('"The reason, in one word."', "The reason, in one word.")
    assert broken != text
    definition = yaml.load(broken, StrictLoader)
    assert [one.rpartition(".conditions.")[2] for one in strays(definition)] == ["items.reason.in one word."]
    assert [one.rpartition(".")[2] for one in sentences(definition)] == ["description: The reason"]
