"""Does one step for the certificates: one write under the version that the step was decided on."""

from collections.abc import Mapping

from csi_driver.kube.client import Object
from csi_driver.kube.resources import SECRETS
from csi_driver.kube.tls_secret import LOADED_PREFIX
from csi_driver.operator.certificates import ca, rotation
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.observe import ROTATE, CertificateSecrets, Observation
from csi_driver.operator.certificates.webhook_ca import write_ca_bundle

_LABELS = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/managed-by": "tidemark-controller"}


class StepExecutor:
    """Several replicas may do the same step at once, and the process may end between any two: one write counts."""

    def __init__(self, dependencies: CertificateDependencies, kept: CertificateSecrets) -> None:
        self._api = dependencies.api
        self._namespace = dependencies.namespace
        self._events = dependencies.events
        self._now = dependencies.now
        self._kept = kept

    async def execute(self, step: rotation.Step, observation: Observation) -> None:
        """Do it. Raises Conflict, AlreadyExists or NotFound if another replica was faster."""
        match step:
            case rotation.CreateCa():
                await self._create_ca(observation)
            case rotation.IssueCertificate(names):
                await self._issue(names, observation)
            case rotation.UpdateCaBundle(names):
                await self._update(names, observation, {"ca.crt": secrets.encoded(observation.ca.bundle)})
            case rotation.UpdateWebhookCaBundle():
                assert observation.webhook is not None
                await write_ca_bundle(self._api, observation.webhook, observation.ca.bundle)
            case rotation.CreateNextCa():
                message = "added the next CA to all CA bundles"
                await self._update_ca(observation, observation.ca.with_next_ca(self._now()), "RotationStarted", message)
            case rotation.PromoteNextCa():
                message = "the next CA signs; all certificates are issued again by it"
                await self._update_ca(observation, observation.ca.with_next_promoted(), "NextCaPromoted", message)
            case rotation.RemoveOldCa():
                message = "removed the old CA from all CA bundles"
                await self._update_ca(observation, observation.ca.with_old_removed(), "RotationCompleted", message)

    async def _create_ca(self, observation: Observation) -> None:
        trusted: set[bytes] = set()
        for obj in observation.issued.values():
            try:
                trusted.update(ca.split(secrets.decoded((obj or {}).get("data") or {}, "ca.crt")))
            except ValueError:
                continue
        content = secrets.recreate(sorted(trusted), self._now())
        data = {key: value for key, value in content.data().items() if value is not None}
        body = {"metadata": {"name": self._kept.ca, "labels": _LABELS}, "type": "Opaque", "data": data}
        obj = await self._api.create(SECRETS, body, self._namespace)
        message = "created a CA" + (", because the key of the trusted one was lost" if trusted else "")
        await self._events.emit(obj, "Warning" if trusted else "Normal", "CaCreated", message)

    async def _update_ca(self, observation: Observation, content: secrets.CaSecret, reason: str, message: str) -> None:
        assert observation.ca_object is not None
        metadata: Object = {"resourceVersion": observation.ca_object["metadata"]["resourceVersion"]}
        if reason == "RotationStarted":
            metadata["annotations"] = {ROTATE: None}
        patch = {"metadata": metadata, "data": content.data()}
        obj = await self._api.patch(SECRETS, self._kept.ca, patch, self._namespace)
        await self._events.emit(obj, "Normal", reason, message)

    async def _issue(self, names: rotation.Names, observation: Observation) -> None:
        ca_secret = observation.ca
        assert ca_secret.signer is not None
        pair = ca.issue(ca_secret.signer, *names, now=self._now())
        content = {"ca.crt": ca_secret.bundle, "tls.crt": pair.certificate, "tls.key": pair.key}
        data = {key: secrets.encoded(value) for key, value in content.items()}
        if observation.issued[names] is not None:
            await self._update(names, observation, data)
            return
        metadata = {"name": self._kept.spec(names).secret, "labels": _LABELS}
        body = {"metadata": metadata, "type": "kubernetes.io/tls", "data": data}
        await self._api.create(SECRETS, body, self._namespace)

    async def _update(self, names: rotation.Names, observation: Observation, data: Mapping[str, str]) -> None:
        obj = observation.issued[names]
        assert obj is not None
        # What pods have reported about the old content no longer holds.
        reports = {key: None for key in obj["metadata"].get("annotations") or {} if key.startswith(LOADED_PREFIX)}
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"], "annotations": reports}
        patch = {"metadata": metadata, "data": data}
        await self._api.patch(SECRETS, self._kept.spec(names).secret, patch, self._namespace)
