"""`tidemark uninstall-check`: run by the chart before `helm uninstall` removes anything; says no while something would be stranded."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.common import Failure
from csi_driver.cli.controller import ApiProxy

if TYPE_CHECKING:
    from csi_driver.kube.client import Api

SHOWN = 3
"""Names in the message: enough to recognise what they are; `kubectl get` has the rest."""

RUNNING = {"WaitingForRelease", "SafetySnapshot", "RollingBack"}
"""Phases of a VolumeRollback that runs: without a controller nobody would end it."""


async def strands(api: "Api", driver: str, snapshots: bool = True) -> list[str]:
    """What an uninstallation would strand, one phrase a kind with the count. Raises DriverError where the API cannot tell.

    `snapshots`: whether this release serves snapshots, and so may see them.
    """
    from csi_driver.kube.resources import PVS, ROLLBACKS, SNAPSHOT_CONTENTS
    from csi_driver.operator.rollback.resource import FINALIZER

    volumes = [
        volume["metadata"]["name"]
        for volume in await api.list(PVS)
        if (volume["spec"].get("csi") or {}).get("driver") == driver
    ]
    # They outlive claims and volumes, and their finalizers are taken away by our snapshotter alone.
    contents = [
        content["metadata"]["name"]
        for content in (await api.list_served(SNAPSHOT_CONTENTS) if snapshots else [])
        if content["spec"].get("driver") == driver
    ]
    rollbacks = [
        f"{rollback['metadata']['namespace']}/{rollback['metadata']['name']}"
        for rollback in await api.list_served(ROLLBACKS)
        # Whatever the phase says, one with the finalizer may hold its volume, and nobody else would take that away.
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
    shown = ", ".join(sorted(names)[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
    return [f"{len(names)} {kind}{'' if len(names) == 1 else 's'}{whose} ({shown})"]


def uninstall_check(
    driver_name: Annotated[
        str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="The CSI driver's name.")
    ] = DRIVER_NAME,
    snapshots: Annotated[bool, typer.Option(help="Count snapshots too.")] = True,
    release: Annotated[str, typer.Option(help="Helm's release, for the next step.")] = "tidemark",
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = "tidemark",
    revision: Annotated[int, typer.Option(help="Its revision.")] = 1,
    kubeconfig: Annotated[str, typer.Option(metavar="FILE", help="Outside a pod: how to reach the cluster.")] = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Refuse to be uninstalled while volumes or snapshots of this driver exist or a rollback runs. Changes nothing."""
    from csi_driver.domain.errors import DriverError
    from csi_driver.kube.client import Api

    async def look() -> list[str]:
        api = await Api.connect(kubeconfig, api_proxy)
        try:
            return await strands(api, driver_name, snapshots)
        finally:
            await api.close()

    try:
        found = asyncio.run(look())
    except DriverError as error:
        raise Failure(f"whether disks exist cannot be told, so nothing is uninstalled: {error}") from None
    if found:
        raise Failure(
            f"not uninstalled: {' and '.join(found)} would be left with nobody to mount or delete them. Delete the claims and VolumeSnapshots first, "
            f"or `helm uninstall {release} --namespace {namespace} --no-hooks` to leave the disks where they are. To go on as "
            f"before, `helm rollback {release} {revision} --namespace {namespace}`: helm counts a refused uninstallation as begun"
        )
    typer.echo(f"no volume and no snapshot of {driver_name} exists and no rollback runs: it may be uninstalled")
