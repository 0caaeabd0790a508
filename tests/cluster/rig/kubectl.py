"""kubectl, from Python: documents are dicts, answers are JSON, and what fails says what kubectl said."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from rig.paths import KUBECONFIG, programs

Document = dict[str, Any]


class KubectlError(Exception):
    """kubectl ended with an error; the message is its own."""


class Kubectl:
    """kubectl as the cluster's administrator, in one namespace."""

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace

    def within(self, namespace: str) -> "Kubectl":
        return Kubectl(namespace)

    def __call__(self, *words: object, stdin: str | None = None, seconds: float = 60.0) -> str:
        """Run it, and return what it printed. Raises KubectlError, also when it takes longer than `seconds`."""
        argv = [str(programs() / "kubectl"), f"--kubeconfig={KUBECONFIG}", f"--namespace={self.namespace}"]
        argv += [str(word) for word in words]
        try:
            run = subprocess.run(argv, input=stdin or "", capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {' '.join(argv[3:])}: no answer within {seconds:.0f} s") from None
        if run.returncode:
            raise KubectlError(f"kubectl {' '.join(argv[3:])[:400]}: {run.stderr.strip()} {run.stdout.strip()[-2000:]}")
        return run.stdout

    def apply(self, *documents: Document) -> None:
        """Create or change the objects, all in one manifest."""
        self("apply", "--server-side", "--filename=-", stdin=_manifest(documents))

    def create(self, *documents: Document) -> None:
        self("create", "--filename=-", stdin=_manifest(documents))

    def get(self, kind: str, name: str, *options: str) -> Document:
        found: Document = json.loads(self("get", kind, name, "--output=json", *options))
        return found

    def find(self, kind: str, name: str) -> Document | None:
        """The object, or None where there is none."""
        told = self("get", kind, name, "--output=json", "--ignore-not-found")
        return json.loads(told) if told else None

    def items(self, kind: str, *options: str) -> list[Document]:
        """All objects of a kind in the namespace; with `--all-namespaces` or `--selector=...` others, or fewer."""
        items: list[Document] = json.loads(self("get", kind, "--output=json", *options))["items"]
        return items

    def delete(self, kind: str, *names: str, seconds: float = 90.0) -> None:
        """Delete the objects, and wait until they are gone."""
        self("delete", kind, *names, "--ignore-not-found", f"--timeout={seconds:.0f}s", seconds=seconds + 10)

    def wait(self, condition: str, kind: str, *names: str, seconds: float = 90.0) -> None:
        """Wait for a condition of objects that exist: `condition=Ready`, `jsonpath={.status.phase}=Bound`, `delete`."""
        self(
            "wait",
            f"--for={condition}",
            f"--timeout={seconds:.0f}s",
            *(f"{kind}/{n}" for n in names),
            seconds=seconds + 10,
        )

    def until(self, holds: Callable[[Document], object], kind: str, name: str, seconds: float = 90.0) -> Document:
        """Wait until something holds of one object, which may not exist yet. Raises KubectlError with what it was last."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.find(kind, name)
            if found and holds(found):
                return found
            if time.monotonic() > deadline:
                state = json.dumps((found or {}).get("status"), indent=1)
                said = "\n".join(self.events(name))
                raise KubectlError(f"{kind} {name} did not get there in {seconds:.0f} s: {state}\n{said}")
            time.sleep(0.5)

    def ready(self, *pods: str, seconds: float = 90.0) -> None:
        """Wait until the pods run and are ready."""
        self.wait("condition=Ready", "pod", *pods, seconds=seconds)

    def sh(self, pod: str, script: str, *, seconds: float = 60.0) -> str:
        """Run a shell's script in a pod, and return what it printed, without the last newline."""
        return self("exec", pod, "--", "sh", "-ec", script, seconds=seconds).rstrip("\n")

    def logs(self, pod: str, container: str = "", *options: str) -> str:
        return self("logs", pod, *([f"--container={container}"] if container else []), *options)

    def events(self, name: str = "") -> list[str]:
        """The events about the object of a name, or about all of the namespace, as `REASON MESSAGE`, the oldest first."""
        options = [f"--field-selector=involvedObject.name={name}"] if name else []
        found = self.items("events", "--sort-by=.metadata.creationTimestamp", *options)
        return [f"{each['reason']} {each.get('message', '')}" for each in found]


def is_ready(found: Document) -> bool:
    """Whether a snapshot, or a group's, can be used; for `until`."""
    return bool(found.get("status", {}).get("readyToUse"))


def _manifest(documents: Sequence[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
