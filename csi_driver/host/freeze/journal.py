"""The journal of freezes: each is recorded before it is made, since the kernel does not tell whether a file system is frozen.

A freeze does not outlive its boot, so the journal's place is node-local (docs/adr/0023-the-journal-of-freezes-is-node-local.md).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from csi_driver.host.fs.files import write_atomically, write_durably

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".frozen.json"

SCHEMA = 1
"""Of an entry that is a list of facts. A later one is an object with its number as `schema` and the `boot` that it is of."""


def boot_id() -> str:
    """Return which boot of the kernel this is: a freeze does not outlive its boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def entry_for(
    point: str,
    major: int,
    minor: int,
    backing: tuple[int, int] | None = None,
    identity: str = "",
    volume: str = "",
    dm_uuid: str = "",
) -> dict[str, object]:
    """Return what the journal says of one volume; `thaw_arguments` makes arguments of the `thaw` job from that.

    `backing`: (st_dev, st_ino) of the image behind a loop device, by which an agent before this one knows the device;
    `identity`: the device's; `volume`: the hash of the volume on it; `dm_uuid`: of the device, if it is suspended too. `point`: empty
    if it is not mounted, and only suspended: an agent before this one finds nothing there to thaw.
    """
    fact: dict[str, object] = {"point": point, "major": major, "minor": minor, "boot": boot_id()}
    optional = {
        "backing": list(backing) if backing else None,
        "identity": identity,
        "volume": volume,
        "dm_uuid": dm_uuid,
    }
    return fact | {key: value for key, value in optional.items() if value}


def thaw_arguments(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the `mounts` and `devices` of the jobs `cut` and `thaw` for what facts name."""
    return {
        "mounts": [dict(fact) for fact in facts if fact["point"]],
        "devices": [
            {"uuid": fact["dm_uuid"], "major": fact["major"], "minor": fact["minor"]}
            for fact in facts
            if fact.get("dm_uuid")
        ],
    }


def record(directory: str, key: str, facts: object) -> None:
    """Record durably that a freeze is about to be made.

    `key`: letters, digits, `.`, `_`, `-`, at most 200, no dot first (ValueError); an older entry of the same key is
    replaced, so a freeze takes one that no other has. `facts`: JSON; for a group a list, made at once (one fsync for all
    members). Raises OSError: do not freeze then.
    """
    write_durably(_path(directory, key), json.dumps(facts).encode())


def remove(directory: str, key: str) -> None:
    """Remove an entry once its file systems are known to be thawed. One that is not there is no error. Raises OSError.

    Not synced: if a power cut brings it back, its boot id says that it is void.
    """
    try:
        os.unlink(_path(directory, key))
    except FileNotFoundError:
        return


def remove_entry(directory: str, key: str, fact: object) -> None:
    """Remove one fact of an entry that is a list; an entry without facts goes. One caller at a time. Raises OSError."""
    facts = read_entries(directory).get(key)
    if not isinstance(facts, list):
        return
    left = [other for other in facts if other != fact]
    if left:
        record(directory, key, left)
    else:
        remove(directory, key)


def read_entries(directory: str) -> dict[str, object]:
    """Return all entries: key to what is in it, None where that is not JSON; `of_boot` tells what of it counts.

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
    """Return the facts of an entry that count: freezes of another boot are over. What a fact holds besides stays in it.

    Raises ValueError where that cannot be told, and file systems may be frozen: what it is, and what is known here.
    """
    if isinstance(found, dict) and "schema" in found:
        if isinstance(found.get("boot"), str) and found["boot"] != boot:
            return []
        raise ValueError(f"it has schema {found['schema']!r}, and this driver reads {SCHEMA}")
    if not isinstance(found, list):
        raise ValueError("it is not a list of freezes")
    return [fact for fact in map(_fact, found) if fact["boot"] == boot]


def _fact(found: Any) -> dict[str, Any]:
    fact: dict[str, Any] = found if isinstance(found, dict) else {}
    backing = fact.get("backing", [])
    numbers = [fact.get("major"), fact.get("minor"), *(backing if isinstance(backing, list) else [None])]
    texts = [fact.get("boot"), fact.get("point"), fact.get("dm_uuid", "")]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("one of its freezes does not say of what it is")
    return fact


def _path(directory: str, key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of the journal: {key!r}")
    return os.path.join(directory, key + _SUFFIX)


class Journal:
    """The journal of one pool. All methods block; they raise OSError.

    `directory` is node-local; empty: there is none. `pool`: the directory in the pool where agents before this one have theirs;
    empty: such a pool never had one. While both are there each entry is written to both, so that such an agent thaws what this one
    left; its node-local copy is written first and removed last, and says that there is another (`in_pool`): without that, an older
    agent has dealt with it, and what is frozen there now is somebody else's.
    """

    def __init__(self, directory: str, pool: str = "") -> None:
        self._directory, self._pool = directory, pool
        self._places = [place for place in (directory, pool) if place]

    def prepare(self) -> None:
        """Remove what an end in the midst of a write or a removal left in the node-local directory, which exists."""
        if self._directory:
            for name in os.listdir(self._directory):
                if name.startswith(".") and _SUFFIX in name:
                    os.unlink(os.path.join(self._directory, name))
            for key in set(read_entries(self._directory)) - set(self.entries()):
                remove(self._directory, key)

    def release(self) -> None:
        """Remove the node-local directory if it is empty."""
        if self._directory:
            with suppress(OSError):
                os.rmdir(self._directory)

    def entries(self) -> dict[str, object]:
        """Return all entries that may stand for a frozen file system, as `read_entries` does."""
        local = read_entries(self._directory) if self._directory else {}
        if not self._pool:
            return local
        pool = read_entries(self._pool)
        return {key: found for key, found in local.items() if not _is_also_in_pool(found)} | pool

    def path(self, key: str) -> str:
        """Return where an entry lies, for a message."""
        paths = [_path(place, key) for place in self._places]
        return next((path for path in paths if os.path.exists(path)), paths[-1])

    def record(self, key: str, facts: Sequence[Mapping[str, object]]) -> None:
        """Record a freeze that is about to be made: see the function `record`."""
        both = [dict(fact) | ({"in_pool": True} if len(self._places) > 1 else {}) for fact in facts]
        if self._directory:
            # Neither this place nor a freeze outlives a boot: what is to survive is the end of a process.
            write_atomically(_path(self._directory, key), json.dumps(both).encode())
        if self._pool:
            record(self._pool, key, both)

    def remove(self, key: str) -> None:
        """Remove an entry once its file systems are known to be thawed: see the function `remove`."""
        for place in reversed(self._places):
            remove(place, key)

    def remove_entry(self, key: str, fact: object) -> None:
        """Remove one fact of an entry: see the function `remove_entry`."""
        for place in reversed(self._places):
            remove_entry(place, key, fact)


def _is_also_in_pool(found: object) -> bool:
    return isinstance(found, list) and any(isinstance(fact, dict) and fact.get("in_pool") for fact in found)
