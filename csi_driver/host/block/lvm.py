"""Whether this machine's LVM looks into volumes. It takes for its own whatever a tenant has labelled as a physical volume.

A volume group of a guest's then shows up on the host, a restored copy is a duplicate of another's, and a logical volume that
was activated keeps its volume from being unstaged. docs/how-to/tenants-data.md says how to keep a node from that.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from csi_driver.host import commands
from csi_driver.host.block import loop_ioctl

_NAMES = ("/dev/loop0", "/dev/loop7", "/dev/loop42", "/dev/loop1000")
"""Of numbers that a volume may get: a filter must reject each of them."""
_WORD = r'"(?:[^"\\]|\\.)*"'
_SETTING = re.compile(
    rf"\b(global_filter|filter|use_devicesfile|devicesfile)\s*=\s*(\[(?:\s*{_WORD}\s*,?)*\s*\]|{_WORD}|\d+)"
)
_COMMENT = re.compile(rf"({_WORD})|#[^\n]*")
_GROUP = re.compile(r"^E:LVM_VG_NAME_(?:IN)?COMPLETE=(.*)$", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*#\s*use_devicesfile\s*=\s*(\d)", re.MULTILINE)
"""LVM's own file shows in a comment what it was built with: 1 on RHEL and its kin from 9 on, 0 on Debian and its."""


def why_looks_into_volumes(image: str, directory: str = "/etc/lvm", udev: str = "/run/udev/data") -> str:
    """Return why this machine's LVM looks into loop devices; empty: it does not, there is none, or nothing can be seen of it.

    `image`: what the file behind a volume's device is called.

    By its configuration; and by what it has done already, which is all that a container shows. Never raises.
    """
    with suppress(OSError):
        for taken in _taken(image, udev):
            return taken
    with suppress(OSError):
        return _configured(directory)
    return ""


def _taken(image: str, udev: str) -> Iterator[str]:
    for number in loop_ioctl.numbers():
        backing = loop_ioctl.sysfs(number, "loop/backing_file")
        if backing is None or os.path.basename(backing) != image:
            continue
        # What udev has written down of a device is what LVM's rule has told it, if LVM was let look.
        if group := _GROUP.search(_read(f"{udev}/b{loop_ioctl.sysfs(number, 'dev')}") or ""):
            yield f"it has found the volume group {group[1]} on /dev/loop{number}, which holds {backing}"


def _configured(directory: str) -> str:
    texts = [text for name in ("lvm.conf", "lvmlocal.conf") if (text := _read(f"{directory}/{name}")) is not None]
    if not texts:
        return "it is installed, and has no configuration that tells it not to" if commands.resolve("lvm") else ""
    settings: dict[str, str] = {}
    for text in texts:
        if default := _DEFAULT.search(text):
            settings.setdefault("use_devicesfile", default[1])
        settings |= dict(_SETTING.findall(_COMMENT.sub(lambda found: found[1] or "", text)))
    listed = settings.get("devicesfile", '"system.devices"').strip('"')
    if settings.get("use_devicesfile", "0") != "0" and os.path.exists(f"{directory}/devices/{listed}"):
        return ""  # it looks into the devices on its list alone
    for key in ("global_filter", "filter"):
        patterns = [_plain(word) for word in re.findall(_WORD, settings.get(key, ""))]
        if all(_rejects(patterns, name) for name in _NAMES):
            return ""
    return f"no global_filter in {directory}/lvm.conf rejects /dev/loop*, and no list of devices leaves them out"


def _rejects(patterns: Sequence[str], name: str) -> bool:
    """Whether a filter rejects a device: the first pattern that is found in its name decides, and what none has is accepted."""
    for pattern in patterns:
        delimiter = {"(": ")", "[": "]", "{": "}"}.get(pattern[1:2], pattern[1:2])
        expression, ends, _ = pattern[2:].rpartition(delimiter or " ")
        with suppress(re.error):
            if ends and re.search(expression, name):
                return pattern[0] == "r"
    return False


def _plain(word: str) -> str:
    """A string of LVM's configuration without its quotes."""
    return re.sub(r"\\(.)", r"\1", word[1:-1])


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
