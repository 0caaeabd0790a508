"""What all agents of a shared memory pool see: records with versions, locks that lapse, and which nodes have attached what.

A model of a pool that lies elsewhere, for tests of whatever several agents do to one pool: it has no disk and no network. An
agent is known by its session, from the opening of the pool to its end. Two things keep an agent that stood still from changing
what others have changed since, and both are the pool's own: a change names the version that it replaces (compare-and-swap), and
whoever takes over a lock that has lapsed fences the session that held it first.
"""

import time
import uuid
from collections.abc import Callable, Collection, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from csi_driver.domain.errors import Busy, InUse, Unavailable
from csi_driver.domain.model import Volume

LEASE_SECONDS = 30
"""A session that has renewed nothing for this time has lost its locks to whoever wants them."""

_V = TypeVar("_V")


@dataclass(eq=False, slots=True)
class Session:
    """One agent's time in the pool. It renews its locks for as long as its process runs.

    `stopped_at`: since when the process stands still, or is dead (Unix nanoseconds); None: it runs. `dead`: it will never go on.
    `fenced`: the pool takes nothing from it any more, for good.
    """

    node: str
    stopped_at: int | None = None
    dead: bool = False
    fenced: bool = False


@dataclass(eq=False, slots=True)
class Lock:
    """What a session has locked."""

    session: Session
    exclusive: frozenset[str]
    shared: frozenset[str]

    def excludes(self, exclusive: Collection[str], shared: Collection[str]) -> bool:
        """Whether another session cannot have these at the same time."""
        return not self.exclusive.isdisjoint({*exclusive, *shared}) or not self.shared.isdisjoint(exclusive)


@dataclass(frozen=True, slots=True)
class Entry(Generic[_V]):
    """A value, and the change that made it: a version is never used twice, nor after the value was deleted."""

    version: int
    value: _V


@dataclass(eq=False, slots=True)
class Table(Generic[_V]):
    """The records of one kind, by hash."""

    entries: dict[str, Entry[_V]] = field(default_factory=dict)


class Catalogue(Generic[_V]):
    """A shared pool as it is apart from all agents. `now` is Unix time in nanoseconds: locks lapse by it."""

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self.uuid = str(uuid.uuid4())
        self.volumes: Table[_V] = Table()
        self.snapshots: Table[_V] = Table()
        self.groups: Table[_V] = Table()
        self.links: dict[str, dict[str, set[str]]] = {}
        """What each node shows, by the volume's uid: its kernel's knowledge, which outlives an agent."""
        self._now = now
        self._sessions: list[Session] = []
        self._locks: list[Lock] = []
        self._attached: dict[str, str] = {}
        self._version = 0

    # ---- sessions

    def enter(self, node: str) -> Session:
        """Begin a session. What an earlier one of the node had locked is free: its process is gone, or must not go on."""
        for earlier in [session for session in self._sessions if session.node == node]:
            self.fence(earlier)
        session = Session(node)
        self._sessions.append(session)
        return session

    def leave(self, session: Session) -> None:
        """End a session in order."""
        self.fence(session)

    def stop(self, session: Session) -> None:
        """Let the session's process stand still from now on: it renews nothing."""
        session.stopped_at = self._now()

    def go_on(self, session: Session) -> None:
        """Let a process that stood still go on, as if nothing had been."""
        session.stopped_at = None

    def kill(self, session: Session) -> None:
        """Let the session's process be dead from now on: nothing of it reaches the pool, and what it had locked stays locked."""
        self.stop(session)
        session.dead = True

    def fence(self, session: Session) -> None:
        """Shut a session out for good, and only then give its locks away. What its node has attached stays attached."""
        session.fenced = True
        self._sessions = [other for other in self._sessions if other is not session]
        self._locks = [lock for lock in self._locks if lock.session is not session]

    def check(self, session: Session) -> None:
        """Raise Unavailable for a session that was shut out."""
        if session.dead:
            raise Unavailable(f"the agent of node {session.node} is dead")
        if session.fenced:
            raise Unavailable(
                f"node {session.node} was shut out of the pool, since it stood still for {LEASE_SECONDS} s or more while others "
                "wanted what it had locked: restart its agent"
            )

    # ---- locks

    def lock(self, session: Session, exclusive: Collection[str], shared: Collection[str]) -> Lock:
        """Lock all objects or none. A lock that has lapsed is taken over, and its session fenced. Raises Busy, Unavailable."""
        self.check(session)
        conflicts = [lock for lock in self._locks if lock.session is not session and lock.excludes(exclusive, shared)]
        for lock in conflicts:
            if not self._has_lapsed(lock.session):
                raise Busy(f"the agent of node {lock.session.node} works on the same object: try again")
        for lock in conflicts:
            self.fence(lock.session)
        made = Lock(session, frozenset(exclusive), frozenset(shared))
        self._locks.append(made)
        return made

    def unlock(self, lock: Lock) -> None:
        """Let go of a lock; fine if it was taken away."""
        if not lock.session.dead:
            self._locks = [other for other in self._locks if other is not lock]

    def _has_lapsed(self, session: Session) -> bool:
        return session.stopped_at is not None and self._now() - session.stopped_at >= LEASE_SECONDS * 1_000_000_000

    # ---- attachments

    def attach(self, session: Session, volume: Volume) -> None:
        """Note that the session's node has the volume: one node at a time, until it lets go. Raises InUse."""
        self.check(session)
        node = self._attached.setdefault(volume.uid, session.node)
        if node != session.node:
            raise InUse(f"{volume.id} is attached on node {node}: unstage it there first")

    def detach(self, session: Session, uid: str) -> None:
        """Note that the session's node has it no more; fine if it had not. Raises Unavailable."""
        self.check(session)
        if self._attached.get(uid) == session.node:
            del self._attached[uid]

    def attached_on(self, uid: str) -> str:
        """The node that has a volume; empty: none."""
        return self._attached.get(uid, "")

    def attached_by(self, session: Session) -> list[str]:
        """The uids of what the session's node has."""
        return [uid for uid, node in self._attached.items() if node == session.node]

    def next_version(self) -> int:
        """The number of a change."""
        self._version += 1
        return self._version


