"""SnapshotSchedules and VolumeRollbacks of a cluster: list and show, read from the Kubernetes API as kubectl does."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csi_driver.cli.cluster import call
from csi_driver.cli.controller import ApiProxy, Kubeconfig
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list, print_object
from csi_driver.cli.output.times import ago
from csi_driver.cli.suggest import not_found
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.kube.resources import Kind

Object = dict[str, Any]

ObjectsNamespace = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Only objects of this namespace.", show_default="all namespaces"
    ),
]
Key = Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The object, e.g. shop/nightly.")]

schedule_app = typer.Typer(
    cls=CommandGroup, help="SnapshotSchedules of a cluster: list, show. Create them with kubectl.", no_args_is_help=True
)


@schedule_app.command("list")
def schedule_list(
    namespace: ObjectsNamespace = "",
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List the SnapshotSchedules.

    $ tidemark schedule list
    """
    from csi_driver.kube.resources import SCHEDULES

    _list(
        [
            Column("NAME", _key),
            Column("TIMES", lambda s: _status(s, "times"), rank=1),
            Column("SUSPENDED", lambda s: "yes" if s["spec"].get("suspend") else "no", rank=4),
            Column("READY", lambda s: _reason(s, "Ready")),
            Column("LAST", lambda s: _status(s, "lastScheduleTime"), rank=3),
            Column("NEXT", lambda s: _status(s, "nextScheduleTime"), rank=2),
            Column("SNAPSHOTS", lambda s: _status(s, "snapshots"), key=lambda s: _count(s, "snapshots"), right=True),
            Column("AGE", _age, key=_created, rank=5),
            Column("COMPLETE", lambda s: _reason(s, "Complete"), wide=True),
        ],
        _read(SCHEDULES, namespace, kubeconfig, api_proxy),
        output_form(output, as_json=as_json, sort=sort, no_headers=no_headers),
        "no schedules: docs/how-to/schedules.md creates one with kubectl",
    )


@schedule_app.command("show")
def schedule_show(
    schedule: Key,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Show one SnapshotSchedule: its times, its PVCs and its conditions.

    $ tidemark schedule show shop/nightly
    """
    from csi_driver.kube.resources import SCHEDULES

    found = _find(SCHEDULES, schedule, "schedule", kubeconfig, api_proxy)
    retention = ", ".join(f"{key} {value}" for key, value in (found["spec"].get("retention") or {}).items())
    pvcs = [str(pvc.get("name", "")) for pvc in (found.get("status") or {}).get("claims", [])]
    lines = [
        ("name", _key(found)),
        ("times", _status(found, "times")),
        ("suspended", "yes" if found["spec"].get("suspend") else "no"),
        ("last run", _status(found, "lastScheduleTime") or "none"),
        ("next run", _status(found, "nextScheduleTime") or "none"),
        ("PVCs", ", ".join(pvcs) or "none"),
        ("snapshots", _status(found, "snapshots") or "0"),
        ("retention", retention or "none: nothing is deleted"),
    ]
    print_object(output_form(output, as_json=as_json), found, _key(found), [*lines, *_conditions(found)])


def rollback_list(
    namespace: ObjectsNamespace = "",
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List the VolumeRollbacks of a cluster. On a single machine, `tidemark volume show` has the rollbacks of a volume.

    $ tidemark rollback list
    """
    from csi_driver.kube.resources import ROLLBACKS

    _list(
        [
            Column("NAME", _key),
            Column("PVC", lambda r: str(r["spec"].get("claimName", "")), rank=1),
            Column("SNAPSHOT", lambda r: str(r["spec"].get("snapshotName", "")), rank=2),
            Column("PHASE", lambda r: _status(r, "phase")),
            Column("REASON", lambda r: _status(r, "reason"), rank=4),
            Column("SAFETY SNAPSHOT", lambda r: _status(r, "safetySnapshotName"), rank=5),
            Column("AGE", _age, key=_created, rank=3),
            Column("MESSAGE", lambda r: _status(r, "message"), wide=True),
        ],
        _read(ROLLBACKS, namespace, kubeconfig, api_proxy),
        output_form(output, as_json=as_json, sort=sort, no_headers=no_headers),
        "no rollbacks: `tidemark rollback --claim NAMESPACE/PVC --snapshot NAME` begins one",
    )


def rollback_show(
    rollback: Key,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Show one VolumeRollback of a cluster.

    $ tidemark rollback show shop/db-x7k2p
    """
    from csi_driver.kube.resources import ROLLBACKS

    found = _find(ROLLBACKS, rollback, "rollback", kubeconfig, api_proxy)
    lines = [
        ("name", _key(found)),
        ("PVC", str(found["spec"].get("claimName", ""))),
        ("snapshot", str(found["spec"].get("snapshotName", ""))),
        ("phase", _status(found, "phase")),
        ("message", _status(found, "message")),
        ("safety snapshot", _status(found, "safetySnapshotName") or "none"),
        ("started", _status(found, "startTime")),
        ("ended", _status(found, "completionTime") or "not yet"),
    ]
    print_object(output_form(output, as_json=as_json), found, _key(found), lines)


def _list(columns: list[Column[Object]], objects: list[Object], form: Any, empty: str) -> None:
    print_list(form, sorted(objects, key=_key), columns, document=lambda item: item, name=_key, empty=empty)


def _read(kind: "Kind", namespace: str, kubeconfig: str, api_proxy: str) -> list[Object]:
    from csi_driver.domain.errors import NotFound

    async def read(api: "Api", _installation: object) -> list[Object]:
        try:
            return await api.list(kind, namespace)
        except NotFound:
            raise NotFound(f"the cluster has no {kind.plural}: install the driver's chart") from None

    return call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, "", read, api_proxy)


def _find(kind: "Kind", key: str, what: str, kubeconfig: str, api_proxy: str) -> Object:
    namespace, slash, name = key.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise typer.BadParameter(
            f"{key!r} is not a {what}: use NAMESPACE/NAME, e.g. shop/{key.strip('/') or 'nightly'}"
        )
    objects = {_key(item): item for item in _read(kind, namespace, kubeconfig, api_proxy)}
    if key not in objects:
        raise not_found(what, key, objects)
    return objects[key]


def _key(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _status(item: Object, field: str) -> str:
    value = (item.get("status") or {}).get(field)
    return "" if value is None else str(value)


def _count(item: Object, field: str) -> int:
    return int((item.get("status") or {}).get(field) or 0)


def _reason(item: Object, condition: str) -> str:
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((str(each.get("reason", "")) for each in conditions if each.get("type") == condition), "")


def _conditions(item: Object) -> list[tuple[str, str]]:
    conditions = (item.get("status") or {}).get("conditions") or []
    return [(str(each["type"]).lower(), f"{each.get('reason', '')}: {each.get('message', '')}") for each in conditions]


def _created(item: Object) -> str:
    return str(item["metadata"].get("creationTimestamp", ""))


def _age(item: Object) -> str:
    try:
        created = datetime.fromisoformat(_created(item))
    except ValueError:
        return ""
    return ago(created, datetime.now(UTC)).removesuffix(" ago")
