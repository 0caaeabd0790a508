"""What goes wrong on the host: OSErrors, an errno and a sentence. They survive pickling: children send them home."""

import errno


class HostError(OSError):
    """The kernel or a tool refused; `errno` says how, `strerror` says what and why."""


class Busy(HostError):
    """The object is in use by somebody else; the message names whom."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBUSY, message)
        self.message = message

    def __reduce__(self) -> tuple[type["Busy"], tuple[str]]:
        return Busy, (self.message,)


class Mismatch(HostError):
    """A device is not, or no longer, what the caller believes it is: nothing was done to it."""


class Unsupported(HostError):
    """This kernel, file system or file cannot do what the data's safety needs."""


class CommandError(HostError):
    """A command ended with a status other than 0, was killed at its deadline (`rc` None), or did not start (127)."""

    def __init__(self, argv: tuple[str, ...], rc: int | None, out: str, err: str) -> None:
        ending = "passed its deadline and was killed" if rc is None else f"exit status {rc}"
        said = (err.strip() or out.strip())[-2000:]
        code = errno.ETIMEDOUT if rc is None else errno.ENOENT if rc == NOT_STARTED else errno.EIO
        super().__init__(code, f"{' '.join(argv)}: {ending}{': ' + said if said else ''}")
        self.argv, self.rc, self.out, self.err = argv, rc, out, err

    def __reduce__(self) -> tuple[type["CommandError"], tuple[tuple[str, ...], int | None, str, str]]:
        return CommandError, (self.argv, self.rc, self.out, self.err)


NOT_STARTED = 127
