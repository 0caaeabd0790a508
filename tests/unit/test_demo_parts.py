"""The demo's parts: the shop and its migration, the child that types commands, and the key that `--step` waits for."""

import io
import json
import os
import pty
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver import __version__
from csi_driver.cli.common import Failure
from csi_driver.cli.demo.keys import PROMPT, wait_for_key
from csi_driver.cli.demo.screen import Screen
from csi_driver.cli.demo.shop import ORDERS, Shop
from csi_driver.cli.demo.typist import Typist, run_commands


def test_the_migration_destroys_what_no_column_has_any_more(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop.db")
    shop.fill()
    before, digest = shop.totals(), shop.digest()
    assert before[0] == ORDERS
    shop.migrate()
    assert shop.totals()[0] == ORDERS
    assert 0 < shop.totals()[1] < before[1] / 100
    assert shop.digest() != digest
    assert shop.is_sound()
    shop.close()
    # It is in the file, not in this process.
    again = Shop(tmp_path / "shop.db", writable=False)
    assert again.totals()[1] < before[1] / 100
    again.close()


def test_one_changed_order_is_another_content_and_two_shops_are_equal(tmp_path: Path) -> None:
    shops = [Shop(tmp_path / name) for name in ("one", "two")]
    for shop in shops:
        shop.fill()
    assert shops[0].digest() == shops[1].digest()
    shops[0].change_one()
    assert shops[0].digest() != shops[1].digest()
    for shop in shops:
        shop.close()


def test_a_typed_command_answers_with_code_output_and_time() -> None:
    answers = io.StringIO()
    run_commands(io.StringIO('["--version"]\n["volume", "bake"]\n'), answers)
    version, wrong = (json.loads(line) for line in answers.getvalue().splitlines())
    assert (version["code"], version["output"]) == (0, f"tidemark {__version__}")
    assert version["milliseconds"] > 0
    assert wrong["code"] == 2
    assert "bake" in wrong["output"]


def test_a_typist_without_an_agent_says_so_and_leaves_no_child(tmp_path: Path) -> None:
    typist = Typist(f"unix://{tmp_path}/csi.sock", tmp_path, tmp_path)
    try:
        with pytest.raises(Failure, match=r"`tidemark status` ended with exit code 1: .*csi\.sock"):
            typist.type("status")
    finally:
        typist.close()
    with pytest.raises(Failure, match="has ended"):
        Typist.type(_closed(typist), "status")


def _closed(typist: Typist) -> Typist:
    """The same with a pipe that nobody reads."""
    assert typist._process.returncode is not None
    reading, writing = os.pipe()
    os.close(reading)
    typist._process.stdin = os.fdopen(writing, "w")
    return typist


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Where a person types, and where a program reads that."""
    person, program = pty.openpty()
    try:
        yield person, program
    finally:
        os.close(person)
        os.close(program)


@pytest.mark.parametrize("key", [b" ", b"n", b"\r", b"\x1b[C"])
def test_a_key_goes_on_without_enter_and_nothing_does_before(terminal: tuple[int, int], key: bytes) -> None:
    person, program = terminal
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(wait_for_key(program)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    os.write(person, key)
    waiting.join(30)
    assert answers == [True]


def test_a_screen_waits_before_each_step_but_the_first_until_nobody_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [True, False]
    screen = Screen(lambda: answers.pop(0))
    screen.part("1", "A part")
    for title in ("one", "two", "three", "four"):
        screen.step(title)
    assert answers == []
    assert capsys.readouterr().out.count(PROMPT) == 2


def test_a_command_stands_beside_what_it_does_and_below_it_where_it_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.command("tidemark umount /mnt/shop", 12.4, "the shop is closed", "shop is no longer in use")
    screen.command(f"tidemark mount shop /tmp/{'x' * 60}", 12.4, "formats it the first time", "")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "$ tidemark umount /mnt/shop   # 12 ms, the shop is closed",
        "shop is no longer in use",
        f"$ tidemark mount shop /tmp/{'x' * 60}",
        "# 12 ms, formats it the first time",
    ]
