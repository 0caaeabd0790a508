"""A real PostgreSQL on a Tidemark volume: made, started, cut off, looked through; and one who counts what it promised.

Debian's package is used as it is, as its own user, on a unix socket alone. No driver of PostgreSQL is needed: the little
of its protocol that is wanted here is below.
"""

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from support.uml_boot import BASELINE

USER = "postgres"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "LC_ALL": "C"}
ENVIRONMENT |= {name: os.environ[name] for name in BASELINE if name in os.environ}
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--inh-caps=-all", "--no-new-privs", "--")
START_SECONDS = 60.0

# What a database owner relies on is said, though it is the default; the rest makes it write more in less time.
CONFIGURATION = """
fsync = on
synchronous_commit = on
full_page_writes = on
listen_addresses = ''
shared_buffers = 32MB
max_connections = 20
min_wal_size = 32MB
max_wal_size = 96MB
checkpoint_timeout = 30s
autovacuum_naptime = 5s
jit = off
"""
"""Compiled queries would use the processor's vector registers, which user-mode Linux loses."""


def binaries() -> Path | None:
    """Where the newest PostgreSQL's programs lie."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    return found[-1].parent if found else None


def why_not() -> str:
    """Why there is no PostgreSQL to test with; empty where there is."""
    where = binaries()
    if where is None:
        return "needs a real PostgreSQL: install Debian's postgresql"
    missing = [name for name in ("initdb", "pgbench", "pg_amcheck", "pg_checksums") if not (where / name).exists()]
    if missing:
        return f"needs PostgreSQL's {', '.join(missing)} (from version 14 on): install Debian's postgresql"
    if shutil.which("setpriv") is None:
        return "needs setpriv: install Debian's util-linux"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"needs the user {USER}: install Debian's postgresql"
    return ""


class QueryFailed(Exception):
    """The server refused a connection or a query; the text is its own."""


class Connection:
    """One connection: simple queries, one at a time, answered when the server says that it is ready for the next."""

    def __init__(self, sockets: Path, database: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(60)
            self._socket.connect(f"{sockets}/.s.PGSQL.5432")
            self._stream = self._socket.makefile("rb")
            words = f"user\0{USER}\0database\0{database}\0\0".encode()
            self._socket.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
            self._answer()
        except BaseException:
            self._socket.close()
            raise

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """The rows, as text. When this returns, a statement of its own has been committed."""
        words = sql.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!i", len(words) + 4) + words)
        return self._answer()

    def number(self, sql: str) -> int:
        """The one number that a query answers."""
        return int(self.query(sql)[0][0])

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _answer(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        error = ""
        while True:
            kind, body = self._message()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                error = "; ".join(part[1:].decode() for part in body.split(b"\0") if part[:1] in {b"M", b"C"})
                if b"SFATAL" in body or b"VFATAL" in body:
                    raise QueryFailed(error)
            elif kind == b"R" and body[:4] != bytes(4):
                raise QueryFailed(f"the server wants authentication {body!r}")
            elif kind == b"Z":
                if error:
                    raise QueryFailed(error)
                return rows

    def _message(self) -> tuple[bytes, bytes]:
        head = self._stream.read(5)
        if len(head) < 5:
            raise QueryFailed("the server has closed the connection")
        (length,) = struct.unpack("!i", head[1:])
        return head[:1], self._stream.read(length - 4)


def _row(body: bytes) -> tuple[str, ...]:
    (columns,) = struct.unpack_from("!h", body)
    at, row = 2, []
    for _ in range(columns):
        (length,) = struct.unpack_from("!i", body, at)
        row.append(body[at + 4 : at + 4 + length].decode() if length >= 0 else "")
        at += 4 + max(length, 0)
    return tuple(row)


class Postgres:
    """One cluster in `data`; `scratch` is a directory for its socket and its log, away from what is tested."""

    def __init__(self, data: Path, scratch: Path) -> None:
        where = binaries()
        assert where is not None
        self.bin, self.data, self.scratch = where, data, scratch
        self.log = scratch / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None
        scratch.mkdir(exist_ok=True)
        self._give(scratch)

    def create(self, wal: Path | None = None) -> None:
        """initdb, durable when it returns; with `wal`, a directory on another volume, pg_wal is a link to it."""
        for directory in (self.data, wal):
            if directory is not None:
                directory.mkdir(mode=0o700)
                self._give(directory)
        more = [f"--waldir={wal}"] if wal is not None else []
        self._tool("initdb", "--data-checksums", "--auth=trust", "--encoding=UTF8", "--no-locale", *more)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)

    def start(self) -> None:
        """Start, and wait until it has recovered and takes connections."""
        argv = [*AS_USER, str(self.bin / "postgres"), "-D", str(self.data), "-k", str(self.scratch)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=ENVIRONMENT, cwd="/")
        until = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, f"PostgreSQL does not start:\n{self.log.read_text()[-4000:]}"
            try:
                Connection(self.scratch, "postgres").close()
            except (OSError, QueryFailed):
                assert time.monotonic() < until, f"PostgreSQL is not ready:\n{self.log.read_text()[-4000:]}"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """A fast shutdown: clients are cut off, everything is written."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self.log.read_text()[-4000:]

    def end(self) -> None:
        """End it whatever its state: its children follow when they miss it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def connect(self, database: str = "bench") -> Connection:
        return Connection(self.scratch, database)

    def fill(self, scale: int) -> None:
        """Make pgbench's tables, and one of our own for what was acknowledged."""
        maintenance = self.connect("postgres")
        maintenance.query("CREATE DATABASE bench")
        maintenance.close()
        self.pgbench("-i", "-s", str(scale), "--quiet")
        connection = self.connect()
        connection.query("CREATE TABLE acks (n bigint PRIMARY KEY)")
        connection.close()

    def pgbench(self, *options: str) -> None:
        """A run of pgbench to its end."""
        self._client("pgbench", *options, "bench")

    def load(self, clients: int = 4) -> "subprocess.Popen[bytes]":
        """pgbench in the background, until it is told to end."""
        argv = [str(self.bin / "pgbench"), "-h", str(self.scratch), "-U", USER, "-n", "-c", str(clients), "-T", "600"]
        with (self.scratch / "pgbench.log").open("ab") as log:
            return subprocess.Popen([*argv, "bench"], stdout=log, stderr=log, env=ENVIRONMENT, cwd="/")

    def check(self) -> None:
        """pg_amcheck over everything: tables, indexes against their tables, and all levels of the trees."""
        output = self._client("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check")
        assert output.strip() == "", output

    def check_pages(self) -> None:
        """The checksum of every page on disk; for a cluster that was shut down."""
        output = self._tool("pg_checksums", "--check")
        assert "Bad checksums:  0" in output, output

    def recovered(self) -> bool:
        """Whether the last start began from a crash and its log was applied."""
        log = self.log.read_text()
        return "was not properly shut down; automatic recovery in progress" in log and "redo done at" in log

    def _client(self, program: str, *options: str) -> str:
        return _run([str(self.bin / program), "-h", str(self.scratch), "-U", USER, *options])

    def _tool(self, program: str, *options: str) -> str:
        return _run([*AS_USER, str(self.bin / program), "-D", str(self.data), *options])

    @staticmethod
    def _give(path: Path) -> None:
        shutil.chown(path, USER, USER)


