"""`python -m csi_driver.agent SETTINGS`: the agent itself, in a process that has loaded nothing else.

`tidemark agent` reads its options and then becomes this (exec, same pid). Memory is the price of an agent on every node, so
what it never uses stays out: the command line's libraries, and rich, which structlog would load only to colour tracebacks.
"""

import asyncio
import sys

from csi_driver.host.pid1 import run_as_child_of_pid1


def main() -> None:
    """Run an agent with the settings in the first argument (JSON of settings.dump)."""
    run_as_child_of_pid1()
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails, and structlog then does without
    from csi_driver.agent.main import run_agent
    from csi_driver.agent.settings import load

    sys.exit(asyncio.run(run_agent(load(sys.argv[1]))))


if __name__ == "__main__":
    main()
