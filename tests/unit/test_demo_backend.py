"""Which pool `tidemark demo` plays on, and where: what is asked for is played or refused, and never replaced by something else."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from csi_driver.cli.demo import agent, command, lvm_pool
from csi_driver.cli.main import app

sys.path.insert(0, str(Path(__file__).parents[1] / "lvm"))

import demo as make_demo
import machine


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Kind and reason of each demo that begins; as root, with every kind of pool at hand."""
    begun: list[tuple[str, str]] = []

    def run(kind: str, reason: str, stepwise: bool = False) -> int:
        begun.append((kind, reason))
        return 0

    monkeypatch.setattr(command, "_run", run)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(agent, "why_not_reflink", lambda: "")
    monkeypatch.setattr(lvm_pool, "why_not_lvm", lambda: "")
    return begun


def demo(*options: str) -> Result:
    return CliRunner().invoke(app, ["demo", *options])


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ((), "reflink", ""),
        (("--backend", "reflink"), "reflink", ""),
        (("--backend", "lvm"), "lvm", ""),
        (("--memory",), "memory", "requested by --memory"),
        (("--backend", "memory"), "memory", "requested by --backend"),
        (("--memory", "--backend", "memory"), "memory", "requested by --memory"),
    ],
)
def test_the_pool_that_was_asked_for_is_played_on(
    played: list[tuple[str, str]], options: tuple[str, ...], kind: str, reason: str
) -> None:
    assert demo(*options).exit_code == 0
    assert played == [(kind, reason)]


def test_only_who_asked_for_nothing_gets_a_pool_in_memory_instead(
    played: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "why_not_reflink", lambda: "no loop devices")
    monkeypatch.setattr(lvm_pool, "why_not_lvm", lambda: "install Debian's lvm2")
    assert demo().exit_code == 0
    assert played == [("memory", "no loop devices")]
    for options, said in (
        (("--backend", "reflink"), "no pool on XFS can be made here: no loop devices"),
        (("--backend", "lvm"), "no pool of LVM thin can be made here: install Debian's lvm2"),
        (("--backend", "zfs"), "there is no backend 'zfs': reflink, lvm or memory"),
        (("--memory", "--backend", "lvm"), "contradict each other"),
    ):
        refused = demo(*options)
        assert refused.exit_code == 1
        assert said in str(refused.exception)
    assert len(played) == 1


def test_what_lvm_lacks_is_said_in_the_order_in_which_it_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in lvm_pool.why_not_lvm()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool != "dmsetup" else "/sbin/dmsetup")
    assert lvm_pool.why_not_lvm() == "install Debian's lvm2 and thin-provisioning-tools"
    monkeypatch.setattr("shutil.which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(lvm_pool, "lacks_kernel", lambda: True)
    assert "make demo ARGS='--backend lvm' plays it in user-mode Linux" in lvm_pool.why_not_lvm()
    monkeypatch.setattr(lvm_pool, "lacks_kernel", lambda: False)
    assert lvm_pool.why_not_lvm() == ""


@pytest.mark.parametrize(
    ("options", "is_lvm"),
    [
        (["--backend", "lvm"], True),
        (["--step", "--backend=lvm"], True),
        ([], False),
        (["--backend", "reflink"], False),
        (["--backend"], False),
        (["lvm", "--step"], False),
    ],
)
def test_make_demo_knows_what_is_asked_for(options: list[str], is_lvm: bool) -> None:
    assert make_demo.wants_lvm(options) is is_lvm


def test_make_demo_boots_a_machine_only_where_this_kernel_cannot_do_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says in one line what to install where it can do neither."""
    executed: list[list[str]] = []
    booted: list[list[str]] = []

    def execute(program: str, argv: list[str]) -> None:
        executed.append(argv)
        raise SystemExit(0)

    def boot(command: list[str], shared: Path, limit: float, **options: object) -> int:
        booted.append(command)
        return 7

    monkeypatch.setattr("os.execv", execute)
    monkeypatch.setattr(machine, "run", boot)
    monkeypatch.setattr(make_demo, "why_not_lvm", lambda: "no device mapper")
    for lacks, options in ((True, ["--step"]), (False, ["--backend", "lvm"])):
        monkeypatch.setattr(make_demo, "lacks_kernel", lambda lacks=lacks: lacks)
        with pytest.raises(SystemExit):
            make_demo.main("tidemark", options)
        assert executed.pop() == ["tidemark", "demo", *options]
    monkeypatch.setattr(make_demo, "lacks_kernel", lambda: True)
    monkeypatch.setattr(machine, "why_not", lambda: "install Debian's user-mode-linux")
    assert make_demo.main("tidemark", ["--backend", "lvm"]) == 1
    assert not booted
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(machine, "why_not", lambda: "")
    assert make_demo.main("tidemark", ["--backend", "lvm"]) == 7
    assert booted == [["tidemark", "demo", "--backend", "lvm"]]
    assert "in user-mode Linux" in capsys.readouterr().out
