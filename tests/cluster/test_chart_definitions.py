"""The chart on a cluster that learns of snapshots bit by bit: an install works on each, and an upgrade takes up what has come."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rig.cluster import Cluster

HERE = Path(__file__).resolve().parent
ANOTHER = "7"
"""The number of the cluster that is made for it."""


def test_snapshots_are_taken_up_as_their_definitions_come(cluster: Cluster) -> None:
    run = subprocess.run(
        [sys.executable, HERE / "definitions.py"],
        env={**os.environ, "TIDEMARK_CLUSTER": ANOTHER, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)

    none = found["none"]
    assert none["sidecars"] == ["csi-provisioner", "csi-resizer"]
    assert none["classes"] == {"volumesnapshotclass": None, "volumegroupsnapshotclass": None}
    assert "Snapshots are off, because the cluster does not have their CRDs" in none["notes"]

    snapshots = found["snapshots"]
    assert "csi-snapshotter" in snapshots["sidecars"]
    assert snapshots["classes"] == {"volumesnapshotclass": ["tidemark"], "volumegroupsnapshotclass": None}
    assert snapshots["gates"] == ["--feature-gates=CSIVolumeGroupSnapshot=false"], "the snapshotter would wait for ever"

    groups = found["groups"]
    assert groups["classes"] == {"volumesnapshotclass": ["tidemark"], "volumegroupsnapshotclass": ["tidemark"]}
    assert groups["gates"] == ["--feature-gates=CSIVolumeGroupSnapshot=true"]
