"""The command line without an agent: options, sizes, names, drawings, and what is told when something is wrong."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from csi_driver.agent.settings import PoolImage, PoolSpec, Settings, load
from csi_driver.cli import mounts, pools, sizes
from csi_driver.cli.agent import address_of, pool_of
from csi_driver.cli.common import endpoint_of
from csi_driver.cli.failure import Failure
from csi_driver.cli.main import app
from csi_driver.cli.mount_paths import staging_of, views
from csi_driver.cli.objects import AgentObjects, is_parent
from csi_driver.cli.tree import draw
from csi_driver.cli.umounts import find_mounted
from csi_driver.domain.errors import BEING_CHECKED
from csi_driver.domain.model import AccessMode, Capability, Usage
from csi_driver.rpc.clients.cli_client import CallRefused, Deletable, Node, PoolSpace
from csi_driver.settings import BadSetting

VOLUME_ID = f"n1:default:{'a' * 32}"


def node(name: str, kind: Any = "volume", **more: Any) -> Node:
    made = Node(
        id=f"n1:default:{name.encode().hex():0<32.32}",
        name=name,
        kind=kind,
        pool="default",
        size=4 << 20,
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        uid=f"uid-{name}",
    )
    return replace(made, **more)


class FakeClient:
    def __init__(self, *nodes: Node, refused: CallRefused | None = None) -> None:
        self.nodes = list(nodes)
        self.refused = refused

    def tree(self, **_: Any) -> list[Node]:
        if self.refused:
            raise self.refused
        return self.nodes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `tidemark agent` would have started; the environment of the developer is kept out."""
    seen: list[Settings] = []

    def execve(_path: str, argv: list[str], _environment: dict[str, str]) -> None:
        assert argv[1:4] == ["-P", "-m", "csi_driver.agent"]
        seen.append(load(argv[4]))

    monkeypatch.setattr("os.execve", execve)
    for name in ("CSI_ENDPOINT", "TIDEMARK_ENDPOINT", "TIDEMARK_POOL"):
        monkeypatch.delenv(name, raising=False)
    return seen


# Sizes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("20Gi", 20 << 30),
        ("20G", 20 * 10**9),
        ("20GiB", 20 << 30),
        ("512Mi", 512 << 20),
        ("1.5Gi", 3 << 29),
        ("1k", 1000),
        (" 2 Ti ", 2 << 40),
        ("7Ei", 7 << 60),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_means_what_kubernetes_means(text: str, value: int) -> None:
    assert sizes.parse(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1e3", "20 Gigs", "1.5.2G", "8Ei", "9999999Pi", "0x10", "٢٠"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(sizes.BadSize, match=r"20Gi|8Ei"):
        sizes.parse(text)


@given(st.integers(0, (1 << 63) - 1))
def test_bytes_are_read_back_exactly(value: int) -> None:
    assert sizes.parse(str(value)) == value


@given(st.integers(0, 1023), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_a_shown_size_is_a_size(value: int, unit: str) -> None:
    count = value * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert sizes.parse(sizes.show(count)) == count


# The agent's options


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        ("/srv/tidemark", PoolSpec("default", "reflink", "/srv/tidemark")),
        ("/srv/a=b:c", PoolSpec("default", "reflink", "/srv/a=b:c")),
        ("fast=/srv/fast", PoolSpec("fast", "reflink", "/srv/fast")),
        ("fast=reflink:/srv/fast", PoolSpec("fast", "reflink", "/srv/fast")),
        ("demo=memory:", PoolSpec("demo", "memory", "")),
        ("demo=memory", PoolSpec("demo", "memory", "")),
    ],
)
def test_a_pool_is_named_in_a_few_ways(text: str, pool: PoolSpec) -> None:
    assert pool_of(text) == pool


@pytest.mark.parametrize("text", ["srv/tidemark", "x=zfs:/srv", "UPPER=/srv", "a=reflink:srv", "=/srv", ""])
def test_a_pool_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BadSetting):
        pool_of(text)


