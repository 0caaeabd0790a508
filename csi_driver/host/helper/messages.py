"""The messages between the agent, its fork server and the helpers. JSON is written and read here, and nowhere else.

Agent and fork server are always of one version: the agent starts it from its own files. So nothing here has to be stable.
"""

import json
from typing import Any, NamedTuple, get_args

MAX_MESSAGE = 192 << 10
"""Bytes of one message; a group of 64 members needs 40 KiB."""


class RunJob(NamedTuple):
    """Agent to server: run a job in a child. One descriptor comes with it, the job's socket."""

    number: int
    name: str
    args: dict[str, Any]


class KillJob(NamedTuple):
    """Agent to server: kill the process group of a job and undo its freezes."""

    number: int


class ServerReady(NamedTuple):
    """Server to agent: it takes jobs."""


class LogLine(NamedTuple):
    """Server to agent: an error for the agent's log."""

    text: str


class JobStarted(NamedTuple):
    """Server to agent: the child exists and leads a process group of its own."""

    number: int
    pid: int


class HelperExited(NamedTuple):
    """Server to agent: the child is reaped and its freezes are undone (`thawed` False: given up).

    `status`: its exit status, or the negative number of the signal that killed it. `refusal`: why there never was a child.
    """

    number: int
    status: int
    thawed: bool
    refusal: str = ""


Message = RunJob | KillJob | ServerReady | LogLine | JobStarted | HelperExited
_TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Encode a message as one packet."""
    return json.dumps([type(message).__name__, *message]).encode()


def decode(packet: bytes) -> Message:
    """Decode a packet. Raises ValueError if it is not a message."""
    try:
        name, *values = json.loads(packet)
        message: Message = _TYPES[name](*values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a message: {packet[:80]!r}") from error
    return message


class Failure(NamedTuple):
    """Why a job failed: `type` is a FreezeError's kind or the exception's class, `errno` 0 if no system call failed."""

    type: str
    errno: int
    message: str
    details: dict[str, Any]


def encode_answer(answer: dict[str, object]) -> bytes:
    """Encode {"ok": result} or {"error": {"type", "errno", "message", "details"}} as the line that a child writes."""
    return json.dumps(answer).encode() + b"\n"


def decode_answer(line: bytes | bytearray) -> Any:
    """Decode the first line of a child: its result, or its Failure; a line that is not an answer is one of type Crashed."""
    try:
        answer = json.loads(line.split(b"\n", 1)[0])
        return Failure(**answer["error"]) if "error" in answer else answer["ok"]
    except (KeyError, TypeError, ValueError):
        return Failure("Crashed", 0, f"not an answer: {bytes(line[:80])!r}", {})


def describe_status(status: int) -> str:
    """Say how a process ended: by its exit status, or by a signal if that is negative."""
    return f"signal {-status}" if status < 0 else f"status {status}"
