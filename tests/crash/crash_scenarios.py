"""What is killed in the crash suite: one operation each, on a pool that was prepared for it. Used by parent and child alike."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support import thin_disks
from support.files import write_at, write_file
from support.node_rig import Rig, mounted, stage_at_last
from support.sizes import MIB

from csi_driver.domain.model import Snapshot, Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host import syscalls
from csi_driver.host.commands import run
from csi_driver.host.freeze import journal
from csi_driver.host.lvm.tags import to_tags
from csi_driver.service.labels import Labels

DISK = 1 * MIB
Step = Callable[[Rig], Awaitable[Any]]


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes the pool as it is before, `operate` is killed; `between`: steps that make states which a kill may leave
    besides the one before and the one after (of operations that are made of several that may be seen).
    """

    name: str
    prepare: Step
    operate: Step
    between: tuple[Step, ...] = ()
    mounted: tuple[str, ...] = ()
    """Volumes that are staged as file systems while it runs."""
    raw: tuple[str, ...] = ()
    """Volumes that are staged as block devices while it runs."""
    kinds: tuple[str, ...] = ("reflink", "lvm")
    """Of pools in which there is such an operation."""

    @property
    def in_use(self) -> tuple[str, ...]:
        return self.mounted + self.raw

    @property
    def recovers(self) -> bool:
        """Whether what is killed is the opening of the pool."""
        return self.name.startswith("recovery")


def find(rig: Rig, name: str) -> Volume:
    return next(v for v in rig.pool.volumes.values() if v.name == name)


def snapshot_of(rig: Rig, name: str) -> Snapshot:
    return next(s for s in rig.pool.snapshots.values() if s.name == name)


