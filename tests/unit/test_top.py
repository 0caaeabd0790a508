"""Rates of a device from two readings of the kernel's counters."""

from csi_driver.cli.top.activity import Activity, Counters, parse_counters, rates

LINE = "   10        3      800       50      20        4     1600       70        0      120      121        0        0 0 0 0 0\n"


def test_the_kernels_line_is_read_in_bytes() -> None:
    counters = parse_counters(LINE, "7:3")
    assert counters == Counters("7:3", 10, 800 * 512, 20, 1600 * 512, 120)


def test_what_is_no_line_of_the_kernels_is_none() -> None:
    for text in ("", "1 2 3", "a b c d e f g h i j k", "-1 " * 11):
        assert parse_counters(text) is None


def test_rates_are_per_second() -> None:
    before = Counters("a", 100, 1000, 10, 0, 500)
    after = Counters("a", 300, 5000, 20, 8192, 1500)
    assert rates(before, after, 2.0) == Activity(100, 5, 2000, 4096, 0.5)


def test_a_device_that_was_attached_again_has_no_rate_yet() -> None:
    before, after = Counters("a", 100, 0, 0, 0, 0), Counters("b", 300, 0, 0, 0, 0)
    assert rates(before, after, 1.0) is None
    assert rates(before, Counters("a", 3, 0, 0, 0, 0), 1.0) is None, "counters that went back are another attachment's"
    assert rates(before, before, 0.0) is None


def test_busy_is_never_more_than_all_the_time() -> None:
    """The kernel counts in ticks, so a second may seem longer than it is."""
    found = rates(Counters("a", 0, 0, 0, 0, 0), Counters("a", 0, 0, 0, 0, 1004), 1.0)
    assert found is not None
    assert found.busy == 1.0
