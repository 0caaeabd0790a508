"""From the version before to this one, back, and on again: nothing is lost and nothing is done twice."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from release_rig import AMBIENT, COUNT, counted, cut, goes_on, helm_upgrade, lines, upgrade
from rig import addons, earlier
from rig.cluster import NAMESPACE, RELEASE, Cluster
from rig.kubectl import Kubectl, is_ready
from rig.node import Node
from rig.objects import claim, pod, snapshot
from rollback_rig import ask, ended, phase_of, read_in, using
from rollback_rig import cut as cut_of
from test_schedule import schedule, times

from csi_driver.kube.quantity import parse_quantity

CONTROLLER, AGENT = "deployment/tidemark-controller", "daemonset/tidemark-agent"
_ENVIRONMENT = {"extraEnv": [{"name": name, "value": value} for name, value in AMBIENT.items()]}
OTHERWISE = {"agent": {"freezeDeadline": 4, **_ENVIRONMENT}, "controller": _ENVIRONMENT, "logFormat": "console"}
"""Values that change agents and controllers, among them an environment that must not count."""


@contextmanager
def controllers_stay(cluster: Cluster) -> Iterator[None]:
    """Within, what helm changes reaches the agents alone; afterwards the controllers too."""
    release = cluster.kubectl.within(NAMESPACE)
    release("rollout", "pause", CONTROLLER)
    try:
        yield
    finally:
        release("rollout", "resume", CONTROLLER)
    cluster.wait_installed()


def agents_are_replaced(cluster: Cluster) -> None:
    cluster.kubectl.within(NAMESPACE)("rollout", "status", AGENT, "--timeout=240s", seconds=250)


@contextmanager
def nothing_becomes_ready(cluster: Cluster) -> Iterator[None]:
    """Without the snapshot-controller, what waits for a snapshot stays in the middle."""
    system = cluster.kubectl.within("kube-system")
    system("scale", "deployment", addons.NAME, "--replicas=0")
    system("wait", "--for=delete", "pod", f"--selector=app={addons.NAME}", "--timeout=60s", seconds=70)
    try:
        yield
    finally:
        system("scale", "deployment", addons.NAME, "--replicas=1")


def half_done(kubectl: Kubectl, name: str) -> None:
    """A rollback that holds the disk, and waits for its safety snapshot."""
    ask(kubectl, name, "s1", timeout="15m")
    kubectl.until(lambda made: phase_of(made) == "SafetySnapshot", "volumerollback", name)


def rolled_back(kubectl: Kubectl, name: str) -> str:
    """The end of a rollback; the name of its safety snapshot."""
    status = ended(kubectl, name, 150)
    assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
    return str(status["safetySnapshotName"])


def made(kubectl: Kubectl) -> dict[str, str]:
    """All snapshots by name, each with what its content is on the disk."""
    contents = {each["metadata"]["name"]: each for each in kubectl.items("volumesnapshotcontent")}
    found = {}
    for each in kubectl.items("volumesnapshot"):
        content: dict[str, Any] = contents.get((each.get("status") or {}).get("boundVolumeSnapshotContentName", ""), {})
        if handle := (content.get("status") or {}).get("snapshotHandle"):
            found[each["metadata"]["name"]] = handle
    return found


@pytest.mark.slow(seconds=200)
@pytest.mark.disturbs
@pytest.mark.timeout(900)
def test_the_version_before_this_one_back_and_on_again(cluster: Cluster, kubectl: Kubectl) -> None:
    if reason := earlier.missing():
        pytest.skip(reason)
    archive = earlier.archive()
    with ThreadPoolExecutor() as pool:
        list(pool.map(Node.import_images, cluster.nodes, [archive] * len(cluster.nodes)))
    upgrade(cluster, earlier.values(), earlier.chart())
    try:
        _there_and_back(cluster, kubectl)
    except BaseException:
        upgrade(cluster)  # what comes next wants this version
        raise


def _there_and_back(cluster: Cluster, kubectl: Kubectl) -> None:
    writers = [claim("disk", labels={"app": "counted"}), claim("v1")]
    node = cluster.nodes[0].name  # both disks, so that one pod can read what comes of them
    kubectl.apply(*writers, pod("writer", ["disk"], script=COUNT, node=node), pod("other", ["v1"], node=node))
    kubectl.ready("writer", "other")
    kubectl.apply(schedule("minutely", {"app": "counted"}))
    kubectl.sh("other", "echo old >/v1/a; sync")
    cut_of(kubectl, "s1")
    kubectl.sh("other", "echo new >/v1/a; sync")
    kubectl.delete("pod", "other")
    cut(kubectl, "of-the-version-before")
    seen = made(kubectl)

    # A rollback that the version before began is ended by its controllers on agents of this one.
    with controllers_stay(cluster):
        with nothing_becomes_ready(cluster):
            half_done(kubectl, "forth")
            helm_upgrade(cluster, OTHERWISE)
            agents_are_replaced(cluster)
        safeties = {rolled_back(kubectl, "forth"): "new"}
        cut(kubectl, "by-controllers-of-before")
    goes_on(kubectl)
    with using(kubectl, name="looker") as name:
        assert read_in(kubectl, name) == {"a": "old"}
        kubectl.sh(name, "echo newer >/v1/a; sync")
    # What the version before has no words for: a size that is not what was asked for.
    kubectl.apply(claim("odd", "100M"), pod("odd", ["odd"], node=node))
    kubectl.ready("odd")
    kubectl.sh("odd", "echo odd >/odd/a; sync")
    kubectl.apply(snapshot("odd", "odd"))
    assert parse_quantity(kubectl.until(is_ready, "volumesnapshot", "odd")["status"]["restoreSize"]) == 100_000_000
    kubectl.delete("pod", "odd")
    seen |= made(kubectl)

    # One that this version began is ended by its controllers on agents of the version before.
    with controllers_stay(cluster):
        with nothing_becomes_ready(cluster):
            half_done(kubectl, "back")
            cluster.helm("rollback", RELEASE)
            agents_are_replaced(cluster)
        safeties |= {rolled_back(kubectl, "back"): "newer"}
        cut(kubectl, "by-controllers-of-this")
    goes_on(kubectl)
    kubectl.apply(pod("other", ["v1", "odd"]))
    kubectl.ready("other")
    assert read_in(kubectl, "other") == {"a": "old"}
    assert read_in(kubectl, "other", "odd") == {"a": "odd"}
    kubectl.sh("other", "echo newest >/v1/a; sync")
    seen |= made(kubectl)

    upgrade(cluster)
    goes_on(kubectl)
    had = cut(kubectl, "on-again")
    _nothing_was_lost_or_done_twice(kubectl, seen, safeties, had)


def _nothing_was_lost_or_done_twice(kubectl: Kubectl, seen: dict[str, str], safeties: dict[str, str], had: int) -> None:
    assert read_in(kubectl, "other") == {"a": "newest"}, "no rollback was made again"
    volume = kubectl.get("pv", kubectl.get("pvc", "v1")["spec"]["volumeName"])
    spent = json.loads(volume["metadata"]["annotations"]["tidemark.dev/rollbacks"])
    assert [name.partition("/")[2] for name in spent] == ["forth", "back"]
    now = made(kubectl)
    assert seen.items() <= now.items(), "every snapshot is there, and is what it was"
    assert len(set(now.values())) == len(now)
    kubectl.until(lambda found: (found.get("status") or {}).get("lastSuccessfulTime"), "snapshotschedule", "minutely")
    ran = times(kubectl, "minutely")
    assert len(set(ran)) == len(ran), "a snapshot for each time"

    kept = {name: f"kept-{number}" for number, name in enumerate(safeties)}
    claims = [claim(of, snapshot=name) for name, of in kept.items()]
    claims += [claim("counted", snapshot="on-again"), claim("odd-again", "100M", snapshot="odd")]
    kubectl.apply(*claims, pod("reader", [*kept.values(), "counted", "odd-again"]))
    kubectl.ready("reader")
    assert read_in(kubectl, "reader", "odd-again") == {"a": "odd"}, "a claim is restored as it was written"
    assert {name: read_in(kubectl, "reader", of)["a"] for name, of in kept.items()} == safeties
    assert len(counted(kubectl.sh("reader", "cat /counted/log"))) >= had
    assert lines(kubectl)
