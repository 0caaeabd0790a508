"""Runs the reconciler of a cluster's certificates, on every replica.

The only key is due at once, and then when the result says so: a watch would need the right to list all Secrets.
"""

from csi_driver.kube.workqueue import Reconciler, WorkQueue

KEY = "certificates"


class CertificateController:
    """Keeps the certificates that Tidemark makes, or watches those that the user supplies.

    `retry_seconds`: after a reconciliation that failed.
    """

    def __init__(self, reconciler: Reconciler[str], retry_seconds: float) -> None:
        self._reconciler = reconciler
        self._queue: WorkQueue[str] = WorkQueue("certificates", 1, retry_seconds, retry_seconds)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        self._queue.add(KEY)
        await self._queue.run(self._reconciler)
