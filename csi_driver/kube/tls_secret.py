"""Certificates of a controller: read from a Secret through the API, and laid out in memory as the kubelet lays one out.

Read by name and by polling: a watch would need the right to list Secrets, and nothing here is urgent. Which ones a replica
has loaded is told by an annotation on that Secret, one key a pod.
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

HOLDS = "holds.tidemark.dev/"
"""What the annotations begin with that tell which pod has loaded which certificates, by their fingerprint."""

LOOK_SECONDS = 10.0
"""Between two looks at the Secret: a kubelet takes about a minute for the agents'."""

FIRST_SECONDS = 0.5
"""The same before there are any: nothing is served without."""

log = structlog.get_logger()


class TlsSecretFiles:
    """One Secret of type TLS in one directory. `pod`: who tells that it has loaded it; empty: nobody."""

    def __init__(self, api: Api, namespace: str, secret: str, directory: Path, pod: str = "") -> None:
        self._api = api
        self._namespace = namespace
        self._secret = secret
        self._directory = directory
        self._pod = pod
        self._written: dict[str, bytes] = {}

    async def refresh(self) -> None:
        """Bring the directory up to date. Raises Unavailable where the API does not tell, Precondition where the Secret
        does not hold what it must.
        """
        secret = await self._api.get(SECRETS, self._secret, self._namespace)
        if secret is None:
            raise Unavailable(f"Secret {self._namespace}/{self._secret} is not there yet")
        data = secret.get("data") or {}
        try:
            files = {name: b64decode(data[name], validate=True) for name in FILES}
        except (KeyError, ValueError) as error:
            raise Precondition(
                f"Secret {self._namespace}/{self._secret} does not hold {', '.join(FILES)}: make it one of type "
                "kubernetes.io/tls with ca.crt beside"
            ) from error
        if files != self._written:
            replace_atomically(self._directory, files)
            self._written = files
        if self._pod:
            await self._tell(
                secret["metadata"].get("annotations") or {}, fingerprint(files["ca.crt"], files["tls.crt"])
            )

    async def run(self) -> None:
        """Follow the Secret until cancelled. What was written stays in force while the API is away."""
        told = ""
        while True:
            try:
                await self.refresh()
                told = ""
            except DriverError as error:
                if str(error) != told:
                    log.warning("certificates are not followed", secret=self._secret, why=str(error))
                told = str(error)
            await asyncio.sleep(LOOK_SECONDS if self._written else FIRST_SECONDS)

    async def _tell(self, told: Mapping[str, str], loaded: str) -> None:
        key = report_key(self._pod)
        if told.get(key) != loaded:
            with suppress(NotFound):  # deleted in this moment: it is made again, and told of then
                patch = {"metadata": {"annotations": {key: loaded}}}
                await self._api.patch(SECRETS, self._secret, patch, self._namespace)


def report_key(pod: str) -> str:
    """The annotation by which a pod tells what it has loaded."""
    return HOLDS + owner_of_node(pod)  # a key holds 63 characters, as a label's value does


def replace_atomically(directory: Path, files: Mapping[str, bytes]) -> None:
    """Replace all files at once: a reader that follows `..data` sees old ones or new ones, never some of each."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in directory.glob("..tmp*"):
        old.unlink()
    number = 1 + max((int(path.name[2:]) for path in directory.glob("..[0-9]*")), default=0)
    made = directory / f"..{number}"
    made.mkdir(mode=0o700)
    for name, content in files.items():
        descriptor = os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    link = directory / "..tmp"
    link.symlink_to(made.name)
    link.rename(directory / "..data")
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(Path("..data", name))
    for path in directory.glob("..[0-9]*"):
        if path != made:
            shutil.rmtree(path)


async def loaded_by_pods(api: Api, namespace: str, labels: str, prefix: str, secret: Object) -> dict[str, str]:
    """What the running pods of a selector whose names begin with `prefix` have told to have loaded of a Secret, by name;
    empty where one has told nothing.

    A pod that ends is left out, and one that has no node yet: it reads the Secret as it is when it starts.
    """
    told = secret["metadata"].get("annotations") or {}
    pods = await api.list(PODS, namespace, labels=labels)
    names = [pod["metadata"]["name"] for pod in pods if _runs(pod) and pod["metadata"]["name"].startswith(prefix)]
    return {name: told.get(report_key(name), "") for name in names}


def _runs(pod: Object) -> bool:
    ended = (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    return bool((pod.get("spec") or {}).get("nodeName")) and not ended and "deletionTimestamp" not in pod["metadata"]
