"""TLS files of a controller: read from a Secret through the API, and written to memory in the kubelet's layout.

The Secret is polled by name: a watch would need the right to list Secrets, and nothing here is urgent. An annotation on that
Secret, one key for each pod, says which certificates a replica has loaded.
"""

import asyncio
import os
import shutil
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from csi_driver.domain.certificates import FILES, fingerprint
from csi_driver.domain.errors import DriverError, NotFound, Precondition, Unavailable
from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import PODS, SECRETS

LOADED_PREFIX = "holds.tidemark.dev/"
"""Prefix of the annotations that say which certificates a pod has loaded, by fingerprint."""

POLL_SECONDS = 10.0
"""Between two reads of the Secret: a kubelet takes about a minute for the agents'."""

FIRST_POLL_SECONDS = 0.5
"""As POLL_SECONDS, until there is a certificate: nothing is served without."""

log = structlog.get_logger()


class TlsSecretFiles:
    """One Secret of type TLS in one directory. `pod`: the pod that reports what it has loaded; empty: none."""

    def __init__(self, api: Api, namespace: str, secret: str, directory: Path, pod: str = "") -> None:
        self._api = api
        self._namespace = namespace
        self._secret = secret
        self._directory = directory
        self._pod = pod
        self._written: dict[str, bytes] = {}

    async def refresh(self) -> None:
        """Update the directory. Raises Unavailable if the API does not answer, Precondition if the Secret is incomplete."""
        secret = await self._api.get(SECRETS, self._secret, self._namespace)
        if secret is None:
            raise Unavailable(f"Secret {self._namespace}/{self._secret} does not exist yet")
        data = secret.get("data") or {}
        try:
            files = {name: b64decode(data[name], validate=True) for name in FILES}
        except (KeyError, ValueError) as error:
            raise Precondition(
                f"Secret {self._namespace}/{self._secret} lacks one of {', '.join(FILES)}; use type kubernetes.io/tls "
                "and add ca.crt"
            ) from error
        if files != self._written:
            replace_atomically(self._directory, files)
            self._written = files
        if self._pod:
            await self._report(
                secret["metadata"].get("annotations") or {}, fingerprint(files["ca.crt"], files["tls.crt"])
            )

    async def run(self) -> None:
        """Follow the Secret until cancelled. The files stay while the API is away."""
        last_error = ""
        while True:
            try:
                await self.refresh()
                last_error = ""
            except DriverError as error:
                if str(error) != last_error:
                    log.warning("read TLS Secret failed", secret=self._secret, why=str(error))
                last_error = str(error)
            await asyncio.sleep(POLL_SECONDS if self._written else FIRST_POLL_SECONDS)

    async def _report(self, annotations: Mapping[str, str], loaded: str) -> None:
        key = report_key(self._pod)
        if annotations.get(key) != loaded:
            with suppress(NotFound):  # just deleted: it is created again, and reported then
                patch = {"metadata": {"annotations": {key: loaded}}}
                await self._api.patch(SECRETS, self._secret, patch, self._namespace)


def report_key(pod: str) -> str:
    """Return the annotation in which a pod reports what it has loaded."""
    return LOADED_PREFIX + owner_of_node(pod)  # a key has at most 63 characters, as a label's value


def replace_atomically(directory: Path, files: Mapping[str, bytes]) -> None:
    """Replace all files at once: a reader of `..data` sees old ones or new ones, never some of each."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in directory.glob("..tmp*"):
        old.unlink()
    number = 1 + max((int(path.name[2:]) for path in directory.glob("..[0-9]*")), default=0)
    version = directory / f"..{number}"
    version.mkdir(mode=0o700)
    for name, content in files.items():
        descriptor = os.open(version / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    link = directory / "..tmp"
    link.symlink_to(version.name)
    link.rename(directory / "..data")
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(Path("..data", name))
    for path in directory.glob("..[0-9]*"):
        if path != version:
            shutil.rmtree(path)


async def loaded_by_pods(api: Api, namespace: str, labels: str, prefix: str, secret: Object) -> dict[str, str]:
    """Return what each running pod reports to have loaded of a Secret, by name; empty if it has reported nothing.

    The pods are those of a selector whose names begin with `prefix`, except those that are ending, and those without a
    node: they read the Secret as it is when they start.
    """
    annotations = secret["metadata"].get("annotations") or {}
    pods = await api.list(PODS, namespace, labels=labels)
    names = [pod["metadata"]["name"] for pod in pods if _runs(pod) and pod["metadata"]["name"].startswith(prefix)]
    return {name: annotations.get(report_key(name), "") for name in names}


def _runs(pod: Object) -> bool:
    ended = (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    return bool((pod.get("spec") or {}).get("nodeName")) and not ended and "deletionTimestamp" not in pod["metadata"]