def test_addresses() -> None:
    assert address_of("127.0.0.1:9808") == ("127.0.0.1", 9808)
    assert address_of("[::1]:80") == ("::1", 80)
    assert address_of(":9808") == ("0.0.0.0", 9808)
    for text in ("9808", "host:", "host:0", "host:65536", "a b:1", "::1:80"):
        with pytest.raises(typer.BadParameter):
            address_of(text)


def test_endpoints() -> None:
    for text in ("unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"):
        assert endpoint_of(text) == "unix:///run/x.sock"
    for text in ("tcp://1.2.3.4:5", "run/x.sock", "unix://run/x.sock", ""):
        with pytest.raises(typer.BadParameter):
            endpoint_of(text)


def test_the_defaults_of_the_agent(started: list[Settings]) -> None:
    result = CliRunner().invoke(app, ["agent", "--pool", "/srv/tidemark"])
    assert result.exit_code == 0, result.output
    assert started == [Settings(pools=(PoolSpec("default", "reflink", "/srv/tidemark"),))]


Given = tuple[str, object]
OPTIONS: list[tuple[str, str, str, Given, Given]] = [
    (
        "--endpoint",
        "CSI_ENDPOINT",
        "endpoint",
        ("/run/x.sock", "unix:///run/x.sock"),
        ("unix:///run/y.sock", "unix:///run/y.sock"),
    ),
    ("--node-name", "TIDEMARK_NODE_NAME", "node_name", ("n1", "n1"), ("n2", "n2")),
    ("--overcommit", "TIDEMARK_OVERCOMMIT", "overcommit", ("1.5", 1.5), ("1", 1.0)),
    ("--reserve", "TIDEMARK_RESERVE", "reserve", ("64Mi", 64 << 20), ("1Gi", 1 << 30)),
    ("--max-snapshots", "TIDEMARK_MAX_SNAPSHOTS", "max_snapshots", ("7", 7), ("3", 3)),
    ("--freeze-deadline", "TIDEMARK_FREEZE_DEADLINE", "freeze_deadline", ("2.5", 2.5), ("1", 1.0)),
    (
        "--metrics-address",
        "TIDEMARK_METRICS_ADDRESS",
        "metrics_address",
        (":9808", ("0.0.0.0", 9808)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
    ),
    ("--metrics-volumes", "TIDEMARK_METRICS_VOLUMES", "metrics_volumes", ("0", 0), ("7", 7)),
    ("--listen", "TIDEMARK_LISTEN", "listen", (":9807", ("0.0.0.0", 9807)), ("[::]:2", ("::", 2))),
    ("--certificates", "TIDEMARK_CERTIFICATES", "certificates", ("/etc/tls", "/etc/tls"), ("/tls", "/tls")),
    ("--register", "TIDEMARK_REGISTER", "register", ("/registration", "/registration"), ("/r", "/r")),
    (
        "--kubelet-socket",
        "TIDEMARK_KUBELET_SOCKET",
        "kubelet_socket",
        ("/var/lib/kubelet/plugins/x/csi.sock", "/var/lib/kubelet/plugins/x/csi.sock"),
        ("/k/csi.sock", "/k/csi.sock"),
    ),
    ("--log-format", "TIDEMARK_LOG_FORMAT", "log_format", ("json", "json"), ("json", "json")),
    ("--driver-name", "TIDEMARK_DRIVER_NAME", "driver_name", ("other.dev", "other.dev"), ("d", "d")),
]
"""Option, environment variable, field of the settings, and two values as they are given and as they arrive."""


def test_every_option_reaches_the_settings(started: list[Settings]) -> None:
    options = ["--pool", "fast=/srv/fast", "--pool", "demo=memory:", "--pool-init", "--volume-health"]
    options += [word for option, _, _, (text, _), _ in OPTIONS for word in (option, text)]
    result = CliRunner().invoke(app, ["agent", *options])
    assert result.exit_code == 0, result.output
    settings: dict[str, Any] = {field: value for _, _, field, (_, value), _ in OPTIONS}
    pools = (PoolSpec("fast", "reflink", "/srv/fast"), PoolSpec("demo", "memory", ""))
    assert started == [Settings(pools=pools, pool_init=True, volume_health=True, **settings)]


def test_every_option_is_an_environment_variable_too(started: list[Settings]) -> None:
    environment = {
        "TIDEMARK_POOL": "fast=/srv/fast\n  /srv/slow",
        "TIDEMARK_POOL_INIT": "true",
        "TIDEMARK_POOL_IMAGE": "/var/pool.img",
        "TIDEMARK_POOL_SIZE": "300Mi",
        "TIDEMARK_POOL_IMAGE_SPARSE": "1",
        "TIDEMARK_POOL_MOUNT": "/srv/slow",
        "TIDEMARK_VOLUME_HEALTH": "1",
    }
    environment |= {variable: text for _, variable, _, _, (text, _) in OPTIONS}
    result = CliRunner().invoke(app, ["agent"], env=environment)
    assert result.exit_code == 0, result.output
    settings: dict[str, Any] = {field: value for _, _, field, _, (_, value) in OPTIONS}
    pools = (PoolSpec("fast", "reflink", "/srv/fast"), PoolSpec("default", "reflink", "/srv/slow"))
    image = PoolImage("/var/pool.img", "/srv/slow", 300 << 20, True)
    assert started == [Settings(pools=pools, image=image, pool_init=True, volume_health=True, **settings)]


def test_the_size_of_an_image_is_said_or_not(started: list[Settings]) -> None:
    """What is not said changes nothing of an image that is there."""
    for text, size in (("300Mi", 300 << 20), ("20G", 20 * 10**9)):
        assert CliRunner().invoke(app, ["agent", "--pool-image", "/x.img", "--pool-size", text]).exit_code == 0
        assert started.pop().image == PoolImage("/x.img", size=size)


def test_an_image_alone_is_the_default_pool(started: list[Settings]) -> None:
    result = CliRunner().invoke(app, ["agent", "--pool-image", "/var/lib/x.img"])
    assert result.exit_code == 0, result.output
    assert started[0].pools == (PoolSpec("default", "reflink", "/var/lib/tidemark/pool"),)
    assert started[0].image == PoolImage("/var/lib/x.img", "/var/lib/tidemark/pool", None, False)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ("", "--pool-image"),
        ("--pool a=/x --pool a=/y", "must be unique"),
        ("--pool a=/x --pool b=/x", "directory of its own"),
        ("--pool /x --overcommit 0", "must be > 0"),
        ("--pool /x --reserve 3x", "20Gi"),
        ("--pool /x --max-snapshots 0", "must be at least 1"),
        ("--pool /x --metrics-volumes -1", "use 0"),
        ("--pool /x --freeze-deadline 0", "must be > 0"),
        ("--pool /x --metrics-address 80", "HOST:PORT"),
        ("--pool /x --endpoint tcp://x", "unix:///"),
        ("--pool /x --listen :9807", "always uses mutual TLS"),
        ("--pool /x --certificates /etc/tls", "go together"),
        ("--pool /x --listen :9807 --certificates tls", "absolute"),
        ("--pool /x --register /r", "--kubelet-socket"),
        ("--pool /x --kubelet-socket /k.sock", "--register"),
        ("--pool /x --log-format xml", "console"),
        ("--pool-image /x.img --pool-size 1Mi", "300Mi"),
        ("--pool-image x.img", "absolute"),
    ],
)
def test_wrong_usage_is_told_on_stderr_with_the_next_step(options: str, hint: str, started: list[Settings]) -> None:
    result = CliRunner().invoke(app, ["agent", *options.split()])
    assert result.exit_code == 2
    assert hint in " ".join(result.stderr.replace("│", " ").split())
    assert started == []


