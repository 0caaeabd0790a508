"""Chart and program agree: options that exist, names that the controller looks for, roles that the other side checks."""

from __future__ import annotations

import pytest
import typer.main
from chart_rig import VALUES, Chart

from csi_driver.cli.main import app
from csi_driver.operator.installation import AGENT_LABELS, CONTROLLER_LABELS, Installation
from csi_driver.rpc import tls

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options(command: str) -> tuple[set[str], set[str]]:
    """Environment variables and long options that a command takes."""
    variables: set[str] = set()
    words: set[str] = set()
    for parameter in COMMANDS[command].params:
        named = parameter.envvar or []
        variables |= {named} if isinstance(named, str) else set(named)
        words |= {*parameter.opts, *parameter.secondary_opts}
    return variables, words


@pytest.mark.parametrize("values", [None, VALUES / "everything.yaml"], ids=["default", "everything"])
@pytest.mark.parametrize("name", ["agent", "controller", "uninstall-check"])
def test_the_program_takes_what_the_chart_says(chart: Chart, name: str, values: object) -> None:
    container = chart.render(values).container(name)
    command, *arguments = container["args"]
    variables, words = options(command)
    given = {one["name"] for one in container.get("env", [])} - {"TZ"}  # the user's own, in the values
    assert given <= variables
    assert {argument.partition("=")[0] for argument in arguments} <= words


@pytest.mark.parametrize("release", ["tidemark", "disks"])
def test_the_controller_finds_what_the_chart_makes(chart: Chart, release: str) -> None:
    documents = chart.render(VALUES / "groups.yaml", release=release)
    (full,) = {name.removesuffix("-controller") for name in documents.names("Deployment")}
    ours = Installation("tidemark", full, "csi.tidemark.dev")
    for kind, selector in (("DaemonSet", AGENT_LABELS), ("Deployment", CONTROLLER_LABELS)):
        wanted = dict(pair.split("=") for pair in selector.split(","))
        for workload in documents.of(kind):
            assert wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    assert all(name.startswith(f"{full}-agent") for name in documents.names("DaemonSet"))
    # The rights name what the controller is going to make.
    rules = str([role["rules"] for role in documents.of("Role")])
    for name in (ours.decommissioned_nodes, f"{full}-authority", f"{full}-controller-tls", f"{full}-agent-tls"):
        assert f"'{name}'" in rules
    assert documents.names("MutatingWebhookConfiguration") == {f"{full}-pin"}
    assert f"{full}-webhook" in documents.names("Service")


def test_certificates_of_cert_manager_have_the_roles_that_are_checked(chart: Chart) -> None:
    documents = chart.render({"tls": {"certManager": {"enabled": True, "issuer": {"name": "ours"}}}})
    names = {one["metadata"]["name"]: one["spec"]["dnsNames"] for one in documents.of("Certificate")}
    assert names["tidemark-controller"][0] == tls.CONTROLLER
    assert names["tidemark-agent"] == [tls.AGENT]
