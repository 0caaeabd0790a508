"""What the scenarios of rollbacks share: a claim that pods write to and read from, and rollbacks that are waited for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rig.kubectl import Document, Kubectl
from rig.objects import claim, pod, rollback, snapshot

READY = "jsonpath={.status.readyToUse}=true"
FINAL = ("Completed", "Failed")


@contextmanager
def using(kubectl: Kubectl, of: str = "v1", name: str = "writer", node: str = "") -> Iterator[str]:
    """A pod that has the claim mounted at /NAME, and is gone afterwards."""
    kubectl.apply(pod(name, [of], node=node))
    kubectl.ready(name)
    try:
        yield name
    finally:
        kubectl.delete("pod", name)


def write(kubectl: Kubectl, of: str = "v1", **files: str) -> None:
    """Write files in a pod that comes and goes."""
    with using(kubectl, of) as name:
        lines = [f"echo {text} >/{of}/{file}" for file, text in files.items()]
        kubectl.sh(name, "\n".join([*lines, "sync"]))


def read(kubectl: Kubectl, of: str = "v1") -> dict[str, str]:
    """All files of a claim with their first lines, as a pod sees them."""
    with using(kubectl, of, "reader") as name:
        return read_in(kubectl, name, of)


def read_in(kubectl: Kubectl, name: str, of: str = "v1") -> dict[str, str]:
    output = kubectl.sh(name, f'cd /{of}; for f in *; do [ -f "$f" ] && echo "$f $(cat "$f")"; done; true')
    return dict(line.split(" ", 1) for line in output.splitlines())


def make(kubectl: Kubectl, *claims: Document) -> None:
    kubectl.apply(*(claims or (claim("v1"),)))


def cut(kubectl: Kubectl, name: str, of: str = "v1") -> None:
    """A snapshot, ready."""
    kubectl.apply(snapshot(name, of))
    kubectl.wait(READY, "volumesnapshot", name)


def ask(kubectl: Kubectl, name: str, to: str, of: str = "v1", **spec: Any) -> None:
    kubectl.create(rollback(name, of, to, **spec))


def ended(kubectl: Kubectl, name: str, seconds: float = 90) -> dict[str, Any]:
    """The status of a rollback when it has ended."""
    found = kubectl.until(
        lambda made: phase_of(made) in FINAL and not made["metadata"].get("finalizers"), "volumerollback", name, seconds
    )
    status: dict[str, Any] = found["status"]
    return status


def completed(kubectl: Kubectl, name: str, to: str, of: str = "v1", **spec: Any) -> dict[str, Any]:
    """Roll back, and have it Completed."""
    ask(kubectl, name, to, of, **spec)
    status = ended(kubectl, name)
    assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
    return status


def refused(kubectl: Kubectl, name: str, to: str, reason: str, *words: str, of: str = "v1", **spec: Any) -> None:
    """Ask for what is refused, with the disk untouched."""
    ask(kubectl, name, to, of, **spec)
    status = ended(kubectl, name)
    assert (status["phase"], status["reason"]) == ("Failed", reason), status
    for word in (*words, "The volume was not changed"):
        assert word in status["message"]


def phase_of(made: Document) -> str:
    return str((made.get("status") or {}).get("phase", ""))


def reason_of(made: Document) -> str:
    return str((made.get("status") or {}).get("reason", ""))