def test_the_agent_loads_no_tables_and_no_grpc_of_the_command_line() -> None:
    code = (
        "import sys, csi_driver.cli.main; print([m for m in ('rich', 'grpc', 'google.protobuf') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_help_is_there_for_every_command() -> None:
    runner = CliRunner()
    groups = ["volume", "snapshot", "group", "node", "controller"]
    for command in ["", "demo", "agent", *groups, "rollback", "mount", "umount", "tree", "pools", "status"]:
        result = runner.invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.output


# Names


def test_a_name_or_an_id_is_found() -> None:
    objects = AgentObjects([node("db"), node("s1", "snapshot")])
    assert objects.find("db", "volume").name == "db"
    assert objects.find(node("s1").id, "snapshot").name == "s1"
    with pytest.raises(Failure, match=r"no volume is called 's1': `tidemark volume list`"):
        objects.find("s1", "volume")


def test_a_name_of_two_is_refused_and_the_ids_are_told() -> None:
    twins = node("db"), node("db", id=VOLUME_ID)
    with pytest.raises(Failure, match=VOLUME_ID):
        AgentObjects(twins).find("db", "volume")
    assert AgentObjects(twins).find(VOLUME_ID, "volume") is twins[1]


def test_an_id_is_passed_on_unseen_so_that_it_works_where_no_tree_can_be_drawn() -> None:
    client: Any = FakeClient(refused=CallRefused("UNAVAILABLE", "agent of node n2 is silent"))
    assert AgentObjects.read_for(client, "volume", [VOLUME_ID]).find(VOLUME_ID, "volume").id == VOLUME_ID
    with pytest.raises(CallRefused):
        AgentObjects.read_for(client, "volume", [VOLUME_ID, "db"])


def test_a_member_of_a_group_is_called_by_both_names() -> None:
    db = node("db")
    member = node(f"nightly\0{db.id}", "snapshot", parent_id=db.id, parent_uid=db.uid)
    assert AgentObjects([db, member]).name(member) == "nightly/db"
    assert AgentObjects([member]).name(member) == f"nightly/{db.id}"
    assert AgentObjects([db, member]).find("nightly/db", "snapshot") is member


def test_our_own_staging_directories_are_not_shown() -> None:
    staging = str(staging_of(VOLUME_ID))
    users = AgentObjects([]).users
    assert users(node("db", used_by=(staging, "/mnt/db"))) == "/mnt/db"
    assert users(node("db", used_by=(f"{staging}/device",))) == "staged"
    assert users(node("db", holder="rollback-1")) == "held by rollback-1"
    assert users(node("db")) == ""


def test_a_volume_is_found_by_every_path_of_its_mount() -> None:
    staging = str(staging_of(node("db").id))
    db = node("db", used_by=("/d/stage", "/d/mnt"), places=(("/d/stage", staging), ("/d/mnt", "/k/mnt")))
    objects = AgentObjects([db, node("other"), node("twin"), node("twin", id=VOLUME_ID), node("snap", "snapshot")])
    assert objects.users(db) == "/d/mnt"
    for path in ("/d/mnt", "/k/mnt"):
        assert find_mounted(objects, path, path) == (db, path)
    assert find_mounted(objects, "/cwd/db", "db") == (db, "/d/mnt")
    assert find_mounted(objects, "/cwd/x", db.id) == (db, "/d/mnt")
    for text, message in (
        ("other", "is not in use: there is nothing to unmount"),
        ("twin", "the name of 2 volumes: use an id"),
        ("snap", "snap is not in use: there is nothing to unmount"),
        ("nobody", "no volume is mounted at /cwd/nobody, and none is called 'nobody'"),
    ):
        with pytest.raises(Failure, match=message):
            find_mounted(objects, f"/cwd/{text}", text)


def test_an_agent_from_before_places_tells_one_path_of_each() -> None:
    assert views(node("db", used_by=("/a", "/b"))) == (("/a",), ("/b",))


# The tree


def _drawn(*nodes: Node) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(draw(AgentObjects(nodes)))
    return capture.get()


def test_everything_hangs_below_what_it_was_made_from() -> None:
    db = node("db", usage=Usage(2 << 20, 1 << 20, 3))
    s1 = node("s1", "snapshot", parent_id=db.id, parent_uid=db.uid)
    copy = node("copy", parent_id=s1.id, parent_uid=s1.uid)
    lines = _drawn(db, s1, copy, node("g1", "group")).splitlines()
    assert [line.split("  ")[0].strip("└├─│ ") for line in lines[:2]] == ["db", "s1"]
    assert lines[2].index("copy") > lines[1].index("s1") > lines[0].index("db")
    assert "own 2 MiB" in lines[0]
    assert "shared 1 MiB" in lines[0]
    assert lines[3].startswith("g1")


def test_what_is_wrong_with_a_disk_stands_beside_it() -> None:
    lines = _drawn(node("db", condition="its ext4 met an error and takes no more writes"), node("well")).splitlines()
    assert "takes no more writes" in lines[0]
    assert "takes no more writes" not in lines[1]


def test_mount_waits_for_a_check_and_says_so_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:

    answers = [CallRefused("ABORTED", f"db {BEING_CHECKED}, for {n} s: try again") for n in range(3)]

    class Client:
        def stage(self, *_: object) -> None:
            if answers:
                raise answers.pop(0)

    monkeypatch.setattr(mounts.time, "sleep", lambda _: None)
    client: Any = Client()
    mounts._stage(client, AgentObjects([]), VOLUME_ID, staging_of(VOLUME_ID), Capability("mount", AccessMode.WRITER))
    assert capsys.readouterr().err == f"db {BEING_CHECKED}, for 0 s: try again\n"
    for code, message in (("ABORTED", "somebody else works on it"), ("FAILED_PRECONDITION", BEING_CHECKED)):
        answers.append(CallRefused(code, message))
        with pytest.raises(CallRefused):
            mounts._stage(
                client, AgentObjects([]), VOLUME_ID, staging_of(VOLUME_ID), Capability("mount", AccessMode.WRITER)
            )


def test_an_object_with_the_parents_id_alone_is_not_the_parent() -> None:
    again = node("db", uid="another")
    s1 = node("s1", "snapshot", parent_id=again.id, parent_uid="uid-db")
    assert not is_parent(again, s1)
    out = _drawn(again, s1)
    assert "of an earlier db, deleted at least" in out.splitlines()[1]


def test_a_disk_made_from_a_snapshot_knows_it_by_the_uid_of_its_source() -> None:
    s1 = node("s1", "snapshot", parent_id=node("db").id, parent_uid="uid-db")
    assert is_parent(s1, node("copy", parent_id=s1.id, parent_uid="uid-db"))


def test_a_pool_in_trouble_is_told_below_the_table() -> None:
    freed = (Deletable("n1:default:" + "b" * 32, "nightly", "snapshot", 3 << 30),)
    space = PoolSpace("fast", "n1", "reflink", "/srv", "u", 20 << 30, 1 << 20, 0, 0, 1 << 30, 2.0, 1, 1, True, freed)
    (warning,) = pools._warnings(space, AgentObjects([]))
    assert "Pool fast of n1 has run full" in warning
    assert warning.endswith("Deleting would free most: snapshot nightly (3 GiB).")
    volume = node("db")
    member = node(f"nightly\0{volume.id}", "snapshot", id=freed[0].id, parent_id=volume.id)
    (warning,) = pools._warnings(space, AgentObjects([volume, member]))
    assert warning.endswith("Deleting would free most: snapshot nightly/db (3 GiB).")
    (warning,) = pools._warnings(replace(space, full=False, would_free=()), AgentObjects([]))
    assert (
        warning.strip() == "Pool fast of n1 refuses new volumes and snapshots: less than its reserve of 1 GiB is free."
    )


# Nobody there


def test_without_an_agent_the_next_step_is_told(tmp_path: Any) -> None:
    for command in (["pools"], ["volume", "list"], ["tree"], ["umount", str(tmp_path / "x")]):
        done = subprocess.run(
            [sys.executable, "-m", "csi_driver.cli.main", *command, "--endpoint", f"{tmp_path}/none.sock"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert "start `tidemark agent`" in done.stderr
        assert len(done.stderr.splitlines()) == 1
