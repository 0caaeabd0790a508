"""The hold under which a volume is exported: renewed in time, and noticed when it has lapsed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csi_driver.cli.failure import Failure
from csi_driver.cli.transfer.exporting import Hold
from csi_driver.cli.transfer.hidden_names import PREFIX, hidden_name, is_imported
from csi_driver.cli.transfer.progress import line
from csi_driver.domain.ids import PoolRef
from csi_driver.rpc.clients.cli_client import CallRefused, Node

NOW = datetime.now(UTC)
VOLUME = Node(id="n1:default:" + "a" * 32, name="db", kind="volume", pool="default", size=4096, created=NOW, uid="u")


class FakeClient:
    """Holds for as many seconds as it is told, or refuses."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.refused: CallRefused | None = None
        self.held: list[str] = []

    def hold(self, volume_id: str, holder: str) -> datetime:
        if self.refused:
            raise self.refused
        self.held.append(holder)
        return datetime.now(UTC) + timedelta(seconds=self.seconds)


def held(seconds: float) -> tuple[Any, Hold]:
    client: Any = FakeClient(seconds)
    return client, Hold(client, VOLUME)


def test_it_is_renewed_when_it_is_due_and_not_before() -> None:
    client, hold = held(300)
    hold.renew(60)
    assert len(client.held) == 1
    hold.renew(0)
    assert len(client.held) == 2
    assert len(set(client.held)) == 1, "by the same holder"
    assert client.held[0].startswith("export on ")
    assert len(client.held[0].encode()) <= 128


def test_one_that_has_lapsed_is_noticed() -> None:
    """Somebody may have mounted the volume in between, and written to it."""
    _, hold = held(-1)
    with pytest.raises(Failure, match="free for a moment"):
        hold.renew(0)


def test_an_agent_that_is_restarted_is_waited_for_while_the_hold_stands() -> None:
    client, hold = held(300)
    client.refused = CallRefused("UNAVAILABLE", "no agent answers")
    hold.renew(0)
    client.refused = CallRefused("FAILED_PRECONDITION", "somebody else holds it")
    with pytest.raises(CallRefused, match="somebody else"):
        hold.renew(0)
    client, hold = held(-1)
    client.refused = CallRefused("UNAVAILABLE", "no agent answers")
    with pytest.raises(CallRefused, match="no agent"):
        hold.renew(0)


def test_the_hidden_name_is_that_of_the_volume_and_fits_the_protocol() -> None:
    assert hidden_name("db") == f"{PREFIX}db"
    long, other = "a" * 128, "a" * 127 + "b"
    assert len(hidden_name(long)) <= 128
    assert hidden_name(long) != hidden_name(other)


def test_a_volume_that_was_imported_is_known_by_its_deleted_source() -> None:
    source = str(PoolRef("n1", "default").new_snapshot_id(hidden_name("db")))
    assert is_imported(Node(**{f: getattr(VOLUME, f) for f in VOLUME.__slots__} | {"parent_id": source}))
    assert not is_imported(VOLUME)
    other = str(PoolRef("n1", "default").new_snapshot_id("s"))
    assert not is_imported(Node(**{f: getattr(VOLUME, f) for f in VOLUME.__slots__} | {"parent_id": other}))


def test_progress_of_nothing_is_complete() -> None:
    assert line("exporting db", 1 << 30, 1 << 20, 4 << 30) == "exporting db: 25 % of 4 GiB, 1 MiB of data"
    assert "100 %" in line("x", 0, 0, 0)
