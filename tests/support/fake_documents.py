"""Merge patches (RFC 7396) and selectors, as far as the fake API needs them."""

from __future__ import annotations

import copy
import re
from typing import Any

Object = dict[str, Any]


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """The target with the patch merged in; neither is changed."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = apply_merge_patch(merged.get(key), value)
    return merged


def matches(obj: Object, labels: str, fields: str) -> bool:
    """Whether an object is meant by a label selector and by a field selector (any path, equality only)."""
    have = obj["metadata"].get("labels") or {}
    if not all(_label(have, term.strip()) for term in re.split(r",(?![^(]*\))", labels) if term.strip()):
        return False
    for term in filter(None, fields.split(",")):
        path, operator, wanted = re.split(r"(!=|==|=)", term, maxsplit=1)
        found: Any = obj
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        if (found == wanted) == (operator == "!="):
            return False
    return True


def _label(have: dict[str, str], term: str) -> bool:
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", term):
        listed = have.get(found[1]) in [value.strip() for value in found[3].split(",")]
        return listed == (found[2] == "in")
    if found := re.fullmatch(r"([^!=\s]+)\s*(!=|==|=)\s*(\S*)", term):
        return (have.get(found[1]) == found[3]) == (found[2] != "!=")
    return term[1:] not in have if term.startswith("!") else term in have