class View(MutableMapping[str, _V]):
    """One table as one session works on it: reads are as it is now, a change replaces only what the session has seen.

    `apart`: what belongs to a value and changes without it, such as the sizes of images. `seen`: the version of each record that
    the session read last, or wrote itself, and what was apart from it then.
    """

    def __init__(
        self,
        catalogue: Catalogue[_V],
        table: Table[_V],
        session: Callable[[], Session],
        apart: Callable[[_V], object] = lambda _: None,
    ) -> None:
        self._catalogue = catalogue
        self._table = table
        self._session = session
        self._apart = apart
        self.seen: dict[str, tuple[int, object]] = {}

    def __getitem__(self, key: str) -> _V:
        self._catalogue.check(self._session())
        return self._table.entries[key].value

    def __setitem__(self, key: str, value: _V) -> None:
        self._ensure_current(key)
        entry = Entry(self._catalogue.next_version(), value)
        self._table.entries[key] = entry
        self.seen[key] = self._seen_of(entry)

    def __delitem__(self, key: str) -> None:
        self._ensure_current(key)
        del self._table.entries[key]
        self.seen.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._table.entries))

    def __len__(self) -> int:
        return len(self._table.entries)

    def changed(self, keys: Collection[str] | None = None) -> tuple[dict[str, _V], set[str]]:
        """Return what others changed since it was read, and what is gone; of these hashes, or None: of all. It counts as read."""
        entries = self._table.entries
        wanted = {*entries, *self.seen} if keys is None else set(keys)
        new = {
            key: entries[key] for key in wanted if key in entries and self.seen.get(key) != self._seen_of(entries[key])
        }
        gone = {key for key in wanted if key in self.seen and key not in entries}
        self.seen |= {key: self._seen_of(entry) for key, entry in new.items()}
        for key in gone:
            del self.seen[key]
        return {key: entry.value for key, entry in new.items()}, gone

    def _seen_of(self, entry: Entry[_V]) -> tuple[int, object]:
        return entry.version, self._apart(entry.value)

    def _ensure_current(self, key: str) -> None:
        """Raise Unavailable for a session that is fenced, Busy where another session has changed the record."""
        self._catalogue.check(self._session())
        entry = self._table.entries.get(key)
        seen = self.seen.get(key)
        if (entry.version if entry else None) != (seen[0] if seen else None):
            raise Busy("another agent has changed the object meanwhile: try again")
