"""`--step`: waits for a key at a terminal."""

import os
import sys
import termios
import tty

PROMPT = "-- any key: the next step; Ctrl-C: end --"

NO_TERMINAL = "--step: there is no terminal to wait at, so the demo does not wait"


def at_terminal() -> bool:
    """Return whether somebody can read the prompt and press a key."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def wait_for_key(descriptor: int = 0) -> bool:
    """Wait until a key is pressed at this terminal, without Enter. Returns False if the terminal has gone."""
    before = termios.tcgetattr(descriptor)
    try:
        # Not flushed: a key that was pressed early counts. Ctrl-C stays a signal.
        tty.setcbreak(descriptor, termios.TCSANOW)
        # An arrow key is several bytes.
        return bool(os.read(descriptor, 64))
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