def fill(rig: Rig, volume: Volume, seed: int) -> None:
    """Data of its own at both ends and in the middle."""
    with rig.blocks(volume) as (blocks,):
        for offset in (0, volume.size // 2, volume.size - 4096):
            write_at(blocks, offset, bytes((seed + index) % 251 for index in range(4096)))


async def nothing(rig: Rig) -> None:
    return


async def two_volumes(rig: Rig) -> None:
    """`v` with a snapshot and newer data, `w` without."""
    v = await rig.volume("v", "block", DISK)
    fill(rig, v, 1)
    await rig.snapshot("s", v)
    fill(rig, v, 2)
    w = await rig.volume("w", "block", DISK)
    fill(rig, w, 3)


async def with_group(rig: Rig) -> None:
    await two_volumes(rig)
    await rig.group("g", find(rig, "v"), find(rig, "w"))


async def thick_volume(rig: Rig) -> None:
    fill(rig, await rig.volume("v", "block", DISK, thick=True), 1)


async def half_formatted_thick(rig: Rig) -> None:
    await thick_volume(rig)
    await recorded(rig, format="formatting(ext4)")


async def uneven_volume(rig: Rig) -> None:
    fill(rig, await rig.volume("v", "block", DISK - 1000), 1)


async def held(rig: Rig) -> None:
    await two_volumes(rig)
    await rig.rollbacks.hold(str(find(rig, "v").id), "somebody")


async def leftovers(rig: Rig) -> None:
    """What a crash leaves at its worst: drafts, trash, half a record, a void journal entry."""
    await two_volumes(rig)
    root = rig.disk.point
    draft = root / ".new" / "0123456789abcdef"
    draft.mkdir()
    (draft / "disk.img").write_bytes(b"x" * 8192)
    for number in range(3):
        trash = root / ".trash" / f"{number}"
        trash.mkdir()
        (trash / "disk.img").write_bytes(b"x" * 8192)
    (rig.image(find(rig, "v")).parent / ".record.json.abcdefgh").write_bytes(b"{")
    facts = journal.entry_for("/nowhere", 7, 1 << 19, (1, 2)) | {"boot": "before"}
    journal.record(str(root / ".freeze"), "0" * 32, [facts])
    (root / ".freeze" / ("." + "1" * 32 + ".frozen.json.abcdefgh")).write_bytes(b"[")


async def logical_leftovers(rig: Rig) -> None:
    """The same in a volume group: drafts, members of no group, what a rollback has replaced, a void journal entry."""
    await two_volumes(rig)
    v = find(rig, "v")
    await rig.roll_back(v, snapshot_of(rig, "s"), "r")
    uuid = rig.backend.identity.uuid
    await rig.close()
    group, pool = thin_disks.GROUP, thin_disks.POOL
    make = ("lvcreate", "--virtualsize", f"{DISK}b", "--thinpool", f"{group}/{pool}", "-an", "-ky", "-pr")
    for number, tag in enumerate(["tm.draft", f"tidemark.member={'d' * 32}.1"]):
        thin_disks.lvm(*make, "--addtag", tag, "--name", f"s-{number:032x}.1")
    record = [f"--addtag={tag}" for tag in to_tags(dump_volume(v), "volume", v.id.hash, 1)]
    thin_disks.lvm(*make[:-2], *record, "--name", f"v-{v.id.hash}.1")
    freezes = rig.place / "run" / "freezes" / uuid
    journal.record(str(freezes), "0" * 32, [journal.entry_for("/nowhere", 7, 1 << 19, (1, 2)) | {"boot": "before"}])
    await rig.open()


async def ext4_volume(rig: Rig) -> None:
    for name in ("m", "n"):
        volume = await rig.volume(name, "ext4", 16 * MIB)
        async with rig.shown(volume) as path:
            write_file(f"{path}/data", name.encode() * 4096)


async def recorded(rig: Rig, **changes: Any) -> None:
    """A change of a record alone, as staging makes it."""
    volume = replace(find(rig, "v"), **changes)
    await rig.backend.save_volume(volume)
    rig.pool.put_volume(volume)


async def _hold(rig: Rig) -> None:
    await rig.rollbacks.hold(str(find(rig, "v").id), "somebody")


async def _release(rig: Rig) -> None:
    await rig.rollbacks.release(str(find(rig, "v").id), "somebody")


async def _roll_back(rig: Rig) -> None:
    await rig.roll_back(find(rig, "v"), snapshot_of(rig, "s"), "r")


async def _roll_back_safely(rig: Rig) -> None:
    await rig.roll_back(find(rig, "v"), snapshot_of(rig, "s"), "r", safety=True)


async def _safety_alone(rig: Rig) -> None:
    real = rig.backend.roll_back

    async def stop(*_: object) -> None:
        raise InterruptedError

    rig.backend.roll_back = stop  # type: ignore[method-assign]
    try:
        await _roll_back_safely(rig)
    except InterruptedError:
        pass
    finally:
        rig.backend.roll_back = real  # type: ignore[method-assign]


async def _delete_volume(rig: Rig) -> None:
    gone = [v for v in rig.pool.volumes.values() if v.name == "v"]
    for volume in gone:
        await rig.delete(volume)


async def _delete_snapshot(rig: Rig) -> None:
    for snapshot in [s for s in rig.pool.snapshots.values() if s.name == "s"]:
        await rig.delete(snapshot)


async def _delete_group(rig: Rig) -> None:
    for group in list(rig.pool.groups.values()):
        await rig.delete(group)


def _erased(*steps: tuple[int, int]) -> Step:
    """What an erasure that ended half-way leaves: modes of fallocate (3 punches, 1 allocates), and where in the image."""

    async def erase(rig: Rig) -> None:
        with rig.image(find(rig, "v")).open("r+b") as file:
            for mode, at in steps:
                syscalls.call("fallocate", "fallocate", file.fileno(), mode, at, DISK // 2)

    return erase


async def _reopen(rig: Rig) -> None:
    """Nothing: opening the pool is the operation, and it is done before this is called."""


def _v(rig: Rig) -> Volume:
    return find(rig, "v")


async def _expand_unevenly(rig: Rig) -> None:
    await rig.expand(_v(rig), 2 * DISK - 1000)


async def _grown_and_not_written_down(rig: Rig) -> None:
    """The image is as large as it should be, and what was asked for is not recorded yet: its size counts."""
    grown = replace(_v(rig), size=2 * DISK)
    await rig.backend.expand_volume(grown)
    rig.pool.put_volume(grown)


async def _rename(rig: Rig) -> None:
    await Labels(rig.context).set_label(str(_v(rig).id), "renamed")


REFLINK = ("reflink",)

SCENARIOS = [
    Scenario("create", two_volumes, lambda rig: rig.volume("new", "block", DISK)),
    Scenario("create thick", two_volumes, lambda rig: rig.volume("new", "block", DISK, thick=True), kinds=REFLINK),
    Scenario("create in an empty pool", nothing, lambda rig: rig.volume("new", "block", DISK)),
    Scenario(
        "create from snapshot", two_volumes, lambda rig: rig.volume("new", "block", 2 * DISK, snapshot_of(rig, "s"))
    ),
    Scenario(
        "create thick from snapshot",
        two_volumes,
        lambda rig: rig.volume("new", "block", 2 * DISK, snapshot_of(rig, "s"), thick=True),
        kinds=REFLINK,
    ),
    Scenario("create from volume", two_volumes, lambda rig: rig.volume("new", "block", 2 * DISK, _v(rig))),
    Scenario("snapshot", two_volumes, lambda rig: rig.snapshot("new", _v(rig))),
    Scenario("snapshot of thick", thick_volume, lambda rig: rig.snapshot("new", _v(rig)), kinds=REFLINK),
    Scenario("snapshot of a raw one in use", two_volumes, lambda rig: rig.snapshot("new", _v(rig)), raw=("v",)),
    Scenario("group", two_volumes, lambda rig: rig.group("new", _v(rig), find(rig, "w"))),
    Scenario("delete volume", two_volumes, _delete_volume),
    Scenario("delete snapshot", two_volumes, _delete_snapshot),
    Scenario("delete group", with_group, _delete_group),
    Scenario("expand", two_volumes, lambda rig: rig.expand(_v(rig), 2 * DISK)),
    Scenario("expand thick", thick_volume, lambda rig: rig.expand(_v(rig), 2 * DISK), kinds=REFLINK),
    Scenario("erase", two_volumes, lambda rig: rig.backend.erase(find(rig, "w")), kinds=("lvm",)),
    Scenario(
        "erase thick",
        half_formatted_thick,
        lambda rig: rig.backend.erase(_v(rig)),
        between=(_erased((3, 0)), _erased((3, 0), (1, 0)), _erased((3, 0), (1, 0), (3, DISK // 2))),
        kinds=REFLINK,
    ),
    Scenario("expand unevenly", uneven_volume, _expand_unevenly, between=(_grown_and_not_written_down,)),
    Scenario("record formatting", two_volumes, lambda rig: recorded(rig, format="formatting(ext4)")),
    Scenario("record raw", two_volumes, lambda rig: recorded(rig, format="raw")),
    Scenario("rename", two_volumes, _rename),
    Scenario("hold", two_volumes, _hold),
    Scenario("release", held, _release),
    Scenario("rollback", two_volumes, _roll_back),
    Scenario("rollback with safety", two_volumes, _roll_back_safely, between=(_safety_alone,)),
    Scenario("recovery", leftovers, _reopen, kinds=REFLINK),
    Scenario("recovery of logical volumes", logical_leftovers, _reopen, kinds=("lvm",)),
    Scenario("snapshot of a mounted one", ext4_volume, lambda rig: rig.snapshot("new", find(rig, "m")), mounted=("m",)),
    Scenario(
        "copy of a mounted one",
        ext4_volume,
        lambda rig: rig.volume("new", "ext4", 32 * MIB, find(rig, "m"), capabilities=(mounted(""),)),
        mounted=("m",),
    ),
    Scenario(
        "group of mounted ones",
        ext4_volume,
        lambda rig: rig.group("new", find(rig, "m"), find(rig, "n")),
        mounted=("m", "n"),
    ),
]


# ---- node operations ---------------------------------------------------------------------------------------------------


async def blank_volumes(rig: Rig) -> None:
    await rig.volume("m", "ext4", 16 * MIB)
    await rig.volume("x", "xfs", 300 * MIB)
    await rig.volume("t", "ext4", 16 * MIB, thick=True)
    await rig.volume("b", "block", DISK)


async def half_formatted(rig: Rig) -> None:
    volume = await rig.volume("m", "ext4", 16 * MIB)
    write_at(rig.image(volume), 8192, b"half" * 1024)
    changed = replace(volume, format="formatting(ext4)")
    await rig.backend.save_volume(changed)
    rig.pool.put_volume(changed)


async def formatted_by_its_user(rig: Rig) -> None:
    """A block device on which its user has made a file system."""
    volume = await rig.volume("m", "block", 16 * MIB)
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    run(("mkfs.ext4", "-q", device.path), 30)
    await rig.unstage(volume)


async def mounted_as_found(rig: Rig) -> None:
    await rig.stage(find(rig, "m"), mounted(""))


async def grown_copy(rig: Rig) -> None:
    volume = await rig.volume("origin", "xfs", 300 * MIB)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"kept")
    await rig.volume("m", "xfs", 400 * MIB, await rig.snapshot("s", volume))


async def grown_ext4(rig: Rig) -> None:
    volume = await rig.volume("m", "ext4", 16 * MIB)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"kept")
    await rig.expand(volume, 400 * MIB)


async def with_errors(rig: Rig) -> None:
    volume = await rig.volume("m", "ext4", 16 * MIB)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"kept")
    run(("debugfs", "-w", "-R", "set_super_value state 2", str(rig.image(volume))), 10)


async def staged(rig: Rig, name: str = "m") -> None:
    await rig.stage(find(rig, name))


async def staged_at_last(rig: Rig) -> None:
    await stage_at_last(rig, find(rig, "m"))


async def shown(rig: Rig) -> None:
    await rig.show(find(rig, "m"))
    target = Path(rig.target(find(rig, "m")), "data")
    if not target.exists():
        write_file(target, b"kept")


async def published(rig: Rig) -> None:
    await rig.publish(find(rig, "m"))


async def unpublished(rig: Rig) -> None:
    await rig.unpublish(find(rig, "m"))


async def unstaged(rig: Rig) -> None:
    await rig.unstage(find(rig, "m"))


@dataclass(frozen=True)
class NodeScenario:
    """`before`: done by the parent after `prepare`, so that it is there when the child operates."""

    name: str
    prepare: Step
    operate: Step
    volume: str = "m"
    before: tuple[Step, ...] = ()
    finished: bool = True
    """Whether the volume is staged after the operation."""


NODE_SCENARIOS = [
    NodeScenario("first stage, ext4", blank_volumes, staged),
    NodeScenario("first stage, xfs", blank_volumes, lambda rig: staged(rig, "x"), "x"),
    NodeScenario("first stage, thick", blank_volumes, lambda rig: staged(rig, "t"), "t"),
    NodeScenario("first stage, block", blank_volumes, lambda rig: staged(rig, "b"), "b"),
    NodeScenario("stage of a half-formatted one", half_formatted, staged),
    NodeScenario("stage that grows", grown_copy, staged),
    NodeScenario("stage that grows, ext4", grown_ext4, staged),
    NodeScenario("mount of what was a block device", formatted_by_its_user, mounted_as_found),
    NodeScenario("stage of one with errors", with_errors, staged_at_last),
    NodeScenario("publish", blank_volumes, published, before=(staged,)),
    NodeScenario("unpublish", blank_volumes, unpublished, before=(shown,)),
    NodeScenario("unstage", blank_volumes, unstaged, before=(staged,), finished=False),
]

BY_NAME: dict[str, Scenario | NodeScenario] = {s.name: s for s in [*SCENARIOS, *NODE_SCENARIOS]}
