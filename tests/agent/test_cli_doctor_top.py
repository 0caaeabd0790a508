"""`tidemark doctor` and `tidemark top` beside a real agent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import CliRig, cli_rig

from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

WRITER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 16)
block.write(b"x" * (1 << 16))
while True:
    os.pwrite(fd, block, 0)
"""


AS_NOBODY = """
import os, sys
from csi_driver.cli.main import main
sys.argv[0] = "tidemark"
try:
    main()  # as root first: another user may not read where Python and this tree lie, so all is loaded before
except SystemExit:
    pass
print("=== as nobody", flush=True)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
main()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CliRig, Client]]:
    with cli_rig(tmp_path_factory.mktemp("d")) as made:
        yield made


def test_top_shows_who_writes(world: tuple[CliRig, Client]) -> None:
    rig, _ = world
    for name in ("busy", "idle", "unused"):
        rig.ok("volume", "create", name, "64Mi")
    with rig.mounted("busy") as point, rig.mounted("idle"):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(point / "data")])
        try:
            rows = rig.json("top", "--once", "--interval", "1")
            table = rig.ok("top", "--interval", "0.5")
        finally:
            writer.kill()
            writer.wait()
    assert rows[0]["name"] == "busy"
    by_name = {row["name"]: row["activity"] for row in rows}
    assert by_name["busy"]["writes"] > 0
    assert by_name["busy"]["written_bytes"] >= by_name["busy"]["writes"] * (1 << 16) * 0.9
    assert 0 < by_name["busy"]["busy"] <= 1
    assert by_name["idle"]["reads"] == 0, "nobody reads it"
    assert by_name["unused"] is None, "it has no device"
    assert [line.split()[0] for line in table.splitlines()][:2] == ["NAME", "busy"]


def test_doctor_looks_at_the_pools_of_the_agent(world: tuple[CliRig, Client], tmp_path: Path) -> None:
    rig, _ = world
    results = {result["check"]: result for result in rig.json("doctor")}
    assert results["agent"]["state"] == "ok"
    assert results[f"pool {rig.pool}"]["state"] == "ok"
    assert results["kernel"]["state"] == "ok"
    shm = Path("/dev/shm")
    done = rig.run("doctor", "--pool", str(shm), "--pool", str(tmp_path / "nowhere"), status=1)
    assert f"fail  pool {shm}: it is on tmpfs" in done.stdout
    assert f"fail  pool {tmp_path}/nowhere" in done.stdout
    assert "2 of" in done.stderr


def test_doctor_works_without_agent_and_without_root(world: tuple[CliRig, Client], tmp_path: Path) -> None:
    """It says what it could not see, and fails for nothing that a user cannot help."""
    rig, _ = world
    environment = rig.environment | {"CSI_ENDPOINT": f"unix://{tmp_path}/none.sock", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
        cwd="/",
    )
    output = done.stdout.partition("=== as nobody\n")[2]
    assert "Traceback" not in done.stderr, done.stderr
    assert "warn  capabilities: this user is not root" in output
    assert "warn  agent: none answers" in output
    assert "ok    kernel" in output
    fails = [line for line in output.splitlines() if line.startswith("fail")]
    assert bool(fails) == (done.returncode == 1)
    assert os.path.exists(rig.place)
