"""The messages between the agent, its fork server and the helpers. JSON is written and read here, and nowhere else.

Agent and fork server are always of one version: the agent starts it from its own files. So nothing here has to be stable.
"""

import json
from dataclasses import dataclass
from typing import Any, get_args

MAX_MESSAGE = 192 << 10
"""Bytes of one message; a group of 64 members needs 40 KiB."""


@dataclass(frozen=True, slots=True)
class RunJob:
    """Agent to server: run a job in a child. One descriptor comes with it, the job's socket."""

    number: int
    name: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KillJob:
    """Agent to server: kill the process group of a job and undo its freezes."""

    number: int


@dataclass(frozen=True, slots=True)
class ServerReady:
    """Server to agent: it takes jobs."""

    pid: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """Server to agent: an error for the agent's log."""

    text: str


@dataclass(frozen=True, slots=True)
class JobTaken:
    """Server to agent: a child of this job may exist from now on."""

    number: int


@dataclass(frozen=True, slots=True)
class JobStarted:
    """Server to agent: the child exists and leads a process group of its own."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class JobRefused:
    """Server to agent: no child could be made."""

    number: int
    errno: int
    message: str


@dataclass(frozen=True, slots=True)
class HelperExited:
    """Server to agent: the child is reaped and its freezes are undone (`thawed` False: given up).

    `status`: its exit status, or the negative number of the signal that killed it.
    """

    number: int
    status: int
    thawed: bool


Message = RunJob | KillJob | ServerReady | LogLine | JobTaken | JobStarted | JobRefused | HelperExited
_TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Encode a message as one packet."""
    fields = (getattr(message, name) for name in message.__match_args__)
    return json.dumps([type(message).__name__, *fields]).encode()


def decode(packet: bytes) -> Message:
    """Decode a packet. Raises ValueError if it is not a message."""
    try:
        name, *values = json.loads(packet)
        message: Message = _TYPES[name](*values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a message: {packet[:80]!r}") from error
    return message


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed: `type` is a FreezeError's kind or the exception's class, `errno` 0 if no system call failed."""

    type: str
    errno: int
    message: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job's child answered: its result, or its failure."""

    result: Any = None
    failure: Failure | None = None

    @property
    def failure_type(self) -> str:
        """The type of the failure; empty for a result."""
        return self.failure.type if self.failure else ""


def encode_answer(answer: dict[str, object]) -> bytes:
    """Encode {"ok": result} or {"error": {"type", "errno", "message", "details"}} as the line that a child writes."""
    return json.dumps(answer).encode() + b"\n"


def decode_answer(line: bytes | bytearray) -> Answer:
    """Decode a child's line. Raises ValueError if it is not an answer."""
    try:
        answer = json.loads(line)
        return Answer(failure=Failure(**answer["error"])) if "error" in answer else Answer(answer["ok"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an answer: {bytes(line[:80])!r}") from error


def describe_status(status: int) -> str:
    """Say how a process ended: by its exit status, or by a signal if that is negative."""
    return f"signal {-status}" if status < 0 else f"status {status}"
