"""JSON as the lab writes it: short things in one line, and nothing that JSON has not."""

from __future__ import annotations

import json

import pytest

from sgd_sai.files import write_json


def test_what_is_short_stays_in_one_line(tmp_path):
    path = tmp_path / "record.json"
    value = {
        "label": 'λ "quoted"\n',
        "quartiles": [1.5, 2],
        "rows": {"sgd": {"ms": 1e-7, "quartiles": [0.1, 0.2]}, "adamw": {"ms": None, "quartiles": []}},
        "long": [[0.123456789] * 4] * 5,
        "numbers": [1] * 100,
        "empty": {},
    }
    write_json(path, value)
    assert json.loads(path.read_text()) == value
    lines = path.read_text().splitlines()
    assert (
        ' "rows": {"sgd": {"ms": 1e-07, "quartiles": [0.1, 0.2]}, "adamw": {"ms": null, "quartiles": []}},'
        in lines
    )
    assert "  [0.123456789, 0.123456789, 0.123456789, 0.123456789]," in lines
    assert max(map(len, lines)) > 300  # numbers alone


@pytest.mark.parametrize("value", [float("nan"), {"a": {"loss": [float("inf")] * 50}}])
def test_no_file_with_what_json_has_not(value, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "record.json", value)
    assert not [*tmp_path.iterdir()]
