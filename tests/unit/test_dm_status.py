"""The words of thin pools and volumes, as kernels say them."""

import pytest

from csi_driver.host.dm import control, ioctl
from csi_driver.host.dm.ioctl import Target
from csi_driver.host.dm.status import ThinPoolStatus, ThinStatus, chunk_size, thin, thin_pool


def pool(text: str) -> ThinPoolStatus:
    return thin_pool([Target(0, 8388608, "thin-pool", text)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "7 1652/16384 12/65536 - rw no_discard_passdown error_if_no_space - 1024 ",
            ThinPoolStatus("rw", 7, 1652, 16384, 12, 65536, None, False, True),
        ),
        (
            "7 16384/16384 12/65536 99 ro discard_passdown queue_if_no_space needs_check 1024",
            ThinPoolStatus("ro", 7, 16384, 16384, 12, 65536, 99, True, False),
        ),
        (
            "0 1/2 3/3 - out_of_data_space ignore_discard queue_if_no_space - 1024",
            ThinPoolStatus("out_of_data_space", 0, 1, 2, 3, 3),
        ),
        ("Fail", ThinPoolStatus("failed")),
        ("Error", ThinPoolStatus("failed")),
    ],
)
def test_a_pool(text: str, expected: ThinPoolStatus) -> None:
    assert pool(text) == expected


@pytest.mark.parametrize("text", ["", "7", "7 1/2 3/4 - maybe", "7 1 3/4 - rw", "x 1/2 3/4 - rw"])
def test_an_answer_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not "):
        pool(text)


def test_a_volume() -> None:
    assert thin([Target(0, 1024, "thin", "384 1023")]) == ThinStatus(384)
    assert thin([Target(0, 1024, "thin", "0 -")]) == ThinStatus(0)
    assert thin([Target(0, 1024, "thin", "Fail")]) == ThinStatus(0, failed=True)


def test_a_device_of_another_kind_is_refused_by_what_it_is() -> None:
    with pytest.raises(ValueError, match="not a thin-pool device: it has linear"):
        thin_pool([Target(0, 1024, "linear", "")])
    with pytest.raises(ValueError, match="not a thin device: it has no table"):
        thin([])


def test_the_size_of_chunks_is_in_the_table() -> None:
    assert chunk_size([Target(0, 8388608, "thin-pool", "253:0 253:1 128 1024 1 error_if_no_space")]) == 65536


def test_a_kernel_without_any_device_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with nothing at all then, not with an empty entry."""
    monkeypatch.setattr(control, "call", lambda *_, **__: (control.Header(), b""))
    assert ioctl.names() == []
