"""The command: runs the story with an agent of its own, as root if possible, and cleans up."""

import os
import shutil
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from csi_driver.cli.common import Failure

if TYPE_CHECKING:
    from csi_driver.cli.demo.agent import DemoAgent
    from csi_driver.cli.demo.lab import Checks, Lab
    from csi_driver.cli.demo.screen import Screen

CORRUPT = "TIDEMARK_DEMO_CORRUPT"
"""Name of a disk or snapshot of the demo, such as `rescue`: one byte on its device is turned behind the demo's back, to
see that its checks can fail."""


def demo(
    memory: Annotated[
        bool, typer.Option("--memory", help="Keep the pool in memory: needs no root, and changes nothing here.")
    ] = False,
) -> None:
    """Show what disks and snapshots do, on a pool of its own that is gone afterwards.

    As root, or with a sudo that asks no password: a small XFS image on a loop device.
    Otherwise: in memory.
    Every step is checked against the bytes of the devices. Exit code 1: one is not as it must be.
    To see that happen, TIDEMARK_DEMO_CORRUPT=rescue turns one byte of that disk.
    """
    from csi_driver.cli.demo.agent import why_not_reflink

    reason = "asked for by --memory" if memory else why_not_reflink()
    if reason and not memory and os.geteuid() != 0 and _may_sudo():
        _again_as_root()
    raise typer.Exit(_run(in_memory=bool(reason), reason=reason))


def _may_sudo() -> bool:
    if shutil.which("sudo") is None:
        return False
    answer = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return answer.returncode == 0


def _again_as_root() -> NoReturn:
    typer.echo("Loop devices and mounts need root: running this demo by sudo (--memory does without).")
    sys.stdout.flush()
    corrupt = os.environ.get(CORRUPT)
    keep = [f"{CORRUPT}={corrupt}"] if corrupt else []
    command = ["sudo", "-n", *keep, sys.executable, "-P", "-m", "csi_driver.cli.main", "demo"]
    os.execvp("sudo", command)  # noqa: S606  no shell is what is wanted


def _run(in_memory: bool, reason: str) -> int:
    from csi_driver.cli.demo.agent import DemoAgent, uninterrupted
    from csi_driver.cli.demo.lab import CheckFailed, Checks, Lab
    from csi_driver.cli.demo.screen import Screen
    from csi_driver.cli.demo.story import play
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    screen, checks = Screen(), Checks()
    agent: DemoAgent | None = None
    lab: Lab | None = None
    try:
        with uninterrupted():
            agent = DemoAgent(in_memory)
        screen.title("Tidemark demo: disks and snapshots, block by block")
        where = f"in memory ({reason})" if in_memory else f"on XFS in {agent.root}/pool.img"
        screen.line(f"An agent of its own, {where}; spoken to through CSI alone, bytes read from the devices.", "dim")
        agent.start()
        with Client(agent.endpoint) as client:
            lab = Lab(client, agent.root, checks, os.environ.get(CORRUPT, ""))
            play(lab, screen, mounting=not in_memory)
            _finish(lab, agent, checks, screen)
    except CheckFailed as failed:
        raise Failure(f"demo: a check failed: {failed}") from None
    except CallRefused as refused:
        if agent is not None and refused.code == "UNAVAILABLE" and agent.has_ended():
            raise Failure(agent.account_for()) from None
        raise Failure(f"demo: a call was refused ({refused.code}): {refused.message}") from None
    finally:
        if agent is not None:
            _clean_up(lab, agent)
    backend = (
        f"the in-memory backend ({reason})"
        if in_memory
        else "XFS reflink (pool image of 1 GiB on a loop device, removed)"
    )
    screen.summary(f"All {checks.passed} checks passed on {backend}.")
    return 0


def _finish(lab: "Lab", agent: "DemoAgent", checks: "Checks", screen: "Screen") -> None:
    """The last step: everything is deleted, and nothing is left of it."""
    lab.clear()
    checks.that("every disk and snapshot is deleted", not lab.left(), f"still there: {', '.join(lab.left())}")
    code = agent.stop()
    checks.that("the agent ended by itself", code == 0, f"exit code {code}")
    agent.remove()
    left = agent.left()
    checks.that("nothing is left on this machine", not left, ", ".join(left))
    screen.step("Clean up")
    screen.good("disks and snapshots deleted, agent ended, nothing left: no mount, loop device, process or file")


def _clean_up(lab: "Lab | None", agent: "DemoAgent") -> None:
    """After an error or Ctrl-C as well: one more Ctrl-C must not leave half of it behind."""
    from csi_driver.cli.demo.agent import ENDINGS
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    if not agent.left():
        return
    if lab is not None and agent.running:
        with Client(agent.endpoint) as client:
            lab.client = client
            try:
                lab.clear()
            except CallRefused as refused:
                typer.echo(f"tidemark: demo: cleaning up: {refused.message}", err=True)
    agent.stop()
    agent.remove()
    left = agent.left()
    if left:
        typer.echo(f"tidemark: demo: left behind: {', '.join(left)}; remove it by hand", err=True)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
