"""The command: runs the story with an agent of its own, as root if possible, and cleans up."""

import os
import shutil
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from csi_driver.cli.failure import Failure

if TYPE_CHECKING:
    from csi_driver.cli.demo.agent import DemoAgent
    from csi_driver.cli.demo.lab import Checks, Lab
    from csi_driver.cli.demo.pools import Kind
    from csi_driver.cli.demo.screen import Screen

CORRUPT = "TIDEMARK_DEMO_CORRUPT"
"""Name of a disk or snapshot of the demo, e.g. `rescue`: one byte on its device is changed, to show that the checks can
fail."""


def demo(
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Keep the pool in memory; needs no root and changes nothing on this machine."),
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="KIND",
            help="The kind of pool: reflink (default), lvm (LVM thin, on a loop device), or memory.",
        ),
    ] = "",
    step: Annotated[bool, typer.Option("--step", help="Wait for a key before each further step.")] = False,
) -> None:
    """Undo a bad migration of a database, and show how that works, on a temporary pool.

    As root, or if sudo needs no password: a small XFS image on a loop device.
    Otherwise: in memory.
    With --backend lvm: LVM thin in a file behind a loop device; needs root, lvm2 and the kernel's module dm-thin-pool.
    Each step compares the bytes of the devices with the expected content. Exit code 1: a check failed.
    TIDEMARK_DEMO_CORRUPT=rescue changes one byte of that disk, so that a check fails.

    $ tidemark demo --step
    $ tidemark demo --memory
    $ tidemark demo --backend lvm
    """
    from csi_driver.cli.demo.agent import why_not_reflink
    from csi_driver.cli.demo.lvm_pool import why_not_lvm

    if memory and backend not in ("", "memory"):
        raise Failure(f"demo: --memory and --backend {backend} contradict each other: give one of them")
    if backend not in ("", "memory", "reflink", "lvm"):
        raise Failure(f"demo: there is no backend {backend!r}: reflink, lvm or memory")
    asked = "memory" if memory else backend
    options = [*(["--backend", backend] if backend else []), *(["--step"] if step else [])]
    if asked != "memory" and os.geteuid() != 0 and _may_sudo():
        _restart_as_root(options)
    if asked == "lvm":
        if reason := why_not_lvm():
            raise Failure(f"demo: no pool of LVM thin can be made here: {reason}")
        raise typer.Exit(_run("lvm", "", stepwise=step))
    reason = f"requested by --{'memory' if memory else 'backend'}" if asked == "memory" else why_not_reflink()
    if reason and asked == "reflink":
        raise Failure(f"demo: no pool on XFS can be made here: {reason}")
    raise typer.Exit(_run("memory" if reason else "reflink", reason, stepwise=step))


def _may_sudo() -> bool:
    if shutil.which("sudo") is None:
        return False
    answer = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return answer.returncode == 0


def _restart_as_root(options: list[str]) -> NoReturn:
    typer.echo("Loop devices and mounts need root: running this demo with sudo (--memory needs no root).")
    sys.stdout.flush()
    corrupt = os.environ.get(CORRUPT)
    keep = [f"{CORRUPT}={corrupt}"] if corrupt else []
    command = ["sudo", "-n", *keep, sys.executable, "-P", "-m", "csi_driver.cli.main", "demo", *options]
    os.execvp("sudo", command)  # noqa: S606  without a shell


def _run(kind: "Kind", reason: str, stepwise: bool = False) -> int:
    from csi_driver.cli.demo import keys
    from csi_driver.cli.demo.agent import DemoAgent, uninterrupted
    from csi_driver.cli.demo.lab import CheckFailed, Checks, Lab
    from csi_driver.cli.demo.screen import Screen
    from csi_driver.cli.demo.story import play
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    waits = stepwise and keys.at_terminal()
    screen, checks = Screen(keys.wait_for_key if waits else None), Checks()
    agent: DemoAgent | None = None
    lab: Lab | None = None
    try:
        with uninterrupted():
            agent = DemoAgent(kind, reason)
        screen.title("Tidemark demo: a database, a bad migration, and how it is undone")
        screen.line(
            f"An agent of its own, {agent.pool.where}; all calls through CSI, all bytes read from the devices.", "dim"
        )
        if stepwise and not waits:
            screen.line(keys.NO_TERMINAL)
        agent.start()
        with Client(agent.endpoint) as client:
            lab = Lab(client, agent.root, checks, os.environ.get(CORRUPT, ""))
            play(lab, screen, mounting=agent.pool.mounting)
            _finish(lab, agent, checks, screen)
    except CheckFailed as failed:
        raise Failure(f"demo: a check failed: {failed}") from None
    except CallRefused as refused:
        if agent is not None and refused.code == "UNAVAILABLE" and agent.has_ended():
            raise Failure(agent.describe_failure()) from None
        raise Failure(f"demo: a call was refused ({refused.code}): {refused.message}") from None
    finally:
        if agent is not None:
            _clean_up(lab, agent)
    screen.summary(f"All {checks.passed} checks passed on {agent.pool.summary}.")
    return 0


def _finish(lab: "Lab", agent: "DemoAgent", checks: "Checks", screen: "Screen") -> None:
    """Delete everything and check that nothing remains."""
    lab.clear()
    checks.that("every disk and snapshot is deleted", not lab.remaining(), f"remaining: {', '.join(lab.remaining())}")
    code = agent.stop()
    checks.that("the agent ended at SIGTERM", code == 0, f"exit code {code}")
    agent.remove()
    remaining = agent.remaining()
    checks.that("nothing remains on this machine", not remaining, ", ".join(remaining))
    screen.step("Clean up")
    screen.good("disks and snapshots deleted, agent ended, nothing remains: no mount, loop device, process or file")


def _clean_up(lab: "Lab | None", agent: "DemoAgent") -> None:
    """Clean up, also after an error or Ctrl-C: another Ctrl-C must not interrupt this."""
    from csi_driver.cli.demo.agent import ENDINGS
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    if not agent.remaining():
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
    remaining = agent.remaining()
    if remaining:
        typer.echo(f"tidemark: demo: not removed: {', '.join(remaining)}; remove it by hand", err=True)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
