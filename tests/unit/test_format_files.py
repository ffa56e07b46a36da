"""Files of data that change while they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.data.formats.files import parquet_table


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import renames a new file in its place between the look at the columns and that at the rows."""
    file, new, schema = tmp_path / "a.parquet", tmp_path / "new.parquet", pl.read_parquet_schema
    pl.DataFrame({"user_id": ["a", "b"], "rating": [1.0, 2.0]}).write_parquet(file)
    pl.DataFrame({"user_id": [7] * 1000}).write_parquet(new)

    def looked_at(source: Any) -> Any:
        found = schema(source)
        new.rename(file)
        return found

    monkeypatch.setattr(pl, "read_parquet_schema", looked_at)
    frame = parquet_table(file).frame
    assert frame.rows() == [("a", 1.0), ("b", 2.0)]
    monkeypatch.undo()
    assert parquet_table(file).frame.height == 1000
