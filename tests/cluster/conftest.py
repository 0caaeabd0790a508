"""Fixtures of the scenarios: one cluster for all, and a namespace for each test."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.cluster import Cluster, why_not
from rig.kubectl import Kubectl
from rig.objects import storage_class

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
    cluster.kubectl.apply(storage_class("test-xfs", parameters={"csi.storage.k8s.io/fstype": "xfs"}))
    yield "test-xfs"
    cluster.kubectl.delete("storageclass", "test-xfs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and report.when == "call":
        item.stash[_FAILED] = True
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
