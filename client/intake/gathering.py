"""What the sources give: every new file whole or not at all, every database from its watermark on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl

from client.data.formats.files import Table
from client.intake.commit import IntakeFolder, digest_of, stamp_of
from client.intake.databases import read_window, windows_of
from client.intake.pieces import tables_of
from client.intake.preparing import FORM, REJECTS, UNKNOWN_ITEM, Rules, prepare, settle
from client.intake.settings import DatabaseSource, FileSource
from client.intake.state import IntakeState, SourceState
from shared.errors import ConfigError, DataError, VeilrecError

HALF_WRITTEN = (".tmp", ".part", ".partial", ".crdownload")
Mark = tuple[int, int, Counter[str], Counter[str]]


class Gathered:
    """New rows in files of ``intake/next/``, new rejects in memory, and what was counted on the way.

    Parameters
    ----------
    place : IntakeFolder
    rules : Rules
    """

    def __init__(self, place: IntakeFolder, rules: Rules) -> None:
        self.place, self.rules = place, rules
        self.parts: list[Path] = []
        self.rejects: list[pl.DataFrame] = []
        self.counts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.files = 0
        self.failed: dict[str, str] = {}
        self.delete: list[Path] = []

    def take(self, source: FileSource | DatabaseSource, state: IntakeState) -> IntakeState:
        """Read a source; what fails of it is noted and left for the next time, and other sources go on."""
        try:
            if isinstance(source, FileSource):
                return self._files(source, state)
            return self._database(source, state)
        except VeilrecError as error:
            self._note(source, error)
            return state

    def take_waiting(self, rejects: pl.DataFrame) -> pl.DataFrame:
        """Take rejected rows whose item has come into the catalogue; the rejects without them."""
        waiting = rejects.filter(pl.col("reason") == UNKNOWN_ITEM)
        ready = waiting.join(self.rules.items, on="item_id", how="semi")
        if ready.is_empty():
            return rejects
        self._keep(settle(ready.select(pl.col(name).cast(kind) for name, kind in FORM.items()), "", self.rules).rows)
        return rejects.join(ready, on=list(REJECTS), how="anti", nulls_equal=True)

    def rejected(self) -> dict[str, int]:
        """New rejects by reason."""
        reasons = pl.concat([pl.DataFrame(schema=REJECTS), *self.rejects]).get_column("reason")
        return dict(reasons.value_counts().sort("reason").iter_rows())

    def _files(self, source: FileSource, state: IntakeState) -> IntakeState:
        folder = self.place.premises.folder / source.folder
        if not folder.is_dir():
            raise ConfigError(f"{folder}: Expected a folder, there is none.")
        for path in drops_of(folder, source.pattern):
            held, stamp = state.source(source.name), stamp_of(path)
            if stamp not in held.taken.values():
                digest = digest_of(path)
                if digest not in held.taken and not self._whole(path, source):
                    continue
                state = state.with_source(source.name, replace(held, taken={**held.taken, digest: stamp}))
            if source.after == "delete":
                self.delete.append(path)
        return state

    def _whole(self, path: Path, source: FileSource) -> bool:
        """Take all of a file, or nothing."""
        mark = self._mark()
        try:
            self._take(tables_of(path, source.mapping, self.place.scratch), source)
        except VeilrecError as error:
            self._back_to(mark)
            self._note(source, error)
            return False
        self.files += 1
        return True

    def _database(self, source: DatabaseSource, state: IntakeState) -> IntakeState:
        url, held, mark = source.url(self.place.premises.folder), state.source(source.name), self._mark()
        end = held.watermark
        try:
            for window in windows_of(source, url, held.watermark):
                self._take([read_window(source, url, window)], source)
                end = window.end or end
        except VeilrecError:
            self._back_to(mark)
            raise
        return state.with_source(source.name, SourceState(held.taken, end))

    def _take(self, tables: Iterable[Table], source: FileSource | DatabaseSource) -> None:
        for table in tables:
            if table.frame.is_empty():
                continue
            got = prepare(table, source.mapping, source.name, self.rules)
            self.counts.update(got.counts)
            self.found.update(got.found)
            if got.rejects.height:
                self.rejects.append(got.rejects)
            self._keep(got.rows)

    def _keep(self, rows: pl.DataFrame) -> None:
        if rows.height:
            part = self.place.scratch / f"part-{len(self.parts):06d}.parquet"
            rows.select(pl.col(name).cast(kind) for name, kind in FORM.items()).write_parquet(part)
            self.parts.append(part)

    def _note(self, source: FileSource | DatabaseSource, error: VeilrecError) -> None:
        before = self.failed.get(source.name)
        self.failed[source.name] = f"{before} {error}" if before else str(error)

    def _mark(self) -> Mark:
        return len(self.parts), len(self.rejects), self.counts.copy(), self.found.copy()

    def _back_to(self, mark: Mark) -> None:
        del self.parts[mark[0] :], self.rejects[mark[1] :]
        self.counts, self.found = mark[2], mark[3]


def drops_of(folder: Path, pattern: str) -> list[Path]:
    """The files of a drop folder by name, without those that are being written."""
    found = [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]
    return sorted(path for path in found if path.suffix not in HALF_WRITTEN)


def read_rejects(place: IntakeFolder) -> pl.DataFrame:
    """All rows that are set aside.

    Raises
    ------
    DataError
        If the file is not what was written.
    """
    if not place.rejects.exists():
        return pl.DataFrame(schema=REJECTS)
    try:
        return pl.read_parquet(place.rejects).select(pl.col(name).cast(kind) for name, kind in REJECTS.items())
    except pl.exceptions.PolarsError:
        raise DataError(f"{place.rejects}: Expected rejected rows as an import writes them.") from None
