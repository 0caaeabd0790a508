"""What the agent says about a pool."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What the agent says about a pool, of whatever kind; a kind reads what concerns it.

    `path`: as the kind has it. `init`: make a pool in any empty place. `freeze_deadline`: seconds. `backing`: the sparse image that
    holds the pool, whose host must have room. `in_container`: the pool, and all places where volumes are mounted, must lie on mounts
    of the host. `runtime_directory`: a directory of the node that is empty after a boot, for notes of what does not outlive one;
    empty: they lie in the pool.
    """

    name: str
    owner: str
    path: str
    init: bool = False
    freeze_deadline: float = 5.0
    backing: str = ""
    in_container: bool = False
    runtime_directory: str = ""
