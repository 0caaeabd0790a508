"""The agent's refusals in the words of its user: names instead of ids, human sizes, commands instead of CSI's calls.

The agent's own messages stay as they are: the kubelet writes them into events, where an id is what people look for.
"""

import re
from typing import TYPE_CHECKING

from csi_driver.cli.failure import Failure
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.sizes import show

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import CallRefused, Client, PoolSpace

_ID = re.compile(r"(?<![\w.-])(?:[A-Za-z0-9][A-Za-z0-9._-]{0,62}|\*):[a-z0-9-]{1,31}:[0-9a-f]{32}(?![0-9a-f])")

_IN_USE = re.compile(r"is (?:still )?(?:in use|published|staged|shown) at|is held by|holds it for a rollback")

_SAME_NAME = re.compile(r"\b(volume|snapshot) '([^']+)' exists as \2(?![\w.-])")
"""The agent names the id that the name has: here that is the name again, unless the volume was renamed."""

_FREE_IT = re.compile(
    r"(?:stop the pods or processes that use it, then )?"
    r"(?:unpublish and unstage|unpublish or unmount|unstage or unmount|unpublish|unstage) it(?: there)?(?: first)?"
)

_BYTES = re.compile(
    r"(?P<before>\b(?:limit|required|source's|least is|at most|ask for|reserve) )?\b(?P<count>\d{4,})"
    r"(?P<after> more bytes| bytes(?: more)?|(?= (?:are needed|are requested|or more)\b))?"
)

_WORDS = (
    (re.compile(r"\bCreateVolume of "), "creating volume "),
    (re.compile(r"\bDeleteVolume of "), "deleting "),
    (re.compile(r"\bControllerExpandVolume of |\bNodeExpandVolume of "), "expanding "),
    (re.compile(r"\bCreateSnapshot (?:of )?"), "taking snapshot "),
    (re.compile(r"\bDeleteSnapshot of "), "deleting snapshot "),
    (re.compile(r"\bCreateVolumeGroupSnapshot (?:of )?"), "taking group snapshot "),
    (re.compile(r"\bDeleteVolumeGroupSnapshot (?:of )?"), "deleting group snapshot "),
    (re.compile(r"\bNode(?:Stage|Publish)Volume of "), "mounting "),
    (re.compile(r"\bNode(?:Unstage|Unpublish)Volume of "), "unmounting "),
    (re.compile(r"\bis (still )?(?:published|staged|shown) (read-only |writable )?at\b"), r"is \1mounted \2at"),
    (re.compile(r"\bis not (?:staged|shown) at\b"), "is not mounted at"),
    (re.compile(r"\bstage it(?: there)? first\b"), "mount it first"),
    (re.compile(r"\bunstage and stage the volume\b"), "unmount and mount the volume"),
    (re.compile(r"\bthe next stage\b"), "the next mount"),
    (re.compile(r"\b(?:unpublished|unstaged)\b"), "unmounted"),
    (re.compile(r"\b(?:published|staged)\b"), "mounted"),
    (re.compile(r"\b(?:unpublishing|unstaging)\b"), "unmounting"),
    (re.compile(r"\b(?:publishing|staging)\b(?! path| director)"), "mounting"),
    (re.compile(r"\bthe StorageClass names pool\b"), "--pool names"),
    (re.compile(r"; use a StorageClass of that pool, or one that names none"), "; name that pool, or none"),
    (re.compile(r"\bparameter pool="), "--pool "),
    (re.compile(r"\bask for block access\b"), "use --block"),
    (re.compile(r"(?<=differs in )its capabilities\b"), "its file system (--fs, --block)"),
    # The directory in which a volume is mounted before it is shown: it says nothing to people.
    (re.compile(r"(?<=^grow failed: ext4) at \S+(?= cannot grow)"), ""),
)


def explain(refused: "CallRefused", client: "Client") -> str:
    """Return what to tell the user of a call that was refused. `client` is asked for the names."""
    ids = _ID.findall(refused.message)
    objects = _read(client) if ids else AgentObjects(())
    return in_our_words(refused, objects)


def in_our_words(refused: "CallRefused", objects: AgentObjects) -> str:
    """Return the same with names that are known already."""
    message = refused.message
    volumes = [node for node in map(objects.get, _ID.findall(message)) if node is not None and node.kind == "volume"]
    first = volumes[0] if volumes else None
    if refused.code == "FAILED_PRECONDITION" and first and _IN_USE.search(message) and (first.used_by or first.holder):
        return str(objects.in_use(first))
    free_it = f"`tidemark umount {objects.argument(first)}` first" if first else "unmount it first"
    message = _FREE_IT.sub(lambda _: free_it, message)
    for pattern, replacement in _WORDS:
        message = pattern.sub(replacement, message)
    message = _BYTES.sub(_human, message)
    message = _ID.sub(lambda match: _name(match.group(), objects), message)
    return _SAME_NAME.sub(r"\1 \2 exists", message)


def no_space(pool: "PoolSpace", needed: int) -> str:
    """Return why a pool cannot take `needed` more bytes of volumes, and what changes that."""
    if pool.free < pool.reserve:
        return (
            f"pool {pool.name} has {show(pool.free)} free, less than its reserve of {show(pool.reserve)}: it takes nothing new; "
            "delete volumes or snapshots (`tidemark tree` shows what each would free), enlarge the pool, or lower --reserve"
        )
    for limit in pool.limits:
        if limit.passed:
            remedy = f", or {limit.remedy}" if limit.remedy else ""
            return (
                f"pool {pool.name} takes nothing new: {show(limit.used)} of {show(limit.total)} of its {limit.name} are used; delete "
                f"snapshots or volumes{remedy}"
            )
    ceiling = int(pool.total * pool.overcommit)
    count = f"{pool.volumes} volume{'' if pool.volumes == 1 else 's'}"
    return (
        f"{show(needed)} are needed, and pool {pool.name} can reserve {show(pool.available)} more: {show(pool.committed)} of "
        f"{show(ceiling)} are reserved for {count} ({show(pool.total)} times the overcommit ratio of {pool.overcommit:g}); "
        "delete volumes, enlarge the pool, or raise the agent's --overcommit"
    )


def space_failure(refused: "CallRefused", client: "Client", objects: AgentObjects, pool: str, needed: int) -> Failure:
    """Return why a volume cannot have its size: the sums of the pool, if these are the reason."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    words = in_our_words(refused, objects)
    if refused.code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE") and needed > 0:
        try:
            pools = [item for item in client.pools() if pool in ("", item.name)]
        except CallRefused:
            return Failure(words)
        if pools and (needed > pools[0].available or pools[0].free < pools[0].reserve):
            return Failure(no_space(pools[0], needed))
    return Failure(words)


def _read(client: "Client") -> AgentObjects:
    from csi_driver.rpc.clients.cli_client import CallRefused

    try:
        return AgentObjects.read(client)
    except CallRefused:
        return AgentObjects(())


def _name(object_id: str, objects: AgentObjects) -> str:
    node = objects.get(object_id)
    return objects.name(node) if node else object_id


def _human(match: "re.Match[str]") -> str:
    before, count, after = match.group("before"), match.group("count"), match.group("after")
    if before is None and after is None:
        return match.group()
    more = " more" if after and "more" in after and "or more" not in after else ""
    return f"{before or ''}{show(int(count))}{more}"
