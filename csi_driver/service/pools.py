"""The pools of this agent, each with its index in memory: built when the pool is opened, changed after the pool was."""

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress

from csi_driver.backends.base import Backend, Changes
from csi_driver.domain.capacity import CapacityPolicy, CapacityReport, Space, reserved_for_thick
from csi_driver.domain.errors import DriverError, NotFound, OutOfSpace, Unavailable
from csi_driver.domain.ids import ObjectId, PoolRef, parse
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.service.locks import Locks
from csi_driver.service.space_cache import SpaceCache


class Pool:
    """One backend and what lies in it."""

    def __init__(self, backend: Backend, policy: CapacityPolicy) -> None:
        self.backend = backend
        self.policy = policy
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.groups: dict[str, GroupSnapshot] = {}
        self.pending = 0
        """Bytes of volumes being made or grown now: promised, though not yet in the index."""
        self.pending_thick = 0
        """Real space reserved for operations in progress on thick volumes, see reservations.py."""
        self.unavailable_reason: DriverError | None = Unavailable(f"pool {self.name} is not open yet: try again")
        self._committed = 0
        self._space = SpaceCache(self._ask_space, backend.space_max_age)
        self._snapshots_of: dict[str, set[str]] = {}

    @property
    def name(self) -> str:
        """The pool's name, unique in its agent."""
        return self.backend.identity.name

    @property
    def ref(self) -> PoolRef:
        """The pool's name among those of all nodes, which makes the ids of what is in it."""
        return PoolRef(self.backend.identity.owner, self.backend.identity.name)

    @property
    def granule(self) -> int:
        """What the size of a volume is a multiple of, in bytes."""
        return self.backend.traits.granule

    @property
    def way_out(self) -> str:
        """What makes room, for the end of a refusal: in an empty pool there is nothing to delete."""
        if self.volumes or self.snapshots:
            return "delete something first"
        return (
            "the pool is empty, so make it larger, or its reserve smaller (--reserve; in the chart: agent.reserve), or ask "
            "for less"
        )

    def remedy(self, account: CapacityReport) -> str:
        """What makes room, for the end of a refusal: `way_out`, and what makes more of a limit that is passed."""
        limit = account.passed_limit
        return f"{limit.remedy}, or {self.way_out}" if limit is not None and limit.remedy else self.way_out

    async def open(self) -> None:
        """Open the backend and build the index. What it raises is also what every call on the pool answers."""
        try:
            contents = await self.backend.open()
        except DriverError as error:
            self.unavailable_reason = error
            raise
        for volume in contents.volumes:
            self.put_volume(volume)
        for snapshot in contents.snapshots:
            self.put_snapshot(snapshot)
        for group in contents.groups:
            self.put_group(group)
        self.unavailable_reason = None

    async def refresh(self) -> None:
        """Take what other agents have changed into the index. Raises Unavailable."""
        self.apply(await self.backend.refresh())

    def apply(self, changes: Changes | None) -> None:
        """Change the index as other agents have changed the pool."""
        if changes is None:
            return
        for digest in changes.gone:
            self.drop_group(digest)
            self.drop_snapshot(digest)
            self.drop_volume(digest)
        for volume in changes.volumes:
            self.put_volume(volume)
        for snapshot in changes.snapshots:
            self.drop_snapshot(snapshot.id.hash)
            self.put_snapshot(snapshot)
        for group in changes.groups:
            self.drop_group(group.id.hash)
            self.put_group(group)

    def ensure_available(self) -> "Pool":
        """This pool, if it can be looked into now; raises Unavailable otherwise."""
        if self.unavailable_reason is not None:
            raise Unavailable(
                f"pool {self.name} of {self.backend.identity.owner} is not served: {self.unavailable_reason}"
            )
        self.backend.check()
        return self

    async def account(self) -> CapacityReport:
        """Return the sums behind an answer about capacity. Nothing else runs between them and the caller."""
        return self._report(await self._space.get())

    async def _ask_space(self) -> Space:
        return await self.backend.space()

    def last_account(self) -> CapacityReport | None:
        """Return the sums by the space that was asked for last, without asking the backend; None before the first answer."""
        return self._report(self._space.last) if self._space.last is not None else None

    def _report(self, space: Space) -> CapacityReport:
        thick = [v for v in self.volumes.values() if v.thick]
        # What is not known may still have to be taken in full.
        allocated = {v.id.hash: self.backend.allocated(v) or 0 for v in thick}
        beside = sum(volume.size for volume in thick) if space.thick_free is not None else 0
        return CapacityReport(
            space,
            self.policy,
            self._committed - beside + self.pending,
            reserved_for_thick(thick, allocated) + self.pending_thick,
            self.pending_thick,
        )

    def space_changed(self) -> None:
        """Note that something was made, grown or deleted, or failed on the way: the space is asked for again."""
        self._space.changed()

    def put_volume(self, volume: Volume) -> None:
        """Index a new or changed volume."""
        self.drop_volume(volume.id.hash)
        self.volumes[volume.id.hash] = volume
        self._committed += volume.size

    def drop_volume(self, digest: str) -> None:
        """Forget a deleted volume."""
        volume = self.volumes.pop(digest, None)
        if volume is None:
            return
        self._committed -= volume.size
        self.space_changed()

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Index a new snapshot."""
        self.space_changed()
        self.snapshots[snapshot.id.hash] = snapshot
        self._snapshots_of.setdefault(snapshot.source_uid, set()).add(snapshot.id.hash)

    def drop_snapshot(self, digest: str) -> None:
        """Forget a deleted snapshot."""
        snapshot = self.snapshots.pop(digest, None)
        if snapshot is not None:
            self.space_changed()
            left = self._snapshots_of[snapshot.source_uid]
            left.discard(digest)
            if not left:
                del self._snapshots_of[snapshot.source_uid]

    def put_group(self, group: GroupSnapshot) -> None:
        """Index a new group and its members."""
        self.groups[group.id.hash] = group
        for member in group.members:
            self.put_snapshot(member)

    def drop_group(self, digest: str) -> None:
        """Forget a deleted group and its members."""
        group = self.groups.pop(digest, None)
        for member in group.members if group else ():
            self.drop_snapshot(member.id.hash)

    def snapshots_of(self, uid: str) -> list[Snapshot]:
        """The snapshots of one volume, told by its uid: a name made again has no claim on the old one's."""
        return [self.snapshots[digest] for digest in self._snapshots_of.get(uid, ())]

    def snapshot_count(self, uid: str) -> int:
        """Return how many snapshots a volume has. Other threads may ask too."""
        return len(self._snapshots_of.get(uid, ()))


