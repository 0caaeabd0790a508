"""Mount flags: what every kernel from 5.15 on takes, by file system. A flag outside the list is refused by name.

A flag that a mount refuses keeps a pod from its data, and the kernel's EINVAL does not say which one it was. So a new volume
may ask only for what can be mounted. For a volume that exists the flags of earlier versions are tried all the same: on an
older kernel some of them work, and where one does not, the failed mount names it.
"""

import re
from collections.abc import Iterable, Sequence

from csi_driver.domain.errors import InvalidRequest

_PLAIN = {
    "": frozenset(
        "async atime defaults diratime dirsync discard exec lazytime mand noatime nodev nodiratime nodiscard noexec "
        "nolazytime nomand nosuid relatime ro rw strictatime suid sync".split()
    ),
    "ext4": frozenset(
        "acl auto_da_alloc barrier block_validity delalloc dioread_lock dioread_nolock grpquota init_itable "
        "journal_async_commit journal_checksum noauto_da_alloc nobarrier noblock_validity nodelalloc noinit_itable noquota "
        "quota user_xattr usrquota".split()
    ),
    "xfs": frozenset(
        "attr2 filestreams ikeep inode32 inode64 largeio noalign noikeep nolargeio noquota nouuid swalloc wsync".split()
    ),
}
"""Flags without a value; under "" those of every file system."""


def _powers(least: int, most: int) -> str:
    """A pattern of the powers of two from one to the other, both included."""
    return "|".join(str(1 << bit) for bit in range(least.bit_length() - 1, most.bit_length()))


def _sizes(least: int, most: int) -> str:
    """A pattern of the powers of two from one to the other in bytes, written as xfs reads them: as they are, or with a suffix."""
    units = (("", 0), ("[kK]", 10), ("[mM]", 20), ("[gG]", 30))
    return "|".join(f"(?:{_powers(max(1, least >> bits), most >> bits)}){unit}" for unit, bits in units if most >> bits)


# A leading zero makes a kernel read the rest as octal, and refuse an 8 or a 9.
_NUMBER = r"[1-9]\d{0,8}|0[0-7]{0,8}"
_LABEL = r'"?[A-Za-z0-9_.:,-]+"?'
_VALUED = {
    "": {
        # The kubelet passes `context` where it mounts with the pod's SELinux label.
        "context": (_LABEL, 'context="system_u:object_r:container_file_t:s0"'),
        "defcontext": (_LABEL, 'defcontext="system_u:object_r:container_file_t:s0"'),
        "fscontext": (_LABEL, 'fscontext="system_u:object_r:container_file_t:s0"'),
        "rootcontext": (_LABEL, 'rootcontext="system_u:object_r:container_file_t:s0"'),
    },
    "ext4": {
        "auto_da_alloc": ("[01]", "auto_da_alloc=1"),
        "barrier": ("[01]", "barrier=1"),
        "commit": (r"[1-9]\d{0,5}|0[0-7]{0,5}", "commit=30"),
        "data": ("journal|ordered|writeback", "data=ordered"),
        "errors": ("continue|panic|remount-ro", "errors=remount-ro"),
        "init_itable": (_NUMBER, "init_itable=10"),
        "inode_readahead_blks": (f"0|{_powers(1, 1 << 30)}", "inode_readahead_blks=32"),
        "max_batch_time": (_NUMBER, "max_batch_time=15000"),
        "min_batch_time": (_NUMBER, "min_batch_time=0"),
        "stripe": (_NUMBER, "stripe=16"),
    },
    "xfs": {
        # From a page on: a node with larger pages than 4 KiB refuses the lowest. Of another number xfs takes its lowest bit.
        "allocsize": (_sizes(1 << 12, 1 << 30), "allocsize=64k"),
        "logbsize": (_sizes(1 << 14, 1 << 18), "logbsize=256k"),
        "logbufs": ("[2-8]", "logbufs=8"),
    },
}
"""Flags with a value: its form, and an example. Those that are in _PLAIN too may do without."""

_BOUNDS = {
    "allocsize": "a power of two from 4k to 1g",
    "inode_readahead_blks": "0, or a power of two up to 1073741824",
    "logbsize": "16k, 32k, 64k, 128k or 256k",
}
"""What an example does not show of a value."""

