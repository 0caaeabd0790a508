import errno
import os
import pickle
import subprocess
import sys
import time

import pytest

from csi_driver.host import commands, errors


def test_standard_output_in_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKE2FS_CONFIG", "/tmp/evil")
    assert commands.run(("env",), 10).splitlines() == ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    assert commands.run_both(("sh", "-c", "echo out; echo err >&2"), 10) == ("out\n", "err\n")
    assert commands.run(("printf", "%s", "$(id); *"), 10) == "$(id); *"  # no shell
    assert commands.run(("cat",), 10) == ""  # no input


def test_what_the_c_library_learns_of_the_processor_reaches_tools() -> None:
    """Without it lvm writes broken metadata in user-mode Linux, which loses the registers of AVX."""
    program = "from csi_driver.host import commands; print(commands.run(('env',), 10))"
    given = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2", "MKE2FS_CONFIG": "/tmp/evil"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | given, capture_output=True, text=True, check=True
    )
    assert "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2" in answer.stdout.split()
    assert "evil" not in answer.stdout


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


def test_a_command_dies_at_its_deadline() -> None:
    """With all that it started, where a helper runs it: see test_forkserver.py."""
    started = time.monotonic()
    with pytest.raises(errors.CommandError, match="passed its deadline") as caught:
        commands.run(("sh", "-c", "echo begun; echo why >&2; exec sleep 60"), 0.5)
    assert time.monotonic() - started < 15
    assert (caught.value.rc, caught.value.out, caught.value.err) == (None, "begun\n", "why\n")
    assert caught.value.errno == errno.ETIMEDOUT


def test_tools_that_are_missing() -> None:
    assert commands.missing_tools(("sh", "no-such-tool")) == ["no-such-tool"]
    with pytest.raises(errors.CommandError, match="not installed") as caught:
        commands.run(("no-such-tool",), 10)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(errors.CommandError, match="No such file"):
        commands.run(("/no/such/tool",), 10)
