"""A volume group in memory: what lvm's commands do to names, sizes and tags, each in one commit, and what goes wrong with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from csi_driver.domain.errors import Busy
from csi_driver.host.lvm.reports import LogicalVolume, VolumeGroup

VG, POOL = "vg", "pool"


class Died(BaseException):
    """The agent was killed."""


class GroupInMemory:
    """Stands for Commands. `on_change` is called before and after each command's commit, with the number of the command."""

    def __init__(self) -> None:
        self.lvs: dict[str, LogicalVolume] = {}
        self.tags: tuple[str, ...] = ()
        self.content: dict[int, str] = {}
        """What is behind each thin id."""
        self.count = 0
        self.argv: list[tuple[str, ...]] = []
        self.on_change: Callable[[int, str], None] = lambda number, when: None
        self.messages = 0
        self.on_message: Callable[[int], None] = lambda number: None
        """Called before each message, with its number."""
        self._next_id = 1

    async def change(self, *argv: str) -> None:
        self.count += 1
        number = self.count
        self.argv.append(argv)
        self.on_change(number, "before")
        getattr(self, f"_{argv[0]}")(list(argv[1:]))
        self.on_change(number, "after")

    async def logical_volumes(self) -> list[LogicalVolume]:
        return list(self.lvs.values())

    async def volume_group(self) -> VolumeGroup:
        return VolumeGroup(VG, "g" * 32, 0, 0, 4096, self.tags, 1, 0, len(self.lvs), 64 << 20, 32 << 20, "", "")

    def message(self, text: str) -> None:
        """A message to the thin pool."""
        self.messages += 1
        self.on_message(self.messages)
        words = text.split()
        if words[0] == "delete":
            self.content.pop(int(words[1]), None)
        else:
            assert int(words[1]) not in self.content, "a thin id twice"
            self.content[int(words[1])] = self.content[int(words[2])]

    def write(self, name: str, text: str) -> None:
        self.content[self.lvs[name].thin_id or 0] = text

    def read(self, name: str) -> str:
        return self.content[self.lvs[name].thin_id or 0]

    def _lvcreate(self, argv: list[str]) -> None:
        name = _option(argv, "-n")
        assert name not in self.lvs, f"{name} exists"
        thin_id, self._next_id = self._next_id, self._next_id + 1
        if "-s" in argv:
            origin = self.lvs[next(word for word in argv if word.startswith(f"{VG}/")).removeprefix(f"{VG}/")]
            size, self.content[thin_id] = origin.size, self.content[origin.thin_id or 0]
        else:
            size, self.content[thin_id] = int(_option(argv, "-V").removesuffix("b")), ""
        tags = tuple(_options(argv, "--addtag"))
        self.lvs[name] = LogicalVolume(name, f"uuid-{thin_id}", size, tags, POOL, "", thin_id, "Vwi---tz--", None)

    def _lvextend(self, argv: list[str]) -> None:
        name = argv[-1].removeprefix(f"{VG}/")
        self.lvs[name] = replace(self.lvs[name], size=int(_option(argv, "-L").removesuffix("b")))

    def _lvchange(self, argv: list[str]) -> None:
        name = argv[-1].removeprefix(f"{VG}/")
        lv = self.lvs[name]
        self.lvs[name] = replace(lv, tags=_changed(lv.tags, argv))

    def _vgchange(self, argv: list[str]) -> None:
        self.tags = _changed(self.tags, argv)

    def _lvremove(self, argv: list[str]) -> None:
        for name in [word.removeprefix(f"{VG}/") for word in argv if word.startswith(f"{VG}/")]:
            self.content.pop(self.lvs.pop(name).thin_id or 0, None)


def dies_at(number: int, when: str) -> Callable[[int, str], None]:
    def on_change(count: int, at: str) -> None:
        if (count, at) == (number, when):
            raise Died

    return on_change


def fails_at(number: int, when: str) -> Callable[[int, str], None]:
    """The command is killed, before its commit or after it: its caller is told the same."""

    def on_change(count: int, at: str) -> None:
        if (count, at) == (number, when):
            raise Busy("lvm was killed: try again")

    return on_change


def _option(argv: Sequence[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def _options(argv: Sequence[str], name: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def _changed(tags: Sequence[str], argv: Sequence[str]) -> tuple[str, ...]:
    drop = _options(argv, "--deltag")
    assert set(drop) <= set(tags), "a tag that is not there"
    return (*(tag for tag in tags if tag not in drop), *_options(argv, "--addtag"))
