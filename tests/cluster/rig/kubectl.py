"""kubectl, from Python: documents are dicts, answers are JSON, and what fails says what kubectl said."""

import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import IO, Any

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
        output = self("get", kind, name, "--output=json", "--ignore-not-found")
        return json.loads(output) if output else None

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
        last: Document | None = None
        with closing(self.watched(kind, name)) as states:
            for found in states:
                last = found
                if found and holds(found):
                    return found
                if time.monotonic() > deadline:
                    break
        state = json.dumps((last or {}).get("status"), indent=1)
        said = "\n".join(self.events(name))
        raise KubectlError(f"{kind} {name} did not get there in {seconds:.0f} s: {state}\n{said}")

    def watched(self, kind: str, name: str, pause: float = 0.5) -> Iterator[Document | None]:
        """One object as it changes, for ever, and again after `pause` seconds without a change; None while there is none.

        By one kubectl that watches: one that is started for each poll costs a tenth of a second of a processor, and a few
        tests that look twice a second were half of what the whole cluster took. Raises KubectlError where it ends.
        """
        argv = [str(programs() / "kubectl"), f"--kubeconfig={KUBECONFIG}", f"--namespace={self.namespace}", "get", kind]
        argv += [f"--field-selector=metadata.name={name}", "--output=json", "--watch", "--output-watch-events"]
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True) as process,
        ):
            assert process.stdout
            events: queue.Queue[Document | None] = queue.Queue()
            reader = threading.Thread(target=_read_events, args=(process.stdout, events))
            reader.start()
            found: Document | None = None
            try:
                while True:
                    try:
                        event = events.get(timeout=pause)
                    except queue.Empty:
                        yield found
                        continue
                    if event is None:
                        said.seek(0)
                        raise KubectlError(
                            f"kubectl {' '.join(argv[3:])}: {said.read().strip() or 'the watch has ended'}"
                        )
                    found = event["object"] if event["type"] in {"ADDED", "MODIFIED"} else None
                    yield found
            finally:
                process.kill()
                reader.join()

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


def _read_events(stream: IO[str], events: "queue.Queue[Document | None]") -> None:
    """Pass on each event of a watch, a line of what kubectl prints; None at the end."""
    for line in stream:
        events.put(json.loads(line))
    events.put(None)


def _manifest(documents: Sequence[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
