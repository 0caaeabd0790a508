"""Reconciles the CA and the certificates of a cluster: observes, asks rotation.py for the next step, and does it.

Each step is one write under the version that it was decided on, so that several replicas may do this at once, and the
process may end between any two of them.
"""

import structlog

from csi_driver.domain.errors import AlreadyExists, NotFound, Unavailable
from csi_driver.kube.errors import Conflict
from csi_driver.kube.workqueue import Result
from csi_driver.operator.certificates import rotation
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.executor import StepExecutor
from csi_driver.operator.certificates.observe import CertificateObserver, CertificateSecrets, Observation

PERIOD_SECONDS = 30.0
"""Between two reconciliations while there is nothing to do."""

WAITING_SECONDS = 5.0
"""Between two checks of peers that have not loaded their certificates yet, and after a reconciliation that failed."""

MAX_STEPS = 100
"""In one reconciliation: more than a whole rotation has. Beyond it, another process changes the same Secrets forever."""

log = structlog.get_logger()


class CertificateReconciler:
    """Every replica runs one: no certificate waits for a leader."""

    def __init__(self, dependencies: CertificateDependencies, kept: CertificateSecrets) -> None:
        self._dependencies = dependencies
        self._kept = kept
        self._observer = CertificateObserver(dependencies, kept)
        self._executor = StepExecutor(dependencies, kept)
        self._waiting: tuple[str, ...] = ()

    async def reconcile(self, _: str) -> Result:
        """Do all steps that can be done now. Raises as `do_all`."""
        return Result(WAITING_SECONDS if (await self.do_all()).waiting else PERIOD_SECONDS)

    async def do_all(self) -> rotation.Idle:
        """Do all steps that can be done now. Raises Unavailable, or Precondition if a Secret has invalid content."""
        for _ in range(MAX_STEPS):
            step = await self.step()
            if isinstance(step, rotation.Idle):
                return step
        raise Unavailable(
            f"the certificates of {self._kept.ca} keep changing: another process is writing the same Secrets"
        )

    async def step(self) -> rotation.Step:
        """Do one step and return it. If another replica was faster, nothing was done."""
        observation = await self._observer.observe()
        step = self._plan(observation, None)
        if isinstance(step, rotation.CheckPeers):
            step = self._plan(observation, await self._observer.stale_peers(observation))
        if isinstance(step, rotation.Idle):
            await self._report_waiting(observation, step.waiting)
            return step
        log.info("certificate step", step=_describe(step))
        try:
            await self._executor.execute(step, observation)
        except (Conflict, AlreadyExists, NotFound) as error:
            log.info("another replica was faster", step=_describe(step), why=str(error))
        return step

    def _plan(self, observation: Observation, stale_peers: tuple[str, ...] | None) -> rotation.Step:
        state = observation.state(stale_peers)
        self._observer.report_expiry(state)
        return rotation.next_step(state, self._dependencies.now())

    async def _report_waiting(self, observation: Observation, waiting: tuple[str, ...]) -> None:
        if waiting and waiting != self._waiting and observation.ca_object is not None:
            log.info("rotation waits for peers", peers=waiting)
            message = f"waiting for these peers to load their certificates: {', '.join(waiting)}"
            await self._dependencies.events.emit(observation.ca_object, "Normal", "RotationWaiting", message)
        self._waiting = waiting


def _describe(step: rotation.Step) -> str:
    return " ".join([type(step).__name__, *getattr(step, "names", ())])
