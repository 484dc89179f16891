"""How sure a counted share is."""

from __future__ import annotations

from curation.calibration import wilson


def test_wilson_intervals_hold_the_share() -> None:
    for found, known in ((0, 10), (5, 10), (10, 10), (999, 1000)):
        low, high = wilson(found, known)
        assert 0 <= low <= found / known <= high <= 1
    assert wilson(0, 0) == (0.0, 1.0)
