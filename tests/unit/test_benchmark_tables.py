"""How benchmarks print what they found."""

from __future__ import annotations

import json

import pytest

from simulations.benchmarks.show import show

COLUMNS = {f"k{k}": f"a heading of column {k}" for k in range(14)}
ROWS = [{f"k{k}": 1234.5 * k for k in range(14)} | {"k0": "a defence with a long name", "more": 1}]


def test_a_table_in_a_file_is_as_wide_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show("tables", ROWS, COLUMNS, as_json=False, title="a title", caption="a caption")
    told = capsys.readouterr().out
    assert "…" not in told
    line = next(line for line in told.splitlines() if "a defence with a long name" in line)
    assert "1,234" in line and "16,048" in line, "a row is one line"
    assert all(heading in told for heading in COLUMNS.values())


def test_json_has_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    show("tables", ROWS, COLUMNS, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row == ROWS[0]
