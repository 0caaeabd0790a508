"""How many processes a call starts: each is a fork of 5 ms, and a pod waits for all of them one after the other."""

from collections.abc import Awaitable, Callable

import pytest
from support.node_rig import Rig
from test_node_format import log_jobs

from csi_driver.domain.model import Volume

Steps = dict[str, Callable[[Rig, Volume], Awaitable[object]]]
LIFE: Steps = {
    "first stage": lambda rig, volume: rig.stage(volume),
    "the same stage": lambda rig, volume: rig.stage(volume),
    "publish": lambda rig, volume: rig.publish(volume),
    "the same publish": lambda rig, volume: rig.publish(volume),
    "stats": lambda rig, volume: rig.nodes.stats(str(volume.id), rig.target(volume)),
    "snapshot": lambda rig, volume: rig.snapshot("s", volume),
    "unpublish": lambda rig, volume: rig.unpublish(volume),
    "unstage": lambda rig, volume: rig.unstage(volume),
    "a stage of what is formatted": lambda rig, volume: rig.stage(volume),
    "its unstage": lambda rig, volume: rig.unstage(volume),
}
MOST = {"first stage": 2, "a stage of what is formatted": 2, "snapshot": 2, "unstage": 2, "its unstage": 2}
"""Of all others one at most. A program that a process runs, mkfs say, is none of these."""


@pytest.mark.alone  # images of other pools on the machine may have to be asked for too
@pytest.mark.parametrize("kind", ["ext4", "xfs", "block"])
async def test_a_call_starts_as_few_as_it_needs(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    volume = await rig.volume("v", kind)
    jobs = log_jobs(rig, monkeypatch)
    for name, call in LIFE.items():
        jobs.clear()
        await call(rig, volume)
        assert len(jobs) <= MOST.get(name, 1), (name, jobs)
