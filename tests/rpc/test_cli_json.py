"""What `-o json` prints, by a real agent, against the schema that is published."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from support.agent_process import ready
from support.cli_schema import SCHEMA, TREE, validate

from csi_driver.cli.main import app

TIDEMARK = [sys.executable, "-m", "csi_driver.cli.main"]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def tidemark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The command, with an agent that has a pool in memory."""
    directory = tmp_path_factory.mktemp("agent")
    environment = {**os.environ, "CSI_ENDPOINT": f"unix://{directory}/csi.sock", "TIDEMARK_STAGING": f"{directory}/s"}
    options = ("--pool", "p=memory:", "--node-name", "n1", "--log-format", "json")
    with (directory / "log").open("wb") as log:
        agent = subprocess.Popen([*TIDEMARK, "agent", *options], stdout=log, stderr=log, env=environment)
    try:
        ready(environment["CSI_ENDPOINT"], agent, directory / "log").close()

        def run(*words: str) -> str:
            return subprocess.run(
                [*TIDEMARK, *words], capture_output=True, text=True, check=True, timeout=60, env=environment
            ).stdout

        yield run
    finally:
        agent.terminate()
        assert agent.wait(30) == 0


def test_every_document_is_as_the_schema_says(tidemark: Run) -> None:
    def document(*words: str) -> Any:
        return json.loads(tidemark(*words, "-o", "json"))

    validate(document("volume", "create", "db", "1Mi", "--block"), "object")
    validate(document("snapshot", "create", "db", "s1"), "taken_snapshot")
    validate(document("group", "create", "g1", "db"), "taken_group")
    validate(document("rollback", "db", "s1"), "completed_rollback")
    validate(document("volume", "expand", "db", "2Mi"), "object")
    for words, kind in (
        ("volume list", "volume"),
        ("volume show db", "volume"),
        ("snapshot list", "snapshot"),
        ("snapshot show s1", "snapshot"),
        ("group ls", "group"),
        ("group show g1", "group"),
    ):
        found = document(*words.split())
        validate(found, "object", many=isinstance(found, list))
        assert {item["kind"] for item in (found if isinstance(found, list) else [found])} == {kind}
    tree = document("tree")
    validate(tree, "object", many=True)
    assert tree[0]["usage"], "with bytes"
    assert tree[0]["rollbacks"]
    validate(document("pool", "list"), "pool", many=True)
    validate(document("pool", "show", "p"), "pool")
    validate(document("status"), "agent")
    assert yaml.safe_load(tidemark("tree", "-o", "yaml")) == tree
    validate(document("volume", "clone", "db", "db2", "--block"), "object")
    validate(document("volume", "rename", "db2", "db3"), "object")
    validate(document("volume", "delete", "db3", "--dry-run"), "deletion_estimate")
    validate(document("snapshot", "delete", "s1", "--dry-run"), "deletion_estimate")
    validate(document("top", "--interval", "0.1"), "volume_activity", many=True)
    validate(document("volume", "import", str(TREE / "README.md"), "readme"), "imported_volume")


def test_a_field_that_is_not_published_would_be_found() -> None:
    good: dict[str, Any] = {"driver": "d", "version": "1", "ready": True, "node": "n", "topology": {}}
    validate(good, "agent")
    for bad in ({**good, "other": 1}, {**good, "ready": "yes"}, {"driver": "d"}):
        with pytest.raises(jsonschema.ValidationError):
            validate(bad, "agent")


def test_the_page_names_every_definition_and_every_command_that_prints_documents() -> None:
    from typer.main import get_command

    page = (TREE / "docs" / "reference" / "cli-json.md").read_text()
    parts = {"usage", "deletable", "pool_limit"}  # inside others
    assert {name for name in SCHEMA["$defs"] if f"`{name}`" not in page} <= parts

    def with_documents(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
        for name, below in getattr(command, "commands", {}).items():
            if not below.hidden:
                yield from with_documents(below, (*words, name))
        if any("--output" in parameter.opts for parameter in command.params):
            yield " ".join(words)

    commands = set(with_documents(get_command(app)))
    assert {"volume list", "status", "schedule show"} <= commands
    assert commands <= set(re.findall(r"`([a-z ]+)`", page))