_REMOVED = {
    # Words of mount(8) alone, which no kernel was ever told.
    "": frozenset(("iversion", "norelatime", "nostrictatime")),
    # The first two are gone from newer kernels; project quotas need a feature that no volume here is made with.
    "ext4": frozenset(("noacl", "nouser_xattr", "prjquota")),
    # Of a file system that was made without stripes, as all are here, a mount refuses to change them. Quotas need a kernel that
    # was built with them.
    "xfs": frozenset(
        "sunit swidth gqnoenforce gquota grpquota pqnoenforce pquota prjquota uqnoenforce uquota usrquota".split()
    ),
}
"""Accepted by earlier versions, and not mountable on some or all kernels."""

_FLAG = re.compile(r'[A-Za-z0-9_]+(=[A-Za-z0-9_.:,"-]*)?', re.ASCII)
_TOGETHER: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # (flag, what it needs: one of these, what it must not meet)
    ("journal_async_commit", ("data=writeback", "data=journal"), ()),
    ("data=journal", (), ("delalloc",)),
)


def plain_flags(fs_type: str) -> frozenset[str]:
    """The flags of a file system that take no value, or may do without; of "" those of every one."""
    return _PLAIN[fs_type]


def examples(fs_type: str) -> dict[str, str]:
    """An example of each flag that has a value, by its name."""
    return {flag: example for flag, (_, example) in _VALUED[fs_type].items()}


def check_mount_flags(flags: Sequence[str], fs_type: str) -> None:
    """Refuse a flag that not every kernel mounts; an empty file system type allows those of either. Raises InvalidRequest.

    The flag's name alone is told: by the protocol a flag's value may be a secret.
    """
    kinds = _kinds(fs_type)
    on = f" with {fs_type}" if fs_type else ""
    for flag in flags:
        name, equals, value = flag.partition("=")
        valued = next((_VALUED[kind][name] for kind in kinds if name in _VALUED[kind]), None)
        plain = any(name in _PLAIN[kind] for kind in kinds)
        if not _FLAG.fullmatch(flag) or not (plain or valued):
            removed = any(name in _REMOVED[kind] for kind in kinds)
            why = "is refused by kernels that this driver serves" if removed else "is not allowed"
            raise InvalidRequest(f"mount flag {name!r} {why}{on}: see docs/reference/parameters.md for the list")
        if equals and valued is None:
            raise InvalidRequest(f"mount flag {name!r} takes no value: write {name}")
        if valued is not None and not (re.fullmatch(valued[0], value, re.ASCII) if equals else plain):
            bounds = f" ({_BOUNDS[name]})" if name in _BOUNDS else ""
            raise InvalidRequest(f"mount flag {name!r} needs another value: write it like {valued[1]}{bounds}")
    _check_together(flags)


def check_known_flags(flags: Iterable[str], fs_type: str) -> None:
    """Refuse what no version of this driver ever accepted: for a volume that exists the mount itself has the last word."""
    known = {name for kind in _kinds(fs_type) for name in (*_PLAIN[kind], *_VALUED[kind], *_REMOVED[kind])}
    for flag in flags:
        name = flag.partition("=")[0]
        if not _FLAG.fullmatch(flag) or name not in known:
            on = f" with {fs_type}" if fs_type else ""
            raise InvalidRequest(
                f"mount flag {name!r} is not allowed{on}: see docs/reference/parameters.md for the list"
            )


def removed_flags(flags: Iterable[str], fs_type: str) -> list[str]:
    """Those of the flags that were accepted once, and that a mount of this file system is likely to refuse."""
    removed = {name for kind in _kinds(fs_type) for name in _REMOVED[kind]}
    return [flag for flag in flags if flag.partition("=")[0] in removed]


def _kinds(fs_type: str) -> tuple[str, ...]:
    return ("", fs_type) if fs_type else ("", "ext4", "xfs")


def _check_together(flags: Sequence[str]) -> None:
    for flag, needs, must_not in _TOGETHER:
        if flag not in flags:
            continue
        if needs and not set(needs) & set(flags):
            raise InvalidRequest(f"mount flag {flag!r} alone is refused by the kernel: add {' or '.join(needs)}")
        for other in must_not:
            if other in flags:
                raise InvalidRequest(f"mount flags {flag!r} and {other!r} exclude each other: leave one out")
