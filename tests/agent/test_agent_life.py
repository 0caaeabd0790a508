"""An agent's life: ready, stopped in order, killed and started again with everything in use untouched."""

from pathlib import Path

from support.agent_process import AgentRig

from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

MOUNT = Capability("mount", AccessMode.MULTI_WRITER, "xfs")


def test_what_is_mounted_survives_the_agent_and_is_adopted(rig: AgentRig, client: Client, tmp_path: Path) -> None:
    volume = client.create_volume("v", SizeRange(320 << 20), [MOUNT])
    staging, target = tmp_path / "staging", tmp_path / "target"
    staging.mkdir()
    client.stage(volume.id, str(staging), MOUNT)
    client.publish(volume.id, str(staging), str(target), MOUNT)
    (target / "file").write_text("before")
    rig.kill()
    (target / "file").write_text("while nobody serves")
    with rig.start() as again:
        assert [node.used_by for node in again.tree()] == [(str(staging), str(target))]
        again.stage(volume.id, str(staging), MOUNT)
        again.publish(volume.id, str(staging), str(target), MOUNT)
        assert (target / "file").read_text() == "while nobody serves"
        assert again.create_snapshot(volume.id, "s").ready
        assert rig.stop() == 0
    assert (target / "file").read_text() == "while nobody serves"
    assert not Path(f"{tmp_path}/csi.sock").exists()
    with rig.start() as third:
        third.unpublish(volume.id, str(target))
        third.unstage(volume.id, str(staging))
        third.delete_volume(volume.id)
        assert [node.kind for node in third.tree()] == ["snapshot"]
