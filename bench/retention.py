"""Retention over 100,000 histories from one seed: what the code would remove against the rules said independently."""

import os
import random
import time
from concurrent.futures import ProcessPoolExecutor

from support.retention_model import history

HISTORIES = 100_000
SEED = 20260101


def retention() -> list[dict[str, object]]:
    """Violations found, which must be none, and how long it took on how many processes."""
    started = time.perf_counter()
    processes = os.cpu_count() or 1
    with ProcessPoolExecutor(processes) as pool:
        found = sum(pool.map(_live, range(SEED, SEED + HISTORIES), chunksize=500))
    seconds = time.perf_counter() - started
    if found:
        raise SystemExit(f"{found} violations of the rules of retention")
    return [
        {"histories": HISTORIES, "seed": SEED, "violations": found, "seconds": round(seconds), "processes": processes}
    ]


def _live(seed: int) -> int:
    chance = random.Random(seed)
    found = history(chance, chance.randint(1, 16))
    for violation in found:
        print(f"seed {seed}: {violation}", flush=True)
    return len(found)
