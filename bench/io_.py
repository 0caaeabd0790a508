"""4k random I/O on a raw block volume against a plain file of the same pool with O_DIRECT, by fio, in turns."""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench.calls import bare_clone
from bench.rig import agent
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)
SIZE = 1 << 30
SECONDS = 6
TURNS = 3


def io() -> list[dict[str, object]]:
    """Ratios of IOPS, medians of the turns: reads, writes, and first overwrites after a snapshot.

    The last also against the plain file after a clone of it: what a copy on write costs XFS itself is in both.
    """
    with tempfile.TemporaryDirectory() as place, agent("24Gi") as rig, Client(rig.endpoint) as client:
        volume = client.create_volume("v", SizeRange(SIZE), [BLOCK])
        staging, target = Path(place) / "staging", Path(place) / "target"
        staging.mkdir()
        client.stage(volume.id, str(staging), BLOCK)
        client.publish(volume.id, str(staging), str(target), BLOCK)
        plain = rig.pool / "plain"
        for path in (plain, target):
            _fio(path, "write", "1M", once=True)
        rows = []
        for mode in ("randread", "randwrite"):
            ours, bare = [], []
            for _ in range(TURNS):
                bare.append(_fio(plain, mode))
                ours.append(_fio(target, mode))
            rows.append(_row(f"4k {mode}, depth 32: volume / plain file", ours, bare))
        bare = [_fio(plain, "randwrite") for _ in range(TURNS)]
        first, bare_first = [], []
        for index in range(TURNS):
            client.create_snapshot(volume.id, f"s{index}")
            first.append(_fio(target, "randwrite"))
            bare_clone(str(plain), rig.pool / f"clone-{index}")
            bare_first.append(_fio(plain, "randwrite"))
        what = "first 4k random overwrite after a snapshot"
        rows.append(_row(f"{what} / plain file", first, bare))
        rows.append(_row(f"{what} / the same of a plain file after its clone", first, bare_first))
        client.unpublish(volume.id, str(target))
        client.unstage(volume.id, str(staging))
        return rows


def _row(what: str, ours: list[float], bare: list[float]) -> dict[str, object]:
    return {
        "what": what,
        "ratio": round(statistics.median(ours) / statistics.median(bare), 2),
        "iops": round(statistics.median(ours)),
        "bare_iops": round(statistics.median(bare)),
    }


def _fio(path: Path, mode: str, block: str = "4k", once: bool = False) -> float:
    argv = [
        "fio", "--name=b", f"--filename={path}", f"--rw={mode}", f"--bs={block}", f"--size={SIZE}", "--ioengine=libaio",
        "--direct=1", "--iodepth=32", "--output-format=json", "--randrepeat=0",
    ]  # fmt: skip
    if not once:
        argv += ["--time_based", f"--runtime={SECONDS}"]
    result = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    job = result["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])
