"""Freezes announced on disk before they are made: the kernel does not tell whether a file system is frozen."""

import json
import os
import re

from csi_driver.host.files import write_durably

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".frozen.json"


def boot_id() -> str:
    """Tell which boot of the kernel this is: a freeze does not outlive its boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def freeze_facts(point: str, major: int, minor: int, backing: tuple[int, int]) -> dict[str, object]:
    """Make the facts to announce for one mount; `backing`: (st_dev, st_ino) of the image behind the loop device.

    The result can be given to the `thaw` job as one of its mounts.
    """
    return {"point": point, "major": major, "minor": minor, "backing": list(backing), "boot": boot_id()}


def announce(directory: str, key: str, facts: object) -> None:
    """Write durably that a freeze is about to be made; when this returns, a power cut cannot take it back.

    `key`: letters, digits, `.`, `_`, `-`, at most 200, no dot first (ValueError); an older announcement of the same key is
    replaced, so a cut takes one that no other has. `facts`: JSON; for a group a list, made at once (one fsync for all
    members). Raises OSError: do not freeze then.
    """
    write_durably(_announcement(directory, key), json.dumps(facts).encode())


def withdraw(directory: str, key: str) -> None:
    """Take an announcement back once its file systems are known to be thawed. One that is not there is no error. Raises OSError.

    Not synced: if a power cut brings it back, its boot id says that it is void.
    """
    try:
        os.unlink(_announcement(directory, key))
    except FileNotFoundError:
        return


def drop(directory: str, key: str, fact: object) -> None:
    """Take one fact of an announcement that is a list back; without any it goes. One caller at a time. Raises OSError."""
    facts = announced(directory).get(key)
    left = [other for other in facts if other != fact] if isinstance(facts, list) else []
    if left:
        announce(directory, key, left)
    else:
        withdraw(directory, key)


def announced(directory: str) -> dict[str, object]:
    """Read all announcements: key to facts, None where a file cannot be read (somebody must look; thaw nothing by guess).

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
        except ValueError:
            found[key] = None
    return found


def _announcement(directory: str, key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key for an announcement: {key!r}")
    return os.path.join(directory, key + _SUFFIX)
