"""What the reconcilers of certificates are built from."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from csi_driver.kube.client import Api
from csi_driver.kube.events import EventRecorder


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CertificateDependencies:
    """`webhook`: name of the MutatingWebhookConfiguration that gets the CA bundle; empty: none.

    `set_expiry(role, ends)` receives what each reconciliation has read.
    """

    api: Api
    namespace: str
    webhook: str
    events: EventRecorder
    set_expiry: Callable[[str, datetime], None]
    now: Callable[[], datetime] = _utc_now
