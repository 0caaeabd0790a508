"""The API client against a real API server: the contract that the one in memory keeps as well."""

import pytest
from rig.cluster import Cluster
from rig.kubectl import Kubectl
from rig.paths import KUBECONFIG
from support.api_contract import CHECKS, Check

from csi_driver.kube.client import Api


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(cluster: Cluster, kubectl: Kubectl, check: Check) -> None:
    api = await Api.connect(str(KUBECONFIG))
    try:
        await check(api, kubectl.namespace)
    finally:
        await api.close()
