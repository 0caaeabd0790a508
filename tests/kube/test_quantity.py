from __future__ import annotations

import pytest

from csi_driver.kube.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1", 1),
        (5, 5),
        ("1Gi", 1 << 30),
        ("1.5Gi", 3 << 29),
        ("500M", 500_000_000),
        ("1k", 1000),
        ("2Ki", 2048),
        ("1e3", 1000),
        ("1E", 10**18),
        ("1Ei", 1 << 60),
        ("12E2", 1200),
        ("100m", 1),
        ("1500m", 2),
        ("-1", -1),
        ("0.5", 1),
        ("", None),
        ("Gi", None),
        ("1 Gi", None),
        ("1gi", None),
        ("1.2.3", None),
        (None, None),
        ({}, None),
    ],
)
def test_quantities(text: object, value: int | None) -> None:
    assert parse_quantity(text) == value
