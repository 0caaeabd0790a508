"""For all tests: interrupts reach the processes that are tested, also where the run itself was started with them ignored."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job inherits that, and would pass it on; what is caught here is the default again after an exec.
    signal.signal(signal.SIGINT, signal.default_int_handler)
