"""Which objects a volume group holds, by names and tags alone."""

from dataclasses import replace

import pytest

from csi_driver.backends.lvm import catalogue, names
from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import PoolRef, member_name
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume, VolumeRequest
from csi_driver.domain.records import dump_group, dump_snapshot, dump_volume
from csi_driver.host.lvm.reports import LogicalVolume
from csi_driver.host.lvm.tags import DRAFT, to_tags

REF = PoolRef("node-1", "fast")
EXTENT = 4 << 20


def volume(name: str, label: str = "") -> Volume:
    return Volume(REF.new_volume_id(name), name, f"uid-{name}", 1, EXTENT, VolumeRequest(name), label=label)


def snapshot(name: str, group: str = "") -> Snapshot:
    source = volume("a")
    return Snapshot(
        REF.new_snapshot_id(name), name, f"uid-{name}", 1, EXTENT, str(source.id), source.uid, "blank", group=group
    )


def lv(name: str, *tags: str, size: int = EXTENT) -> LogicalVolume:
    return LogicalVolume(name, "", size, tags, "pool", "", 1, "Vwi---tz--", None)


def held(item: Volume | Snapshot, generation: int = 1) -> LogicalVolume:
    kind: names.Kind = "volume" if isinstance(item, Volume) else "snapshot"
    record = dump_volume(item) if isinstance(item, Volume) else dump_snapshot(item)
    return lv(
        f"{kind[0]}-{item.id.hash}.{generation}", *to_tags(record, kind, item.id.hash, generation), size=item.size
    )


def read(*report: LogicalVolume, tags: tuple[str, ...] = ()) -> catalogue.Catalogue:
    return catalogue.read("node-1", "fast", "vg", report, tags)


def group(generation: int) -> tuple[GroupSnapshot, list[str], list[LogicalVolume]]:
    identity = REF.new_group_id("g")
    sources = [volume("a"), volume("b")]
    members = tuple(snapshot(member_name("g", str(source.id)), identity.hash) for source in sources)
    made = GroupSnapshot(identity, "g", "uid-g", 1, tuple(str(source.id) for source in sources), members)
    lvs = [lv(f"s-{m.id.hash}.{generation}", names.member_tag(identity.hash, generation)) for m in members]
    return made, to_tags(dump_group(made), "group", identity.hash, generation), lvs


def test_volumes_and_snapshots_are_read_with_the_sizes_of_their_logical_volumes() -> None:
    a, s = volume("a"), snapshot("s")
    found = read(held(replace(a, size=3 * EXTENT)), held(s), lv("pool"), lv("somebody-elses"))
    assert found.contents.volumes == (replace(a, size=3 * EXTENT),)
    assert found.contents.snapshots == (s,)
    assert found.volumes == {a.id.hash: f"v-{a.id.hash}.1"}
    assert found.snapshots == {s.id.hash: f"s-{s.id.hash}.1"}
    assert found.trash == ()


@pytest.mark.parametrize("order", [1, -1])
def test_the_highest_generation_is_the_object_and_the_others_are_removed_from_the_lowest_on(order: int) -> None:
    report = [held(volume("a", label=str(number)), number) for number in (2, 9, 10)][::order]
    found = read(*report)
    digest = volume("a").id.hash
    assert [v.label for v in found.contents.volumes] == ["10"]
    assert found.volumes == {digest: f"v-{digest}.10"}
    assert found.trash == (f"v-{digest}.2", f"v-{digest}.9")


def test_a_draft_is_trash_even_of_a_higher_generation_and_with_a_record() -> None:
    a = volume("a")
    draft = held(replace(a, label="draft"), 2)
    found = read(held(a), replace(draft, tags=(*draft.tags, DRAFT)))
    assert found.contents.volumes == (a,)
    assert found.trash == (f"v-{a.id.hash}.2",)


