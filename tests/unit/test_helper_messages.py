"""What crosses between the agent, its fork server and the helpers, and the page by which the watchdog knows what is frozen."""

import os
from typing import get_args

import pytest

from csi_driver.host.freeze.state import FREEZING, FROZEN, MAX_TARGETS, THAWED
from csi_driver.host.helper import messages
from csi_driver.host.helper.child import LATE_SECONDS, RunningJob
from csi_driver.host.helper.messages import Failure, RunJob

EXAMPLES = (
    RunJob(7, "cut", {"mounts": [{"point": "/m", "major": 7, "minor": 1}], "deadline": 2.5}),
    messages.KillJob(7),
    messages.ServerReady(),
    messages.LogLine("a line"),
    messages.JobStarted(7, 99),
    messages.HelperExited(7, -9, thawed=False),
    messages.HelperExited(7, 1, thawed=True, refusal="no process for the job"),
)


@pytest.mark.parametrize("message", EXAMPLES, ids=repr)
def test_a_message_arrives_as_it_was_sent(message: messages.Message) -> None:
    decoded = messages.decode(messages.encode(message))
    assert (type(decoded), decoded) == (type(message), message)


def test_every_message_is_among_the_examples() -> None:
    assert {type(message) for message in EXAMPLES} == set(get_args(messages.Message))


@pytest.mark.parametrize(
    "packet", [b"", b"x", b"[]", b"{}", b'["RunJob", 1]', b'["Unknown", 1]', b'["KillJob", 1, 2]', b"7"]
)
def test_what_is_no_message_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        messages.decode(packet)


def test_answers() -> None:
    error = {"type": "OSError", "errno": 5, "message": "it failed", "details": {"rc": 1}}
    assert messages.decode_answer(messages.encode_answer({"ok": [1, None]})) == [1, None]
    failure = messages.decode_answer(messages.encode_answer({"error": error}))
    assert isinstance(failure, Failure), "and is told from a result"
    assert failure._asdict() == error
    for line in (b"x\n", b"{}\n", b'{"error": {"type": "OSError"}}\n', b"7\n"):
        refused = messages.decode_answer(line)
        assert isinstance(refused, Failure)
        assert (refused.type, refused.message[:13]) == ("Crashed", "not an answer")


def test_a_child_and_the_watchdog_share_the_page_of_a_snapshot() -> None:
    job = RunningJob(RunJob(1, "cut", {"mounts": [{"point": "/a"}, {"point": "/b"}], "deadline": 1.0}))
    assert job.page is not None
    assert not job.may_be_frozen()
    pid = os.fork()
    if not pid:
        job.page[1] = FREEZING
        job.page[MAX_TARGETS - 1] = THAWED
        job.page.frozen_since = 100.0
        os._exit(0)
    os.waitpid(pid, 0)
    assert (job.page[0], job.page[1], job.page[MAX_TARGETS - 1], job.page.frozen_since) == (0, FREEZING, THAWED, 100.0)
    assert job.may_be_frozen()
    assert not job.is_late(1000.0), "nothing is known to be frozen yet"
    job.page[1] = FROZEN
    assert not job.is_late(101.0 + LATE_SECONDS)
    assert job.is_late(101.1 + LATE_SECONDS)
    job.page[1] = THAWED
    assert not job.may_be_frozen()
    assert not job.is_late(1000.0)


def test_other_jobs_have_no_page() -> None:
    job = RunningJob(RunJob(1, "thaw", {"mounts": [{"point": "/a"}]}))
    assert (job.page, job.may_be_frozen(), job.is_thaw, job.is_late(1e9)) == (None, False, True, False)
