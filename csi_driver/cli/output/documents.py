"""Documents for programs: JSON and YAML. docs/reference/cli-json.md describes them."""

from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csi_driver.cli.objects import AgentObjects
    from csi_driver.rpc.clients.cli_client import Node

Document = dict[str, Any]


def document(node: "Node", objects: "AgentObjects") -> Document:
    """Return the document of a volume, a snapshot or a group: its fields, and the name that people read."""
    return {**plain(node), "display_name": objects.name(node)}


def plain(value: Any) -> Any:
    """Return a dataclass, a list or a dictionary as JSON has it: times in UTC as text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def as_text(value: Any, form: str) -> str:
    """Return a document, or a list of documents, as `json` or `yaml`. ASCII: nothing in it can confuse a terminal."""
    if form == "yaml":
        import yaml

        return str(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=False)).rstrip("\n")
    import json

    return json.dumps(plain(value), indent=2)
