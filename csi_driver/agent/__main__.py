"""`python -m csi_driver.agent SETTINGS`: the agent itself, in a process that has loaded nothing else.

`tidemark agent` reads its options and then executes this (same pid). An agent runs on every node, so its memory counts, and
unused libraries stay out: those of the command line, and rich, which structlog would load only to colour tracebacks.
"""

import asyncio
import sys

from csi_driver.host.pid1 import run_as_child_of_pid1


def main() -> None:
    """Run an agent with the settings in the first argument (JSON of settings.dump)."""
    run_as_child_of_pid1()
    sys.modules["rich"] = None  # type: ignore[assignment]  # its import fails, and structlog works without it
    from csi_driver.agent.main import run_agent
    from csi_driver.agent.settings import load

    sys.exit(asyncio.run(run_agent(load(sys.argv[1]))))


if __name__ == "__main__":
    main()
