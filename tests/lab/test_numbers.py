"""Two numbers are never spelled alike, and the usual ones as the folders of before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgd_sai.lab.numbers import exact


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_spelling_is_read_back_as_the_same_number(value):
    assert float(exact(value)) == value


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(0.1, "0.1"), (1.0, "1"), (5e-05, "5e-05"), (0.0, "0"), (17.8, "17.8"), (0.12345678, "0.12345678")],
)
def test_a_spelling_is_short(value, spelled):
    assert exact(value) == spelled
