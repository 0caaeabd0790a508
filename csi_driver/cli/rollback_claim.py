"""`tidemark rollback --claim`: the same in a cluster, by a VolumeRollback."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from csi_driver.cli.common import Failure
from csi_driver.cli.node import call
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation


@dataclass(frozen=True, slots=True)
class Asked:
    """The options, as given; empty: the default of the resource."""

    claim: str
    snapshot: str
    name: str = ""
    safety: bool = True
    snapshot_class: str = ""
    timeout: str = ""
    wait: bool = True
    as_json: bool = False


def roll_back_claim(asked: Asked, kubeconfig: str, api_proxy: str = "") -> None:
    """Apply the resource and show how it goes. Raises Failure where it fails, with the disk untouched."""
    namespace, slash, claim = asked.claim.partition("/")
    if not slash or not namespace or not claim or "/" in claim:
        raise typer.BadParameter(f"{asked.claim!r} is no claim: write NAMESPACE/NAME", param_hint="--claim")
    spec: dict[str, Any] = {"claimName": claim, "snapshotName": asked.snapshot}
    if not asked.safety:
        spec["safetySnapshot"] = False
    if asked.snapshot_class:
        spec["volumeSnapshotClassName"] = asked.snapshot_class
    if asked.timeout:
        spec["timeout"] = asked.timeout
    made: list[Any] = []

    async def work(api: "Api", _: "Installation") -> dict[str, Any]:
        from csi_driver.operator.rollback import client as rollback_ask

        made.append(await rollback_ask.apply(api, namespace, asked.name, spec))
        typer.echo(f"VolumeRollback {namespace}/{made[0]['metadata']['name']} is applied", err=asked.as_json)
        status: dict[str, Any] = made[0].get("status") or {}
        if asked.wait:
            async for status in rollback_ask.watch_status(api, made[0]):
                typer.echo(f"{status['phase']}: {status['message']}", err=asked.as_json)
        return status

    try:
        status = call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, "", work, api_proxy)
    except KeyboardInterrupt:
        if not made:
            raise
        name = made[0]["metadata"]["name"]
        raise Failure(
            f"not waited for any longer, and it goes on: `kubectl -n {namespace} get volumerollback {name}` shows it, "
            "deleting it cancels it while the disk is untouched"
        ) from None
    _tell(asked, namespace, made[0]["metadata"]["name"], status)


def _tell(asked: Asked, namespace: str, name: str, status: dict[str, Any]) -> None:
    if asked.as_json:
        shown = {key: value for key, value in status.items() if key != "conditions"}
        typer.echo(json.dumps({"namespace": namespace, "name": name} | shown, indent=2))
    if status.get("phase") == "Failed":
        raise Failure(f"VolumeRollback {namespace}/{name} has failed: {status['message']}")
    safety = status.get("safetySnapshotName")
    if asked.wait and safety and not asked.as_json:
        typer.echo(f"`tidemark rollback --claim {asked.claim} --snapshot {safety}` takes it back")
