"""How figures are written on the screen."""

from __future__ import annotations

import math

import pytest

from cxrlt_cli.commands.evaluate.show import number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4123, ".412"),
        (-0.4123, "-.412"),
        (1.0, "1.00"),
        (0.9999, "1.00"),
        (-0.0001, ".000"),
        (12.0, "12.000"),
        (math.nan, "-"),
    ],
)
def test_a_figure_is_short_and_nothing_has_no_sign(value: float, text: str) -> None:
    assert number(value) == text
