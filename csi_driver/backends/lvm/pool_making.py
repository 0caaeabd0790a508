"""Makes pools of disks, and makes them larger: run by root on the machine itself, no agent is needed.

What went wrong is undone as far as it was done here, so that the same command can be given again.
"""

import uuid as uuids
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from csi_driver.backends.lvm import pool_plan, refusals
from csi_driver.backends.lvm.pool_plan import THIN_POOL
from csi_driver.domain.errors import AlreadyExists, Damaged, DriverError, NotFound, Precondition, Unavailable
from csi_driver.host.errors import NOT_STARTED, CommandError
from csi_driver.host.lvm import discovery, disks, program, recovery, reports, tags
from csi_driver.host.lvm.configuration import is_usable_path
from csi_driver.host.lvm.disks import Disk
from csi_driver.host.lvm.program import LvmProgram

_READ_SECONDS, _CHANGE_SECONDS = 30.0, 300.0


@dataclass(frozen=True, slots=True)
class LvmPool:
    """A pool of LVM as its disks have it. Sizes in bytes; `free`: of the volume group, for thick volumes."""

    name: str
    vg: str
    uuid: str
    devices: tuple[str, ...]
    total: int
    metadata: int
    chunk: int
    free: int


class PoolMaker:
    """Runs lvm, which sees the disks that are named and nothing else. `in_container`: the host's lvm is used if there is one."""

    def __init__(self, in_container: bool) -> None:
        try:
            self._program: LvmProgram = program.find(in_container)
        except OSError as error:
            raise Precondition(error.strerror or str(error)) from error

    # ---- what it does

    def create(self, name: str, vg: str, paths: Sequence[str], size: int | None) -> LvmPool:
        """Make a pool. `size`: bytes of its thin volumes' data, None: all. Raises DriverError, and then nothing is left of it."""
        self._reject_taken(name, vg)
        found = self._inspect(paths)
        run = self._runner([disk.stable for disk in found], vg, new_disks=True)
        uuid = str(uuids.uuid4())
        with self._physical_volumes(run, found):
            run(pool_plan.volume_group(vg, found, pool_plan.pool_identity(name, uuid), self._program.version))
            try:
                group = self._group(run, vg)
                run(pool_plan.thin_pool(vg, pool_plan.pool_sizes(group.free, group.extent_size, size)))
            except BaseException:
                with suppress(DriverError):
                    run(["vgremove", "--yes", "--force", vg])
                raise
        return self._describe(run, name, vg, uuid, tuple(disk.stable for disk in found))

    def grow(self, name: str, paths: Sequence[str]) -> tuple[int, LvmPool]:
        """Add disks to a pool, which may be in use. Returns its size before, and the pool. Raises DriverError."""
        group, identity = self._find(name)
        found = self._inspect(paths)
        before = self._devices(group.name)
        run = self._runner([*before, *(disk.stable for disk in found)], group.name, new_disks=True)
        pool = self._thin_pool(run, group.name)
        with self._physical_volumes(run, found):
            run(["vgextend", group.name, *(disk.stable for disk in found)])
        more = self._group(run, group.name).free - group.free
        for command in pool_plan.growth(group.name, pool.name, pool.size, pool.metadata_size, more, group.extent_size):
            run(command)
        devices = tuple(sorted({*before, *(disk.stable for disk in found)}))
        return pool.size, self._describe(run, name, group.name, str(identity.get("uuid", "")), devices)

    @contextmanager
    def _physical_volumes(self, run: "_Runner", found: Sequence[Disk]) -> Iterator[None]:
        """Make disks those of LVM for the block. If it fails they are as before: empty."""
        done: list[Disk] = []
        try:
            for disk in found:
                run(pool_plan.physical_volume(disk))
                done.append(disk)
            yield
        except BaseException:
            for disk in done:
                with suppress(DriverError, OSError):
                    run(["pvremove", "--yes", disk.stable])
                    disks.blank(disk.path)
            raise

    # ---- what it must know before

    def _reject_taken(self, name: str, vg: str) -> None:
        groups = self._groups()
        for group in groups:
            identity = None
            with suppress(Damaged):  # `pool grow` of it says so
                identity = tags.pool_of(group.tags)
            if identity is not None and identity.get("name") == name:
                raise AlreadyExists(
                    f"pool {name} exists, in volume group {group.name}: start the agent with --pool {name}=lvm:{group.name}, or "
                    f"add disks with `tidemark pool grow {name}`"
                )
        if any(group.name == vg for group in groups):
            raise AlreadyExists(
                f"a volume group {vg} exists and is not this pool: give the pool's another name with --vg"
            )

    def _find(self, name: str) -> tuple[reports.VolumeGroup, dict[str, object]]:
        """The volume group of a pool by the pool's name, and its identity."""
        pools = []
        for group in self._groups():
            identity = tags.pool_of(group.tags, group.name)
            if identity is not None:
                pools.append((str(identity.get("name")), group, identity))
        found = [(group, identity) for known, group, identity in pools if known == name]
        if not found:
            names = ", ".join(sorted(known for known, _, _ in pools))
            raise NotFound(
                f"no disk of this node has a pool {name}: " + (f"there is {names}" if names else "`vgs` lists them")
            )
        if len(found) > 1:
            raise Precondition(
                f"{len(found)} volume groups are pool {name}: {', '.join(group.name for group, _ in found)}"
            )
        group, identity = found[0]
        if group.missing_pv_count:
            raise Unavailable(
                f"{group.missing_pv_count} of the {group.pv_count} disks of pool {name} are away: attach them again, then add others"
            )
        return group, identity

    def _inspect(self, paths: Sequence[str]) -> list[Disk]:
        try:
            found = [disks.inspect(path) for path in paths]
        except PermissionError as error:
            raise Precondition(f"{error.filename}: permission denied: run it as root") from error
        except OSError as error:
            raise Precondition(error.strerror or str(error)) from error
        pool_plan.check_disks(found)
        return found

    def _groups(self) -> list[reports.VolumeGroup]:
        nodes = [path for name in discovery.candidates() if is_usable_path(path := discovery.node_of(name))]
        if not nodes:
            return []
        rows = self._runner(nodes, "").read("vgs", "-o", reports.VolumeGroup.COLUMNS)
        return [reports.volume_group(row) for row in rows]

    def _devices(self, vg: str) -> list[str]:
        with _refusals(f"pool in volume group {vg}"):
            return discovery.devices_of(vg, self._program, _READ_SECONDS)[1]

    def _group(self, run: "_Runner", vg: str) -> reports.VolumeGroup:
        return reports.volume_group(run.read("vgs", "-o", reports.VolumeGroup.COLUMNS, vg)[0])

    def _thin_pool(self, run: "_Runner", vg: str) -> reports.ThinPool:
        rows = [row for row in run.read("lvs", "-o", reports.ThinPool.COLUMNS, vg) if reports.is_thin_pool(row)]
        found = [pool for pool in map(reports.thin_pool, rows) if pool.name == THIN_POOL or len(rows) == 1]
        if not found:
            raise Precondition(f"volume group {vg} has no thin pool {THIN_POOL}: it is not a pool any longer")
        return found[0]

    def _describe(self, run: "_Runner", name: str, vg: str, uuid: str, devices: tuple[str, ...]) -> LvmPool:
        group, pool = self._group(run, vg), self._thin_pool(run, vg)
        return LvmPool(name, vg, uuid, devices, pool.size, pool.metadata_size, pool.chunk_size, group.free)

    def _runner(self, devices: Sequence[str], vg: str, new_disks: bool = False) -> "_Runner":
        return _Runner(self._program, self._program.configuration(devices, vg, new_disks), vg)


