"""What a real API server makes of our definitions' rules about durations: its estimate of their cost, and their verdicts."""

from __future__ import annotations

import json

import pytest
from rig.kubectl import Kubectl, KubectlError

TAKEN = ["1s", "90s", "10m", "1h30m", "30m1h", "168h", "1d", "7d", "6d24h", "1d1s", "0d1s"]
REFUSED = ["0s", "0d", "", "169h", "8d", "7d1s", "6d24h1s", "999999d", "1h1d", "10", "1.5h", "-1m", "5ms"]


def rollback(timeout: str) -> str:
    spec = {"claimName": "db", "snapshotName": "s1", "timeout": timeout}
    kind = {"apiVersion": "tidemark.dev/v1alpha1", "kind": "VolumeRollback"}
    return json.dumps(kind | {"metadata": {"name": "back"}, "spec": spec})


def test_timeouts_of_a_rollback(kubectl: Kubectl) -> None:
    """From one second to seven days, written with days or without."""
    for timeout in TAKEN:
        kubectl("create", "--dry-run=server", "--filename=-", stdin=rollback(timeout))
    for timeout in REFUSED:
        with pytest.raises(KubectlError, match=r"spec\.timeout"):
            kubectl("create", "--dry-run=server", "--filename=-", stdin=rollback(timeout))
