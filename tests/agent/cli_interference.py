"""Runs the command line for cli_rig.py, and makes things happen to it: it is killed at a call, a file changes, a call is refused.

Reads orders on stdin, a line of JSON each, and forks a process for each: to load Python and gRPC takes half a second. An order
is a mode with its arguments, and the words of the command.

`run`: nothing happens. `die N`: SIGKILL after the change number N, where the copying of the content is one; nothing if there are
fewer. `refuse NAME`: the deletion of the snapshot NAME is refused. `cut FILE`, `append FILE`, `touch FILE`: the file changes once
a part of it was written. `term`: SIGTERM to the command then.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from csi_driver.cli import main
from csi_driver.cli.transfer import exporting, importing
from csi_driver.host.fs import sparse
from csi_driver.rpc.clients.cli_client import CallRefused, Client

CHANGES = (
    "create_volume",
    "delete_volume",
    "create_snapshot",
    "delete_snapshot",
    "stage",
    "publish",
    "unpublish",
    "unstage",
    "hold",
    "release",
)


def die(point: int) -> None:
    """End the process after a call that changes something, or after the copying of the content."""
    passed = 0

    def after(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal passed
            result = real(*args, **options)
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1
            return result

        return call

    for name in CHANGES:
        setattr(Client, name, after(getattr(Client, name)))
    sparse.copy = after(sparse.copy)


def refuse(name: str) -> None:
    real = Client.delete_snapshot

    def call(self: Client, snapshot_id: str) -> None:
        if any(node.id == snapshot_id and node.name == name for node in self.tree()):
            raise CallRefused("ABORTED", f"snapshot {name} is busy: try again")
        real(self, snapshot_id)

    Client.delete_snapshot = call  # type: ignore[method-assign]


def when_half_written(change: Callable[[], None]) -> None:
    """Do something once the first part of the content was copied."""
    real = sparse.copy

    def call(source: int, target: int, size: int, progress: Any) -> int:
        done = False

        def report(at: int, written: int) -> None:
            nonlocal done
            if not done:
                done = True
                change()
            progress(at, written)

        return real(source, target, size, report)

    sparse.copy = call


def command(mode: str, *words: str) -> None:
    assert exporting.sparse is importing.sparse is sparse
    rest = list(words)
    if mode == "die":
        die(int(rest.pop(0)))
    elif mode == "refuse":
        refuse(rest.pop(0))
    elif mode == "term":
        when_half_written(lambda: os.kill(os.getpid(), signal.SIGTERM))
    elif mode != "run":
        path = rest.pop(0)
        size = os.stat(path).st_size
        changes: dict[str, Callable[[], None]] = {
            "cut": lambda: os.truncate(path, size // 2),
            "append": lambda: os.truncate(path, size + 4096),
            "touch": lambda: os.utime(path),
        }
        when_half_written(changes[mode])
    sys.argv = ["tidemark", *rest]
    main.main()


def run(words: list[str], out: str, err: str) -> int:
    """Fork a process for one order; returns its status."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(fd, number)
        command(*words)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for order in sys.stdin:
    print(run(**json.loads(order)), flush=True)
