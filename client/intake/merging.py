"""The data set with new rows in it, in bounded memory: users fall into buckets, one of which is held at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from client.data.formats.columns import INTERACTION_COLUMNS, to_interactions
from client.data.formats.files import parquet_table
from client.intake.preparing import FORM, single_events

ROWS_AT_ONCE = 500_000
"""Of a bucket, on average."""
Keep = Callable[[pl.DataFrame], pl.DataFrame]


def in_form(path: Path, scratch: Path) -> Path:
    """The file, or a copy that has the columns and types of interactions where it was written by something else.

    Raises
    ------
    SchemaError, DataError
        If it holds no interactions.
    """
    if path.exists() and dict(pl.read_parquet_schema(path)) != FORM:
        copy = scratch / "form.parquet"
        found = to_interactions(parquet_table(path))
        found.select(pl.col(name).cast(kind) for name, kind in FORM.items()).write_parquet(copy)
        return copy
    return path


def merge(old: Path | None, parts: Sequence[Path], out: Path, scratch: Path, keep: Keep) -> Counter[str]:
    """Write old and new rows together, one row an event.

    Parameters
    ----------
    old : pathlib.Path, optional
        The data set so far, in form.
    parts : sequence of pathlib.Path
        New rows, prepared.
    out : pathlib.Path
        The data set to be. Nobody reads it before it is committed.
    scratch : pathlib.Path
        For buckets.
    keep : callable
        What of old rows stays, and how it reads; called with one bucket at a time.

    Returns
    -------
    Counter
        before, dropped (old rows that did not stay), rows (afterwards), repeated, altered (0: all is as it was).
    """
    files = [*([old] if old else []), *parts]
    heights = [int(pl.scan_parquet(file).select(pl.len()).collect().item()) for file in files]
    buckets = max(1, -(-sum(heights) // ROWS_AT_ONCE))
    counts: Counter[str] = Counter()
    written: list[Path] = []
    for bucket in range(buckets):
        before = _bucket(old, bucket, buckets) if old else pl.DataFrame(schema=FORM)
        stayed = keep(before)
        new = [_bucket(part, bucket, buckets) for part in parts]
        together = pl.concat([stayed, *new])
        final = single_events(together).select(INTERACTION_COLUMNS)
        counts.update(before=before.height, dropped=before.height - stayed.height, rows=final.height)
        counts.update(repeated=together.height - final.height, altered=_altered(before, final))
        target = scratch / f"bucket-{bucket:05d}.parquet"
        final.write_parquet(target)
        written.append(target)
    pl.concat([pl.scan_parquet(file) for file in written]).sink_parquet(out)
    for file in written:
        file.unlink()
    return counts


def _altered(before: pl.DataFrame, final: pl.DataFrame) -> int:
    """How many rows are new or read otherwise, or, where rows only went, how many."""
    fresh = final.join(before, on=list(INTERACTION_COLUMNS), how="anti", nulls_equal=True).height
    return fresh or before.height - final.height


def _bucket(path: Path, bucket: int, buckets: int) -> pl.DataFrame:
    rows = pl.scan_parquet(path).select(INTERACTION_COLUMNS)
    if buckets > 1:
        rows = rows.filter(pl.col("user_id").hash(0) % buckets == bucket)
    return rows.collect(engine="streaming")
