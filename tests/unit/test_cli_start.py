"""What a command of the command line loads: each is a new process, and a person waits for it."""

import subprocess
import sys

CODE = """
import atexit, sys
atexit.register(lambda: print([name for name in sys.modules if name.partition(".")[0].startswith("pydantic")]))
sys.argv = ["tidemark", "volume", "list", "--endpoint", "unix:///nowhere/csi.sock"]
from csi_driver.cli.main import main
main()
"""


def test_a_command_loads_no_library_of_data_models() -> None:
    """ADR 24: a third of a command's time, and 10 MiB, for options that are texts and numbers."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (1, "[]"), done.stderr
