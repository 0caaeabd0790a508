"""`tidemark rollback --claim`: rolls back the volume of a PVC, by a VolumeRollback."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from csi_driver.cli.cluster import call
from csi_driver.cli.failure import Failure
from csi_driver.cli.output.form import OutputForm
from csi_driver.cli.output.printing import print_result, say, warn
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation


@dataclass(frozen=True, slots=True)
class RollbackOptions:
    """The options of the command; empty: the default of the resource."""

    claim: str
    snapshot: str
    name: str = ""
    safety: bool = True
    snapshot_class: str = ""
    timeout: str = ""
    wait: bool = True
    form: OutputForm = field(default_factory=OutputForm)


def roll_back_claim(options: RollbackOptions, kubeconfig: str, api_proxy: str = "") -> None:
    """Apply the resource and print its progress. Raises Failure if the rollback fails; the volume is unchanged then."""
    namespace, slash, claim = options.claim.partition("/")
    if not slash or not namespace or not claim or "/" in claim:
        raise typer.BadParameter(f"{options.claim!r} is not a PVC: use NAMESPACE/NAME", param_hint="--claim")
    spec: dict[str, Any] = {"claimName": claim, "snapshotName": options.snapshot}
    if not options.safety:
        spec["safetySnapshot"] = False
    if options.snapshot_class:
        spec["volumeSnapshotClassName"] = options.snapshot_class
    if options.timeout:
        spec["timeout"] = options.timeout
    applied: list[Any] = []

    async def work(api: "Api", _: "Installation") -> dict[str, Any]:
        from csi_driver.operator.rollback import client as rollbacks

        applied.append(await rollbacks.apply(api, namespace, options.name, spec))
        tell = say if options.form.for_people else warn
        tell(f"VolumeRollback {namespace}/{applied[0]['metadata']['name']} is applied")
        status: dict[str, Any] = applied[0].get("status") or {}
        if options.wait:
            async for status in rollbacks.watch_status(api, applied[0]):
                tell(f"{status['phase']}: {status['message']}")
        return status

    try:
        status = call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, "", work, api_proxy)
    except KeyboardInterrupt:
        if not applied:
            raise
        name = applied[0]["metadata"]["name"]
        raise Failure(
            f"stopped waiting; the rollback continues: `kubectl -n {namespace} get volumerollback {name}` shows it, and deleting "
            "it cancels it while the volume is unchanged"
        ) from None
    _report(options, namespace, applied[0]["metadata"]["name"], status)


def _report(options: RollbackOptions, namespace: str, name: str, status: dict[str, Any]) -> None:
    if not options.form.for_people:
        fields = {key: value for key, value in status.items() if key != "conditions"}
        print_result(options.form, {"namespace": namespace, "name": name} | fields, f"{namespace}/{name}")
    if status.get("phase") == "Failed":
        raise Failure(f"VolumeRollback {namespace}/{name} has failed: {status['message']}")
    safety = status.get("safetySnapshotName")
    if options.wait and safety and options.form.for_people:
        say(f"`tidemark rollback --claim {options.claim} --snapshot {safety}` undoes the rollback")
