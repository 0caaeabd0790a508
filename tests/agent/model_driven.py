"""A real agent driven beside the model: calls, kills in the middle of them, and where things are."""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from model import UNIT, Cut, Item, Kill, Life, Nodes, Op, World, capability, put
from model_pool import pool_of
from support.agent_rigs import agent_rig

from csi_driver._pb import csi_pb2_grpc
from csi_driver.rpc.clients.cli_client import CallRefused, Client, RollbackResult

FOREIGN_SECONDS = 90.0
"""How long somebody else's mount namespace may keep a device from being detached (tests/image has one for half a minute)."""


class Driven:
    """A real agent on a real pool beside a model of it, and what is done to both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rig = agent_rig(root)
        self.pool = pool_of(self.rig)
        self.world: World = {}
        self.answers: dict[Life, tuple[Callable[[Client], Any], Any]] = {}
        """The call that made an object, and what it was answered."""
        self.steps: list[str] = []
        """What was done since the pool was last empty."""
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.seen: dict[Life, tuple[str, Any]] = {}
        self._lives = 0

    # -- the agent

    def start(self) -> None:
        """Start the agent and wait for it."""
        self.client = self.rig.start()
        self._channel = grpc.insecure_channel(self.rig.endpoint)
        channel: Any = self._channel  # the stubs are typed for grpc.aio's
        self._csi: Any = csi_pb2_grpc.ControllerStub(channel)

    def _close(self) -> None:
        self.client.close()
        self._channel.close()

    def close(self) -> None:
        """End everything."""
        if hasattr(self, "client"):
            self._close()
        self.rig.clean()

    def begin_again(self) -> None:
        """After a failure: keep what tells about it, and go on in a new pool."""
        self.failures.append("\n".join(self.steps))
        self.close()
        if self.rig.log.exists():
            self.rig.log.rename(self.root / f"failed-{len(self.failures)}.log")
        self.pool.forget()
        for name in ("staging", "target", "looked"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.world, self.steps, self.sound = {}, [], True
        self.start()

    def life(self) -> int:
        """A number for one more object."""
        self._lives += 1
        return self._lives

    def nodes(self) -> Nodes:
        """What the agent says that there is."""
        return {node.id: node for node in self.client.tree()}

    # -- doing

    def run(self, op: Op, kill: Kill = None) -> Any:
        """Do something; returns the answer. With a kill the agent dies meanwhile, and the call is repeated."""
        self.log(op.what if kill is None else f"{op.what}, kill: {kill}")
        done = False
        if kill is None:
            answer = op.call(self.client)
        else:
            answer, done = self._killed(op, kill)
        nodes = self.nodes()
        op.answer(answer, nodes)
        if not done:
            self.world = op.after(self.world, nodes)
        self.check(deep=kill is not None)
        self.counts[op.what.split()[0]] += 1
        if kill is not None:
            self.look(len(self.steps), UNIT)
        return answer

    def _killed(self, op: Op, kill: Kill) -> tuple[Any, bool]:
        """Issue a call, kill the agent, start it again, look, repeat the call. Returns its answer, and whether it had been done."""
        first: list[Any] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                first.append(op.call(self.client))
            except BaseException as error:
                failed.append(error)

        caller = threading.Thread(target=work)
        before = self._trace(op.on, kill)
        caller.start()
        if isinstance(kill, float):
            time.sleep(kill * op.span * self.pool.span / 1000)
        else:
            while caller.is_alive() and self._trace(op.on, kill) == before:
                pass
            if kill == "early" and self.pool.freezes():
                # Before the freeze, in it, or after it.
                time.sleep(random.uniform(0, 0.008))
        self.rig.kill()
        caller.join(60)
        assert not caller.is_alive(), "the client waits for an agent that is dead"
        if failed and not (isinstance(failed[0], CallRefused) and failed[0].code == "UNAVAILABLE"):
            raise failed[0]
        self._close()
        self.start()
        nodes = self.nodes()
        done = op.done(nodes)
        fate = "answered" if first else ("done" if done else "not done")
        self.log(f"  {fate} when it was killed")
        self.counts[f"kill: {fate}"] += 1
        self.counts[f"kill: {fate}: {op.what.split()[0]}"] += 1
        self.counts["kills"] += 1
        assert done or not first, f"{op.what} was answered and has not happened"
        self.world = op.after(self.world, nodes) if done else put(self.world, *self.safety_of(nodes, op.loose))
        self.check(op.loose, deep=True)
        op.then(done)
        again = op.call(self.client)
        if first:
            self.equal_answers(first[0], again)
        return again, done

    def _trace(self, item: Item, kill: Kill) -> tuple[object, ...]:
        """What a call on an object changes at the moment when it takes effect, or, for "early", before."""
        return (*self.pool.trace(item, kill), os.path.lexists(self.target(item.id)))

    def equal_answers(self, first: Any, again: Any) -> None:
        """A repeated call answers as at first (a rollback says besides that it was done before)."""
        if isinstance(first, RollbackResult):
            first, again = [(r.name, r.snapshot_id, r.at, r.safety_id) for r in (first, again)]
        assert again == first, f"answered {again}, at first {first}"

    def refused(self, code: str, call: Callable[[Client], Any]) -> None:
        """A call must be refused so, and change nothing."""
        self.log(f"  refused: {code}")
        try:
            answer = call(self.client)
        except CallRefused as error:
            found = f"{error.code}: {error.message}"
        else:
            found = f"the answer {answer}"
        assert found.startswith(f"{code}: "), f"{found}; {code} expected"
        self.counts[f"refused: {code}"] += 1

    def restart(self, how: str, delay: float = 0.0, meanwhile: Callable[[], None] = lambda: None) -> None:
        """End the agent (`term`, `kill`, or `twice`: killed again while it starts), start it and look at everything."""
        self.log(f"restart by {how}")
        if how == "term":
            assert self.rig.stop() == 0, "the agent ended with an error"
        else:
            self.rig.kill()
            self.counts["kills"] += 1
        self._close()
        meanwhile()
        if how == "twice":
            self._kill_starting(delay)
        self.start()
        self.check(deep=True)
        self.counts[f"restart by {how}"] += 1

    def _kill_starting(self, delay: float) -> None:
        old = self.rig.process

        def start() -> None:
            # It asserts that the agent lives, which is what is taken away here.
            with suppress(AssertionError):
                self.rig.start().close()

        starter = threading.Thread(target=start)
        starter.start()
        while self.rig.process is old:
            time.sleep(0.001)
        time.sleep(delay / 1000)
        self.rig.kill()
        self.counts["kills"] += 1
        starter.join(60)
        assert not starter.is_alive()

    # -- where things are

    def staging(self, disk_id: str) -> str:
        """Where a disk is staged."""
        return str(self.root / "staging" / disk_id.rsplit(":", 1)[1])

    def target(self, disk_id: str) -> str:
        """Where a disk is published."""
        return str(self.root / "target" / disk_id.rsplit(":", 1)[1])

    def show(self, client: Client, disk_id: str, fs: str) -> None:
        """Stage and publish, as a kubelet does."""
        os.makedirs(self.staging(disk_id), exist_ok=True)
        client.stage(disk_id, self.staging(disk_id), capability(fs))
        client.publish(disk_id, self.staging(disk_id), self.target(disk_id), capability(fs))

    def hide(self, client: Client, disk_id: str) -> None:
        """Unpublish and unstage."""
        client.unpublish(disk_id, self.target(disk_id))
        until = time.monotonic() + FOREIGN_SECONDS
        while True:
            try:
                return client.unstage(disk_id, self.staging(disk_id))
            except CallRefused as error:
                # Somebody on this machine has copied all mounts into a namespace of his own (`unshare -m`): it is refused
                # until that ends, as it should be, and repeated by any kubelet.
                if "another namespace" not in error.message or time.monotonic() > until:
                    raise
            self.counts["waits for other mount namespaces"] += 1
            time.sleep(0.05)

    def places(self, disk_id: str, fs: str) -> list[str]:
        """Every path at which a published disk is seen."""
        return sorted([self.staging(disk_id) + ("" if fs else "/device"), self.target(disk_id)])

    def log(self, what: str) -> None:
        """Keep what was done, for the case of a failure."""
        self.steps.append(what)

    # -- what the comparison adds

    def check(self, loose: str = "", deep: bool = False) -> None:
        """Compare all that can be seen with the model."""
        raise NotImplementedError

    def look(self, which: int, more: int) -> None:
        """Read an object as its user would."""
        raise NotImplementedError

    def safety_of(self, nodes: Nodes, disk_id: str) -> list[Cut]:
        """The safety snapshot of a rollback that was cut off before it happened."""
        raise NotImplementedError
