"""Fixtures of the scenarios: one cluster for all that run in a process, and a namespace for each test."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.cluster import Cluster, why_not
from rig.kubectl import Kubectl
from rig.objects import storage_class
from rig.paths import RAN, STATE, WORKER

HERE = Path(__file__).resolve().parent
_FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("cluster")
            # Most of it is what Kubernetes takes on two cores, not what is tested. Of the test alone: the first one's
            # fixtures build an image and a cluster.
            given = item.get_closest_marker("timeout")
            seconds = given.args[0] if given else 300
            item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The machine's cluster with Tidemark installed: the one that is up, or one that is made, and removed at the end."""
    if reason := why_not():
        if os.environ.get("CI"):
            pytest.fail(f"no cluster can be had here, and CI is set: {reason}")
        pytest.skip(f"no cluster can be had here: {reason}")
    if present := Cluster.present():
        yield present
        return
    if WORKER:
        pytest.fail(f"side by side, scenarios want clusters that are up: {STATE} has none")
    made = Cluster()
    try:
        made.up(print)
        made.install()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def xfs(cluster: Cluster) -> Iterator[str]:
    """A StorageClass whose disks have XFS, which grows while it is mounted, whatever this machine's root may do."""
    name = f"test-xfs-{WORKER or 'alone'}"
    cluster.kubectl.apply(storage_class(name, parameters={"csi.storage.k8s.io/fstype": "xfs"}))
    yield name
    cluster.kubectl.delete("storageclass", name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
        if STATE.exists():
            with RAN.open("a") as ran:
                ran.write(f"{item.path.name}\n")
    return report


@pytest.fixture
def kubectl(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, which is deleted after it; a failure tells what the cluster was like."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    namespace = f"{name}-{os.urandom(2).hex()}"
    cluster.kubectl("create", "namespace", namespace)
    try:
        yield cluster.kubectl.within(namespace)
    finally:
        if request.node.stash.get(_FAILED, False):
            print(cluster.described(namespace))
        cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