class Pools:
    """All pools of this agent under their names; the first is the default."""

    def __init__(self, owner: str, pools: list[Pool]) -> None:
        self.owner = owner
        self._pools = {pool.name: pool for pool in pools}
        self.default = pools[0]
        self.locks = Locks()

    async def refresh(self) -> None:
        """Bring the index of each shared pool up to date; a pool that is unavailable says so where it is asked for something."""
        for pool in self:
            if pool.backend.traits.shared and pool.unavailable_reason is None:
                with suppress(Unavailable):
                    await pool.refresh()

    @asynccontextmanager
    async def hold(
        self,
        pool: Pool,
        operation: str,
        exclusive: Collection[str] = (),
        shared: Collection[str] = (),
        creating_or_deleting: Collection[str] = (),
    ) -> AsyncIterator[None]:
        """Lock objects of one pool as `Locks.hold` does, in a shared pool against other agents too.

        After it, the index has them as they are. Raises Busy, Unavailable.
        """
        async with (
            self.locks.hold(operation, exclusive, shared, creating_or_deleting),
            pool.backend.guard(exclusive, shared, creating_or_deleting) as changes,
        ):
            pool.apply(changes)
            yield

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def all_serving(self) -> list[Pool]:
        """Every pool, or Unavailable: a list must never be shorter than the truth."""
        return [pool.ensure_available() for pool in self]

    def all_for_name_lookup(self) -> list[Pool]:
        """Every pool, for a search by name. Raises Unavailable where one was never opened: it may hold anything.

        A pool whose disk has gone since still tells by its index what it holds, and nothing can have come to it: it must not
        keep the others from their work. Whoever finds something in it asks `serving` before he answers.
        """
        for pool in self:
            if pool.unavailable_reason is not None:
                pool.ensure_available()
        return list(self)

    def known(self, name: str) -> Pool | None:
        """A pool by its name, served or not."""
        return self._pools.get(name)

    def granule_of(self, object_id: ObjectId) -> int:
        """Return what sizes are multiples of in the pool of an object of this agent."""
        return self._pools[object_id.pool].granule

    def is_shared(self, name: str) -> bool:
        """Whether the pool that a class asks for is reached from every node; empty: the default."""
        pool = self._pools.get(name) if name else self.default
        return pool is not None and pool.ref.shared

    def named(self, name: str) -> Pool:
        """The pool that a class asks for. Raises OutOfSpace: another node may have it, so the scheduler may look on."""
        pool = self._pools.get(name) if name else self.default
        if pool is None:
            raise OutOfSpace(
                f"pool {name!r} is not on node {self.owner} (here: {', '.join(self._pools)}): choose another"
            )
        return pool.ensure_available()

    def locate(self, text: str) -> tuple[Pool, str] | None:
        """The pool and hash of an id; None where it cannot be one of ours. Raises Unavailable for another owner's."""
        place = self.parse_location(text)
        return (place[0].ensure_available(), place[1]) if place else None

    def parse_location(self, text: str) -> tuple[Pool, str] | None:
        """As `locate`, also for a pool that is not served now: only what does not ask the pool may go on with it."""
        parsed: ObjectId | None = parse(text)
        if parsed is None:
            return None
        pool = self._pools.get(parsed.pool)
        if parsed.owner != (self.owner if pool is None else pool.ref.owner):
            raise Unavailable(f"{text} belongs to {parsed.owner}, this is {self.owner}: ask there")
        if pool is None:
            raise Unavailable(
                f"pool {parsed.pool} of {self.owner} is not served by this agent: attach its disk, start with it"
            )
        return pool, parsed.hash

    def find_volume(self, text: str) -> tuple[Pool, Volume] | None:
        """A volume by id, or None where a pool that was looked into has none."""
        place = self.locate(text)
        volume = place[0].volumes.get(place[1]) if place else None
        return (place[0], volume) if place and volume else None

    def find_snapshot(self, text: str) -> tuple[Pool, Snapshot] | None:
        """A snapshot by id, or None where a pool that was looked into has none."""
        place = self.locate(text)
        snapshot = place[0].snapshots.get(place[1]) if place else None
        return (place[0], snapshot) if place and snapshot else None

    def volume(self, text: str) -> tuple[Pool, Volume]:
        """A volume by id. Raises NotFound."""
        found = self.find_volume(text)
        if found is None:
            raise NotFound(f"volume {text!r} does not exist: `tidemark volume list` shows those that do")
        return found

    def snapshot(self, text: str) -> tuple[Pool, Snapshot]:
        """A snapshot by id. Raises NotFound."""
        found = self.find_snapshot(text)
        if found is None:
            raise NotFound(f"snapshot {text!r} does not exist: `tidemark snapshot list` shows those that do")
        return found
