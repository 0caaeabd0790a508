import errno
import os
import pickle
import time
from pathlib import Path

import pytest

from csi_driver.host import commands, errors


def test_standard_output_in_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKE2FS_CONFIG", "/tmp/evil")
    assert commands.run(("env",), 10).splitlines() == ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    assert commands.run_both(("sh", "-c", "echo out; echo err >&2"), 10) == ("out\n", "err\n")
    assert commands.run(("printf", "%s", "$(id); *"), 10) == "$(id); *"  # no shell
    assert commands.run(("cat",), 10) == ""  # no input


def test_a_failure_says_what_and_why() -> None:
    with pytest.raises(errors.CommandError, match=r"sh -c .*: exit status 3: why") as caught:
        commands.run(("sh", "-c", "echo why >&2; echo what; exit 3"), 10)
    error = caught.value
    assert (error.rc, error.out, error.err, error.errno) == (3, "what\n", "why\n", errno.EIO)
    assert isinstance(error, OSError)


def test_errors_travel_between_processes() -> None:
    for error in (
        errors.CommandError(("a", "b"), None, "o", "e"),
        errors.Busy("loop0 is in use"),
        errors.Mismatch(errno.ESTALE, "another file"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.errno) == (type(error), str(error), error.errno)
        assert vars(again) == vars(error)


def test_the_whole_group_dies_at_the_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(errors.CommandError, match="passed its deadline") as caught:
        commands.run(("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; echo begun; wait"), 0.5)
    assert time.monotonic() - started < 15
    assert (caught.value.rc, caught.value.out, caught.value.errno) == (None, "begun\n", errno.ETIMEDOUT)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.01)
    else:
        pytest.fail("the grandchild lives on")


def test_tools_that_are_missing() -> None:
    assert commands.missing_tools(("sh", "no-such-tool")) == ["no-such-tool"]
    with pytest.raises(errors.CommandError, match="not installed") as caught:
        commands.run(("no-such-tool",), 10)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(errors.CommandError, match="No such file"):
        commands.run(("/no/such/tool",), 10)
