"""The report's page: round numbers on its axes, and an interval beside whatever was measured."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apps.report import render, ticks


@given(st.floats(1e-6, 1e9))
def test_an_axis_has_a_few_round_numbers_from_zero(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0
    assert most * 0.6 < found[-1] <= most * (1 + 1e-9)
    assert 4 <= len(found) <= 11
    digits = f"{found[1]:.6e}".split("e")[0].strip("0").rstrip(".")
    assert digits in ("1", "2", "5")


def test_a_functions_accuracy_stands_beside_its_interval_and_nothing_stands_where_nobody_knows() -> None:
    shares = {"coverage": 0.5, "overlap": 0.1, "conflict": 0.0}
    facts: dict[str, Any] = {
        "workspace": "<desk>",
        "annotator": "files",
        "rounds": [],
        "stages": [],
        "gates": [],
        "label_model": {},
        "functions": [
            {"name": "known", **shares, "accuracy": 0.75, "interval": (0.5, 0.9)},
            {"name": "unknown", **shares, "accuracy": None, "interval": None},
        ],
    }
    page = render(facts)
    assert "0.750 <small>[0.500, 0.900]</small>" in page
    assert page.count("<td>-</td>") == 1
    assert "&lt;desk&gt;" in page
