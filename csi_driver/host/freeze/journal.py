"""Freezes announced on disk before they are made: the kernel does not tell whether a file system is frozen."""

import json
import os
import re
from typing import Any

from csi_driver.host.fs.files import write_durably

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".frozen.json"

SCHEMA = 1
"""Of an announcement that is a list of facts. A later one is an object with its number as `schema` and the `boot` that it is of."""


def boot_id() -> str:
    """Tell which boot of the kernel this is: a freeze does not outlive its boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def entry_for(point: str, major: int, minor: int, backing: tuple[int, int]) -> dict[str, object]:
    """Make the facts to announce for one mount; `backing`: (st_dev, st_ino) of the image behind the loop device.

    The result can be given to the `thaw` job as one of its mounts.
    """
    return {"point": point, "major": major, "minor": minor, "backing": list(backing), "boot": boot_id()}


def record(directory: str, key: str, facts: object) -> None:
    """Write durably that a freeze is about to be made; when this returns, a power cut cannot take it back.

    `key`: letters, digits, `.`, `_`, `-`, at most 200, no dot first (ValueError); an older announcement of the same key is
    replaced, so a cut takes one that no other has. `facts`: JSON; for a group a list, made at once (one fsync for all
    members). Raises OSError: do not freeze then.
    """
    write_durably(_announcement(directory, key), json.dumps(facts).encode())


def remove(directory: str, key: str) -> None:
    """Take an announcement back once its file systems are known to be thawed. One that is not there is no error. Raises OSError.

    Not synced: if a power cut brings it back, its boot id says that it is void.
    """
    try:
        os.unlink(_announcement(directory, key))
    except FileNotFoundError:
        return


def remove_entry(directory: str, key: str, fact: object) -> None:
    """Take one fact of an announcement that is a list back; without any it goes. One caller at a time. Raises OSError."""
    facts = announced(directory).get(key)
    if not isinstance(facts, list):
        return
    left = [other for other in facts if other != fact]
    if left:
        record(directory, key, left)
    else:
        remove(directory, key)


def announced(directory: str) -> dict[str, object]:
    """Read all announcements: key to what is in it, None where that is not JSON; `of_boot` tells what of it counts.

    A directory that is not there holds none. Raises OSError otherwise.
    """
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    found: dict[str, object] = {}
    for name in names:
        key = name.removesuffix(_SUFFIX)
        if key == name or not _KEY.fullmatch(key):
            continue
        try:
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                found[key] = json.load(file)
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError):
            found[key] = None
    return found


def of_boot(found: object, boot: str) -> list[dict[str, Any]]:
    """The facts of an announcement that count: freezes of another boot are over. What a fact holds besides stays in it.

    Raises ValueError where that cannot be told, and file systems may be frozen: what it is, and what is known here.
    """
    if isinstance(found, dict) and "schema" in found:
        if isinstance(found.get("boot"), str) and found["boot"] != boot:
            return []
        raise ValueError(f"it has schema {found['schema']!r}, and this driver reads {SCHEMA}")
    if not isinstance(found, list):
        raise ValueError("it is no list of freezes")
    return [fact for fact in map(_fact, found) if fact["boot"] == boot]


def _fact(found: Any) -> dict[str, Any]:
    fact: dict[str, Any] = found if isinstance(found, dict) else {}
    backing = fact.get("backing", [])
    numbers = [fact.get("major"), fact.get("minor"), *(backing if isinstance(backing, list) else [None])]
    texts = [fact.get("boot"), fact.get("point")]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("one of its freezes does not say of what it is")
    return fact


def _announcement(directory: str, key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key for an announcement: {key!r}")
    return os.path.join(directory, key + _SUFFIX)
