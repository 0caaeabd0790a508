"""What is done inside a freeze, where nothing has to be frozen for it."""

from collections.abc import Mapping
from typing import Any

from csi_driver.host.freeze.action import action_of


def perform(action: Mapping[str, Any]) -> None:
    """Perform an action at once: whoever could write is not there. Raises FreezeError for an unknown kind, OSError."""
    steps = action_of(action)
    for index in range(len(steps)):
        steps.prepare(index)
    for index in range(len(steps)):
        steps.perform(index)
