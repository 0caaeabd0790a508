"""The example of the EVS user guide, block by block: v1, d1 to d4, s1 and s2, and the three uses of a snapshot."""

from csi_driver.cli.demo.lab import Lab
from csi_driver.cli.demo.screen import Screen
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import CallRefused

_MIB = 1 << 20
_TEXT = "written to a mounted disk, and not synced\n" * 1000


def play(lab: Lab, screen: Screen, mounting: bool) -> None:
    """Play and check all steps; with `mounting` also files on a mounted disk. Raises CheckFailed at the first check that fails."""
    _snapshots(lab, screen)
    _new_disks(lab, screen)
    _refusals(lab, screen)
    _there_and_back(lab, screen)
    _deletion(lab, screen)
    if mounting:
        _mounted(lab, screen)


def _snapshots(lab: Lab, screen: Screen) -> None:
    milliseconds = lab.make("v1")
    lab.publish("v1", lab.disks["v1"])
    screen.step("Create disk v1", f"{milliseconds:.1f} ms. It has 4 empty blocks, so it takes no space.")
    screen.state(lab.verify({"v1": ""}))

    lab.write("v1", 0, "d1")
    lab.write("v1", 1, "d2")
    screen.step("Write d1 and d2 to v1", "Both go to new space.")
    screen.state(lab.verify({"v1": "d1 d2"}))

    milliseconds = lab.take_snapshot("v1", "s1")
    screen.step(
        "Take snapshot s1 of v1, which stays in use",
        f"{milliseconds:.1f} ms. Nothing is copied: s1 refers to the same d1 and d2.",
    )
    screen.state(lab.verify({"v1": "d1 d2", "s1": "d1 d2"}))

    lab.write("v1", 2, "d3")
    lab.write("v1", 1, "d4")
    screen.step("Write d3 to v1, and change d2 to d4", "d3 and d4 go to new space. d2 is not overwritten: s1 uses it.")
    screen.state(lab.verify({"v1": "d1 d4 d3", "s1": "d1 d2"}))

    milliseconds = lab.take_snapshot("v1", "s2")
    screen.step("Take snapshot s2 of v1", f"{milliseconds:.1f} ms. s2 refers to d1, d3 and d4; s1 still to d1 and d2.")
    screen.state(lab.verify({"v1": "d1 d4 d3", "s1": "d1 d2", "s2": "d1 d4 d3"}))


def _new_disks(lab: Lab, screen: Screen) -> None:
    milliseconds = lab.make("rescue", "s1")
    lab.publish("rescue", lab.disks["rescue"])
    lab.write("rescue", 3, "d5")
    lab.unpublish("rescue")
    screen.step(
        "Create disk rescue from s1, and write d5 to it",
        f"{milliseconds:.1f} ms. The data as of s1, for another server; new writes go to its own space.",
    )
    screen.state(lab.verify({"rescue": "d1 d2 d5", "s1": "d1 d2", "v1": "d1 d4 d3"}))

    times = [lab.make(f"web-{number}", "s2") for number in (1, 2, 3)]
    screen.step(
        "Create three disks from s2",
        f"{', '.join(f'{milliseconds:.1f}' for milliseconds in times)} ms. Three servers start with the same data, stored once.",
    )
    screen.state(lab.verify({f"web-{number}": "d1 d4 d3" for number in (1, 2, 3)}))


def _refusals(lab: Lab, screen: Screen) -> None:
    screen.step(
        "Refused calls", "A disk can be rolled back only to its own snapshots, and only while it is not in use."
    )
    for disk, snapshot, code, statement in (
        ("web-1", "s1", "INVALID_ARGUMENT", "rolling back another disk is refused"),
        ("v1", "s1", "FAILED_PRECONDITION", "rolling back a disk in use is refused"),
    ):
        try:
            lab.client.roll_back(lab.disks[disk], lab.snapshots[snapshot], f"demo-refused-{disk}")
        except CallRefused as refused:
            lab.checks.that(statement, refused.code == code, f"it was refused with {refused.code}: {refused.message}")
            screen.quote(refused.message)
            screen.good(f"{statement}: {refused.code}")
        else:
            lab.checks.that(statement, False, f"the rollback of {disk} to {snapshot} was done")
    lab.verify({"web-1": "d1 d4 d3", "v1": "d1 d4 d3"})
    screen.good("and neither disk has changed")


def _there_and_back(lab: Lab, screen: Screen) -> None:
    lab.unpublish("v1")
    milliseconds = lab.roll_back("v1", "s1", "safety-1")
    screen.step(
        "Roll v1 back to s1",
        f"{milliseconds:.1f} ms, in place. A safety snapshot of v1 is taken first; all snapshots stay.",
    )
    screen.state(lab.verify({"v1": "d1 d2", "safety-1": "d1 d4 d3", "s1": "d1 d2", "s2": "d1 d4 d3"}))

    milliseconds = lab.roll_back("v1", "s2", "safety-2")
    screen.step("Roll v1 forward to s2", f"{milliseconds:.1f} ms. A rollback can be undone.")
    screen.state(lab.verify({"v1": "d1 d4 d3", "safety-2": "d1 d2", "s1": "d1 d2", "s2": "d1 d4 d3"}))


def _deletion(lab: Lab, screen: Screen) -> None:
    for name in ("s1", "safety-1", "safety-2"):
        lab.delete_snapshot(name)
    screen.step(
        "Delete s1 and the safety snapshots",
        "rescue is a clone of s1 and keeps its data: only rescue uses d2 now. s2 and v1 do not change.",
    )
    screen.state(lab.verify({"rescue": "d1 d2 d5", "s2": "d1 d4 d3", "v1": "d1 d4 d3"}))


def _mounted(lab: Lab, screen: Screen) -> None:
    mounted = Capability("mount", AccessMode.WRITER, "ext4")
    screen.step("The same with files: a mounted ext4 disk", "Its file system is frozen for the moment of the snapshot.")
    files = lab.client.create_volume("files", SizeRange(64 * _MIB), [mounted])
    with lab.published("files", files.id, mounted) as path:
        (path / "story.txt").write_text(_TEXT)
        snapshot = lab.client.create_snapshot(files.id, "files-s1")
        (path / "story.txt").write_text("changed afterwards\n")
        clone = lab.client.create_volume("files-clone", SizeRange(), [mounted], source=Source("snapshot", snapshot.id))
        with lab.published("files-clone", clone.id, mounted) as second:
            lab.checks.that(
                "a file written before the snapshot is in the clone",
                (second / "story.txt").read_text() == _TEXT,
            )
        lab.checks.that(
            "the mounted disk has newer content", (path / "story.txt").read_text() == "changed afterwards\n"
        )
    screen.good("the clone has the file as it was; the mounted disk has newer content")
    lab.client.delete_volume(clone.id)
    lab.client.delete_snapshot(snapshot.id)
    lab.client.delete_volume(files.id)
