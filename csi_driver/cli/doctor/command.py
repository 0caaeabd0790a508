"""`tidemark doctor`: prints a line for each check, with its remedy."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import Endpoint
from csi_driver.cli.failure import Failure
from csi_driver.cli.output.documents import plain
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import print_list, say, say_wrapped
from csi_driver.cli.output.table import terminal_width
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.cli.doctor.checks import CheckResult

_SECONDS = 3.0
"""For the agent's answer: a machine that is looked at may have one that hangs."""


def doctor(
    pool: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="A directory that is to be a pool; may be repeated.")
    ] = None,
    kubelet_dir: Annotated[str, typer.Option(metavar="DIR", help="The kubelet's directory.")] = "/var/lib/kubelet",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Check whether this machine has what Tidemark needs, with or without an agent. Exit code 1 if something is missing.

    As root: other users do not see everything, and are told so.

    $ tidemark doctor --pool /srv/tidemark
    """
    from csi_driver.cli.doctor.checks import run_checks
    from csi_driver.cli.doctor.facts import collect

    form = output_form(output, as_json=as_json)
    version, error, served = _agent(endpoint)
    directories = list(dict.fromkeys(os.path.abspath(path) for path in [*(pool or ()), *served]))
    results = run_checks(collect(directories, kubelet_dir, version, error))
    if form.for_people:
        for result in results:
            message, *remedy = lines(result)
            say_wrapped(message[:6], message[6:], terminal_width())
            for line in remedy:
                say(line)  # in one piece: most are commands to copy
    else:
        print_list(form, results, [], document=plain, name=lambda result: result.check, empty="")
    failed = [result for result in results if result.state == "fail"]
    if failed:
        names = ", ".join(result.check for result in failed)
        raise Failure(
            f"{len(failed)} of {len(results)} checks failed: {names}; do what is said below each, then check again"
        )


def lines(result: "CheckResult") -> list[str]:
    """Return the line of a check, and one below it with its remedy."""
    first = f"{result.state:<5} {result.check}: {result.message}"
    return [first, f"      {result.remedy}"] if result.remedy else [first]


def _agent(endpoint: str) -> tuple[str, str, list[str]]:
    """Return the version of the agent, or why there is none, and the directories of its pools."""
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    with Client(endpoint, _SECONDS) as client:
        try:
            version = client.agent().version
            return version, "", [pool.path for pool in client.pools() if pool.backend == "reflink"]
        except CallRefused as refused:
            return "", refused.message, []