def _run(argv: list[str]) -> str:
    run = subprocess.run(argv, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, f"{argv} ended with {run.returncode}:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout


def assert_sums_agree(connection: Connection) -> int:
    """pgbench's invariant: what went through branches, tellers, accounts and the history is one sum. Returns the count."""
    sums = connection.query(
        "SELECT (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(tbalance) FROM pgbench_tellers), "
        "(SELECT sum(abalance) FROM pgbench_accounts), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    )[0]
    assert len(set(sums)) == 1, f"branches, tellers, accounts, history: {sums}"
    return connection.number("SELECT count(*) FROM pgbench_history")


@dataclass(frozen=True, slots=True)
class Ack:
    """One number: when it was sent, and when its commit was acknowledged, by the monotonic clock."""

    number: int
    sent: float
    acknowledged: float


class Acks:
    """A client that inserts 1, 2, 3, ..., each in a transaction of its own, and notes when each was answered."""

    def __init__(self, server: Postgres, first: int = 1) -> None:
        self.answered: list[Ack] = []
        self.error: BaseException | None = None
        self._connection = server.connect()
        self._next = first
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="acks", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                sent = time.monotonic()
                self._connection.query(f"INSERT INTO acks VALUES ({self._next})")
                self.answered.append(Ack(self._next, sent, time.monotonic()))
                self._next += 1
        except BaseException as error:
            self.error = error

    def wait_for(self, more: int) -> None:
        """Until so many more were acknowledged."""
        until, goal = time.monotonic() + 30, len(self.answered) + more
        while len(self.answered) < goal:
            assert self.error is None, self.error
            assert time.monotonic() < until
            time.sleep(0.005)

    def end(self) -> int:
        """Stop, and return the last number that was acknowledged."""
        self._over.set()
        self._thread.join(60)
        self._connection.close()
        assert self.error is None, self.error
        return self.answered[-1].number

    def bounds(self, called: float, returned: float) -> tuple[int, int]:
        """The last number that a snapshot called and returned then must hold, and the last that it may."""
        must = max((ack.number for ack in self.answered if ack.acknowledged < called), default=0)
        may = max((ack.number for ack in self.answered if ack.sent <= returned), default=0)
        return must, may


class Checkpoints:
    """A client that has one checkpoint made after another."""

    def __init__(self, server: Postgres) -> None:
        self._connection = server.connect("postgres")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(0.05):
            self._connection.query("CHECKPOINT")

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)
        self._connection.close()


def kept(connection: Connection) -> int:
    """The last number that is there, and all before it are."""
    count, last = connection.query("SELECT count(*), coalesce(max(n), 0) FROM acks")[0]
    assert count == last, f"{count} acknowledgements up to {last}: one is missing"
    return int(last)


def quit_group(process: "subprocess.Popen[bytes]") -> None:
    """End what was started in the background."""
    if process.poll() is None:
        process.terminate()
        process.wait(30)


def open_directory(parent: str) -> Path:
    """A directory that another user may pass through: pytest's own are its user's alone."""
    made = Path(tempfile.mkdtemp(prefix="tidemark-pg-", dir=parent))
    os.chmod(made, 0o711)
    return made