class _Runner:
    def __init__(self, lvm: LvmProgram, config: str, vg: str) -> None:
        self._lvm, self._config, self._vg = lvm, config, vg

    def __call__(self, command: Sequence[str], seconds: float = _CHANGE_SECONDS) -> str:
        with _refusals(" ".join(command[:1])):
            try:
                return program.run(command, self._config, self._lvm.through_host, seconds)[0]
            except CommandError as error:
                if error.rc is None or error.rc < 0:
                    self._resume()
                raise

    def read(self, *command: str) -> list[dict[str, str]]:
        answer = self([command[0], *reports.REPORT_OPTIONS, *command[1:]], _READ_SECONDS)
        try:
            return reports.parse(answer)
        except reports.BadReport as error:
            raise Unavailable(str(error)) from error

    def _resume(self) -> None:
        """A killed lvm may have left a device of a pool in use suspended: what writes to it would hang."""
        with suppress(DriverError, OSError):
            if rows := self.read("vgs", "-o", reports.VolumeGroup.COLUMNS, self._vg):
                recovery.resume_suspended(reports.volume_group(rows[0]).uuid)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        if error.rc == NOT_STARTED:
            raise Precondition(error.strerror or str(error)) from error
        raise refusals.explain(what, error.err or error.out, error.rc) from error
    except OSError as error:
        raise Precondition(f"{what}: {error.strerror or error}") from error
