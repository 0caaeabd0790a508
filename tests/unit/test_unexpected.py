"""No traceback reaches a person: what is missing is told in one line, and a fault says how to report it."""

import json
import os
import subprocess
import sys

import pytest
import typer

from csi_driver.cli.main import app
from csi_driver.cli.unexpected import VARIABLE, explain
from csi_driver.environment import without_ambient

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("aiohttp", "cronsim", "cryptography", "kubernetes", "tzdata")))
from csi_driver.cli.demo.typist import run_commands
run_commands(sys.stdin, sys.stdout)
"""
"""Runs commands in an environment like that of `make demo`, which has nothing for a cluster."""

OPTIONS = {"rollback create": ["--claim", "shop/db", "--snapshot", "s1"], "volume list": ["--orphans"]}
"""What makes these commands work in a cluster."""


def commands_of_a_cluster() -> list[list[str]]:
    """Every command that takes a kubeconfig, with words for its required arguments."""
    found = []
    waiting = [([], typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        waiting += [([*words, name], each) for name, each in getattr(command, "commands", {}).items()]
        if any(parameter.name == "kubeconfig" for parameter in command.params):
            required = ["shop/x" for p in command.params if p.param_type_name == "argument" and p.required]
            found.append([*words, *required, *OPTIONS.get(" ".join(words), [])])
    # Those of a pod first: gRPC's variables, which the others set, would have them restart without WITHOUT.
    return sorted(found, key=lambda words: words[0] not in ("controller", "uninstall-check"))


def test_each_command_of_a_cluster_says_in_one_line_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    commands = commands_of_a_cluster()
    assert {("node", "list"), ("uninstall-check",), ("controller",)} <= {
        tuple(w for w in command if w != "shop/x") for command in commands
    }
    lines = "".join(json.dumps(command) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env=without_ambient(os.environ),
    )
    answers = done.stdout.splitlines()
    assert len(answers) == len(commands)
    for command, answer in zip(commands, map(json.loads, answers), strict=True):
        assert answer["code"] == 1, (command, answer)
        assert "\n" not in answer["output"], (command, answer)
        # One of them asks the agent first, and there is none.
        missing = "no agent answers at" if command[:2] == ["volume", "list"] else "pip install '.[controller]'"
        assert missing in answer["output"], (command, answer)


def test_a_fault_is_one_line_and_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        fault = error
    assert explain(fault) == (
        "this is a fault of tidemark: ValueError: two lines: run it again with TIDEMARK_TRACEBACK=1, and report what that prints"
    )
    assert "Traceback" in explain(fault, with_traceback=True)
    monkeypatch.setenv(VARIABLE, "1")
    assert explain(fault).splitlines()[-1] == "tidemark: this is a fault of tidemark: ValueError: two lines"
    assert "test_unexpected.py" in explain(fault)


def test_a_module_of_our_own_that_is_missing_is_a_fault() -> None:
    assert "fault of tidemark" in explain(ModuleNotFoundError("No module named 'csi_driver.x'", name="csi_driver.x"))
