"""What a call costs: snapshots against a bare clone, creation and deletion a second, a hundred disks from one snapshot."""

import concurrent.futures
import fcntl
import os
import statistics
import time
from pathlib import Path

from bench.rig import agent, fragment, quantiles, timed
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

BLOCK = Capability("block", AccessMode.MULTI_WRITER)
FICLONE = 0x40049409


def bare_clone(source: str, target: Path) -> None:
    """The system calls alone: FICLONE and fsync."""
    with open(source, "rb") as origin, open(target, "wb") as copy:
        fcntl.ioctl(copy.fileno(), FICLONE, origin.fileno())
        os.fsync(copy.fileno())


def snapshots() -> list[dict[str, object]]:
    """CreateSnapshot of an idle volume, and a bare clone of the same file, in turns."""
    rows: list[dict[str, object]] = []
    with agent() as rig, Client(rig.endpoint) as client:
        scratch = rig.pool / "bare"
        scratch.mkdir()
        for extents in (1, 1_000, 10_000):
            volume = client.create_volume(f"v{extents}", SizeRange(max(64 << 20, extents * 8192)), [BLOCK])
            image = f"{rig.pool}/volumes/{volume.id.rsplit(':', 1)[1]}/disk.img"
            fragment(image, extents)
            bare: list[float] = []
            ours: list[float] = []
            for index in range(30 if extents < 10_000 else 7):
                bare += timed(1, lambda _, i=index: bare_clone(image, scratch / f"{i}"))
                ours += timed(1, lambda _, i=index: client.create_snapshot(volume.id, f"s{extents}-{i}"))
            rows.append(
                {
                    "what": "CreateSnapshot / FICLONE + fsync",
                    "extents": extents,
                    "ratio": round(statistics.median(ours) / statistics.median(bare), 2),
                    "ours": quantiles(ours),
                    "bare": quantiles(bare),
                }
            )
    return rows


def rates() -> list[dict[str, object]]:
    """CreateVolume and DeleteVolume a second, each alone: one caller, and sixteen."""
    rows: list[dict[str, object]] = []
    with agent("64Gi") as rig:
        for clients, count in ((1, 400), (16, 800)):
            connections = [Client(rig.endpoint) for _ in range(clients)]
            ids: list[str] = []

            def create(index: int, c: list[Client] = connections) -> str:
                return c[index % len(c)].create_volume(f"r{len(c)}-{index}", SizeRange(1 << 30), [BLOCK]).id

            def delete(pair: tuple[int, str], c: list[Client] = connections) -> None:
                c[pair[0] % len(c)].delete_volume(pair[1])

            with concurrent.futures.ThreadPoolExecutor(clients) as callers:
                started = time.perf_counter()
                ids = list(callers.map(create, range(count)))
                created = time.perf_counter() - started
                started = time.perf_counter()
                list(callers.map(delete, enumerate(ids)))
                deleted = time.perf_counter() - started
            rows.append({"what": "CreateVolume", "clients": clients, "per_second": round(count / created)})
            rows.append({"what": "DeleteVolume", "clients": clients, "per_second": round(count / deleted)})
            for connection in connections:
                connection.close()
    return rows


def many() -> list[dict[str, object]]:
    """A hundred volumes from one snapshot, against a hundred bare clones."""
    rows: list[dict[str, object]] = []
    with agent("64Gi") as rig, Client(rig.endpoint) as client:
        scratch = rig.pool / "bare"
        scratch.mkdir()
        for extents in (1, 1_000):
            volume = client.create_volume(f"v{extents}", SizeRange(64 << 20), [BLOCK])
            fragment(f"{rig.pool}/volumes/{volume.id.rsplit(':', 1)[1]}/disk.img", extents)
            snapshot = client.create_snapshot(volume.id, f"s{extents}")
            image = f"{rig.pool}/snapshots/{snapshot.id.rsplit(':', 1)[1]}/disk.img"
            ours = sum(
                timed(
                    100,
                    lambda i, e=extents, s=snapshot: client.create_volume(
                        f"c{e}-{i}", SizeRange(), [BLOCK], source=Source("snapshot", s.id)
                    ),
                )
            )
            bare = sum(timed(100, lambda i, e=extents, p=image: bare_clone(p, scratch / f"{e}-{i}")))
            rows.append(
                {
                    "what": "100 volumes from one snapshot",
                    "extents": extents,
                    "seconds": round(ours, 3),
                    "bare_seconds": round(bare, 3),
                    "ratio": round(ours / bare, 2),
                }
            )
    return rows
