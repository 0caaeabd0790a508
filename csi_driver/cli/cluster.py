"""The Kubernetes API, for commands that read or change objects of a cluster."""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from csi_driver.cli.failure import Failure
from csi_driver.cli.unexpected import missing

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation

_Result = TypeVar("_Result")


def call(
    kubeconfig: str,
    namespace: str,
    release: str,
    driver: str,
    work: "Callable[[Api, Installation], Awaitable[_Result]]",
    api_proxy: str = "",
) -> _Result:
    """Run `work` with a client of the cluster's API. Raises Failure with the message of the error."""
    import asyncio

    from csi_driver.domain.errors import DriverError

    try:
        from csi_driver.kube.client import Api, default_kubeconfig
        from csi_driver.operator.installation import Installation
    except ImportError as error:
        raise Failure(missing(error.name or "")) from None

    configuration = kubeconfig or default_kubeconfig()
    if not configuration and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise Failure(
            "this command needs a Kubernetes cluster, and none is configured: use --kubeconfig FILE, or set KUBECONFIG"
        )

    async def connected() -> _Result:
        api = await Api.connect(configuration, api_proxy)
        try:
            return await work(api, Installation(namespace, release, driver))
        finally:
            await api.close()

    try:
        return asyncio.run(connected())
    except DriverError as error:
        raise Failure(str(error)) from None
