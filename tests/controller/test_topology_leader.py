"""The topology controller in a whole controller: over its own informers, with a real agent's answer."""

from __future__ import annotations

from controller_rig import ControllerRig, until_ready
from support.topology_objects import Objects, claim
from support.waiting import until


async def test_the_leader_selects_the_node_of_the_source(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    objects = Objects(rig.fake)
    objects.snapshot("s", "n-1")
    objects.put(claim("early", snapshot="s", cls="later"))
    objects.put(claim("r", snapshot="s"))
    await until(lambda: objects.selected("r") == "n-1")
    objects.cls("later")
    await until(lambda: objects.selected("early") == "n-1")
    assert rig.agents["n-1"].asked("GetCapacity") >= 1
    assert rig.agents["n-10"].asked("GetCapacity") == 0
