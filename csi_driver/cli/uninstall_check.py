"""`tidemark uninstall-check`: run by the chart before `helm uninstall` removes anything; refuses while something would be stranded."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.controller import ApiProxy
from csi_driver.cli.failure import Failure
from csi_driver.cli.output.printing import say

if TYPE_CHECKING:
    from csi_driver.kube.client import Api

MAX_NAMES = 3
"""Names in the message: enough to recognise the objects; `kubectl get` has the rest."""

RUNNING = {"WaitingForRelease", "SafetySnapshot", "RollingBack"}
"""Phases of a VolumeRollback that runs: without a controller it would never end."""


async def strands(api: "Api", driver: str, snapshots: bool = True) -> list[str]:
    """Return what an uninstallation would strand, one phrase with the count for each kind. Raises DriverError.

    `snapshots`: whether this release serves snapshots, and so may list them.
    """
    from csi_driver.kube.resources import PVS, ROLLBACKS, SNAPSHOT_CONTENTS
    from csi_driver.operator.rollback.resource import FINALIZER

    volumes = [
        volume["metadata"]["name"]
        for volume in await api.list(PVS)
        if (volume["spec"].get("csi") or {}).get("driver") == driver
    ]
    # They outlive PVCs and PVs, and only this driver's snapshotter removes their finalizers.
    contents = [
        content["metadata"]["name"]
        for content in (await api.list_served(SNAPSHOT_CONTENTS) if snapshots else [])
        if content["spec"].get("driver") == driver
    ]
    rollbacks = [
        f"{rollback['metadata']['namespace']}/{rollback['metadata']['name']}"
        for rollback in await api.list_served(ROLLBACKS)
        # In any phase, one with the finalizer may hold its volume, and only the controller removes that.
        if (rollback.get("status") or {}).get("phase") in RUNNING
        or FINALIZER in (rollback["metadata"].get("finalizers") or ())
    ]
    return [
        *_phrase(volumes, "PersistentVolume", f" of {driver}"),
        *_phrase(contents, "VolumeSnapshotContent", f" of {driver}"),
        *_phrase(rollbacks, "running VolumeRollback"),
    ]


def _phrase(names: list[str], kind: str, whose: str = "") -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:MAX_NAMES]) + (" ..." if len(names) > MAX_NAMES else "")
    return [f"{len(names)} {kind}{'' if len(names) == 1 else 's'}{whose} ({shown})"]


def uninstall_check(
    driver_name: Annotated[
        str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="Name of the CSI driver, as in its CSIDriver object.")
    ] = DRIVER_NAME,
    snapshots: Annotated[bool, typer.Option(help="Count snapshots as well.")] = True,
    release: Annotated[str, typer.Option(help="Name of the Helm release, for the message.")] = "tidemark",
    namespace: Annotated[str, typer.Option(help="Namespace of the release, for the message.")] = "tidemark",
    revision: Annotated[int, typer.Option(help="Revision of the release, for the message.")] = 1,
    kubeconfig: Annotated[
        str, typer.Option(metavar="FILE", help="Path to a kubeconfig file; not needed in a pod.")
    ] = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Refuse an uninstallation while volumes or snapshots of this driver exist or a rollback runs. Changes nothing."""
    import asyncio

    from csi_driver.domain.errors import DriverError
    from csi_driver.kube.client import Api

    async def check() -> list[str]:
        api = await Api.connect(kubeconfig, api_proxy)
        try:
            return await strands(api, driver_name, snapshots)
        finally:
            await api.close()

    try:
        stranded = asyncio.run(check())
    except DriverError as error:
        raise Failure(f"not uninstalled: cannot check whether volumes exist: {error}") from None
    if stranded:
        raise Failure(
            f"not uninstalled: {' and '.join(stranded)} would be stranded: nothing could mount or delete them. "
            "Delete the PVCs and VolumeSnapshots first, "
            f"or `helm uninstall {release} --namespace {namespace} --no-hooks` to leave the volumes where they are. "
            f"To keep the release, `helm rollback {release} {revision} --namespace {namespace}`: helm counts a refused uninstallation as started"
        )
    say(f"no volume and no snapshot of {driver_name} exists and no rollback runs: uninstall is safe")