def test_a_group_is_there_with_its_record_and_its_members_are_found_by_their_generation() -> None:
    made, tags, lvs = group(3)
    earlier = group(2)[2]
    found = read(*earlier, *lvs, tags=("tidemark.pool=x", *tags))
    assert found.contents.groups == (made,)
    assert found.contents.snapshots == ()
    assert found.snapshots == {member.id.hash: f"s-{member.id.hash}.3" for member in made.members}
    assert found.groups == {made.id.hash: 3}
    assert set(found.trash) == {member.name for member in earlier}


def test_members_of_a_group_without_a_record_are_trash() -> None:
    _, _, lvs = group(1)
    assert set(read(*lvs).trash) == {member.name for member in lvs}


def test_a_group_that_lacks_a_member_is_damaged() -> None:
    _, tags, lvs = group(1)
    with pytest.raises(Damaged, match="member"):
        read(lvs[0], tags=tuple(tags))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: replace(found, tags=()), "lost its record"),
        (lambda found: replace(found, tags=("of-somebody",)), "lost its record"),
        (lambda found: replace(found, name=f"v-{'0' * 32}.1"), "has the record of volume"),
        (lambda found: replace(found, name=found.name[:-1] + "2"), "has the record of volume"),
        (lambda found: replace(found, tags=(found.tags[0][:-4],)), "cannot be read"),
    ],
)
def test_what_somebody_changed_by_hand_is_named_and_never_trash(change: object, words: str) -> None:
    with pytest.raises(Damaged, match=words):
        read(change(held(volume("a"))))  # type: ignore[operator]


def test_a_record_of_another_pool_is_not_served() -> None:
    with pytest.raises(Damaged, match="node-1:fast"):
        catalogue.read("node-1", "slow", "vg", [held(volume("a"))], ())


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (f"v-{'a' * 32}.1", names.LvName("volume", "a" * 32, 1)),
        (f"s-{'0' * 32}.27", names.LvName("snapshot", "0" * 32, 27)),
        (f"v-{'a' * 32}.0", None),
        (f"v-{'a' * 32}.01", None),
        (f"v-{'a' * 31}.1", None),
        (f"v-{'a' * 32}", None),
        (f"x-{'a' * 32}.1", None),
        (f"v-{'a' * 32}.1\n", None),
        ("pool", None),
    ],
)
def test_names_say_kind_hash_and_generation(name: str, parsed: names.LvName | None) -> None:
    assert names.parse(name) == parsed
    if parsed is not None:
        assert str(parsed) == name


@pytest.mark.parametrize("group_name", ["vg", "my-vg", "a--b"])
def test_a_device_tells_its_object_and_its_group(group_name: str) -> None:
    name = f"v-{'a' * 32}.7"
    device = names.device_name(group_name, name)
    assert names.parse_device(group_name, device) == names.LvName("volume", "a" * 32, 7)
    assert names.parse_device(f"{group_name}-v", device) is None
    assert names.parse_device("other", device) is None
    assert names.parse_device(group_name, names.device_name(group_name, "pool", "tpool")) is None


def test_a_group_whose_name_begins_like_another_has_devices_of_its_own() -> None:
    device = names.device_name("vg-v", f"v-{'a' * 32}.7")
    assert names.parse_device("vg", device) is None


@pytest.mark.parametrize("path", ["vg", "vg/pool", "my-vg/thin_1", "a.b+c"])
def test_paths_that_name_a_group_and_a_pool(path: str) -> None:
    assert names.path_error(path) == ""


@pytest.mark.parametrize("path", ["", "/dev/vg", "vg/", "-vg", "vg/a/b", "vg/..", "v g", "..", f"vg/v-{'a' * 32}.1"])
def test_other_paths_are_refused_with_what_to_give(path: str) -> None:
    assert "lvm:VG" in names.path_error(path) or "thin pool" in names.path_error(path)


def test_the_thin_pool_is_called_pool_unless_said() -> None:
    assert names.split_path("vg") == ("vg", "pool")
    assert names.split_path("vg/thin") == ("vg", "thin")
