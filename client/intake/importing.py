"""One import: all sources read from where the last one ended, and one commit of data, rejects and watermarks.

::

    sources -> tables of bounded size -> checked, cleaned, scrubbed -> parts on disk
    old rows (retention, erased users) + parts -> one row an event -> commit
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from client.data.formats.columns import INTERACTION_COLUMNS
from client.data.formats.items import read_items
from client.data.ingest import ITEMS_FILE
from client.intake.commit import AGENT_WAIT_S, IntakeFolder, commit, digest_of, staged, stamp_of
from client.intake.erasure import finish_erasure
from client.intake.gathering import Gathered, read_rejects
from client.intake.merging import in_form, merge
from client.intake.preparing import (
    FIRST_REAL_TIME,
    Rules,
    final_texts,
    young,
)
from client.intake.scrubbing import scrubber_of
from client.intake.settings import DatabaseSource, FileSource, IntakeSettings, seconds_of
from client.intake.state import IntakeState
from client.intake.suppression import key_of, without
from client.premises import Premises
from shared.errors import ConfigError

DAY = 86_400
TOLD = ("source", *INTERACTION_COLUMNS, "reason")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. Counts and names of sources alone: nothing of a user.

    Attributes
    ----------
    added : int
        Events that the data set did not have.
    dropped : int
        Old rows that retention or an erasure took out of the data set.
    rows : int
        Of the data set now.
    counts : dict
        Of rows that came: read, repeated, too_old, suppressed.
    rejected : dict
        Rows that were set aside, by reason.
    scrubbed : dict
        Personal data that were replaced, by kind, each distinct text once.
    files : int
        Taken.
    failed : dict
        What went wrong, by source; nothing of that source's file or window was taken then.
    changed : bool
        Whether the data files are others than before.
    data_sha256 : str
    seconds : float
    """

    added: int = 0
    dropped: int = 0
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    scrubbed: dict[str, int] = field(default_factory=dict)
    files: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    changed: bool = False
    data_sha256: str = ""
    seconds: float = 0.0


def import_once(premises: Premises, *, now: float | None = None, wait_s: float = AGENT_WAIT_S) -> ImportReport:
    """Look at all sources once and take what is new. A crash leaves all as it was, or all as it will be.

    Call it without the agent's lock: it takes that lock itself, for the moment in which files change.

    Parameters
    ----------
    premises : Premises
    now : float, optional
        UTC seconds; by default the clock's.
    wait_s : float
        How long to wait for an agent that computes.

    Raises
    ------
    ConfigError
        If ``intake.toml`` is wrong or absent, there is no catalogue, or the agent or another import does not let go.
    DataError
        If the data set itself cannot be read.
    """
    settings = IntakeSettings.read(premises.folder, required=True)
    place = IntakeFolder(premises)
    with place.working():
        finish_erasure(place, settings, wait_s=wait_s)
        return _Import(place, settings, time.time() if now is None else now).run(settings.sources, wait_s)


def retain(
    premises: Premises, *, days: int | None = None, now: float | None = None, wait_s: float = AGENT_WAIT_S
) -> ImportReport:
    """Drop what is older than is kept, and look at no source.

    Parameters
    ----------
    premises : Premises
    days : int, optional
        Instead of ``retention_days`` of ``intake.toml``.

    Raises
    ------
    ConfigError
        If neither says how long rows are kept; and as `import_once`.
    """
    settings = IntakeSettings.read(premises.folder)
    if days is not None:
        settings = settings.model_copy(update={"retention_days": days})
    if settings.retention_days is None or settings.retention_days < 1:
        raise ConfigError("Expected retention_days of at least 1 in intake.toml, or --days.")
    place = IntakeFolder(premises)
    with place.working():
        finish_erasure(place, settings, wait_s=wait_s)
        return _Import(place, settings, time.time() if now is None else now).run([], wait_s)


def due_in(premises: Premises, *, now: float | None = None) -> float:
    """Seconds until the next import is due by ``every``; 0 if it is."""
    every = seconds_of(IntakeSettings.read(premises.folder).every)
    checked = IntakeState.read(IntakeFolder(premises).state).checked
    return max(0.0, checked + every - (time.time() if now is None else now))


class _Import:
    """The work of one import, from what is there to what is committed."""

    def __init__(self, place: IntakeFolder, settings: IntakeSettings, now: float) -> None:
        self.place, self.now, self.begun = place, now, time.perf_counter()
        place.scratch.mkdir(mode=0o700, exist_ok=True)
        self.state = IntakeState.read(place.state)
        self.rules = Rules(
            items=_catalogue(place.premises.data / ITEMS_FILE),
            scrubber=scrubber_of(settings.scrub),
            suppressed=self.state.suppressed,
            key=key_of(place.premises),
            oldest=None if settings.retention_days is None else int(now) - DAY * settings.retention_days,
            now=now,
        )
        self.gathered = Gathered(place, self.rules)

    def run(self, sources: Sequence[FileSource | DatabaseSource], wait_s: float) -> ImportReport:
        """Read, merge, commit."""
        gathered, place = self.gathered, self.place
        rejects = gathered.take_waiting(read_rejects(place))
        state = self.state
        for source in sources:
            state = gathered.take(source, state)
        merged, names = self._merged(), ["state"]
        if self._stage_rejects(rejects):
            names.append("rejects")
        now_data = place.data
        if merged is not None:
            names.append("data")
            now_data = staged(place.data)
        state = replace(state, data=stamp_of(now_data), checked=self.now, scrubber=self._scrubbed_by)
        staged(place.state).write_bytes(state.to_bytes())
        digest, rows = digest_of(now_data), height_of(now_data)
        commit(place, names, wait_s=wait_s)
        for file in gathered.delete:
            file.unlink(missing_ok=True)
        counts = merged or Counter()
        return ImportReport(
            added=max(0, counts["rows"] - (counts["before"] - counts["dropped"])),
            dropped=counts["dropped"],
            rows=rows,
            counts={name: gathered.counts[name] for name in ("read", "repeated", "too_old", "suppressed")},
            rejected=gathered.rejected(),
            scrubbed=dict(sorted(gathered.found.items())),
            files=gathered.files,
            failed=gathered.failed,
            changed=merged is not None,
            data_sha256=digest,
            seconds=round(time.perf_counter() - self.begun, 3),
        )

    @property
    def _scrubbed_by(self) -> str:
        return "" if self.rules.scrubber is None else self.rules.scrubber.identity

    def _merged(self) -> Counter[str] | None:
        """Stage the data set anew; None if nothing would change."""
        place, rules, gathered = self.place, self.rules, self.gathered
        there = place.data.exists()
        foreign = there and self.state.data != stamp_of(place.data)  # written by something else than an import
        anew = there and rules.scrubber is not None and (foreign or self.state.scrubber != self._scrubbed_by)
        if not (gathered.parts or foreign or anew or _any_older(place.data, rules.oldest)):
            return None
        if rules.oldest is not None and there and _newest(place.data) < FIRST_REAL_TIME:
            raise ConfigError(f"{place.data}: Expected times in seconds where retention_days is set, got ordinals.")

        def keep(old: pl.DataFrame) -> pl.DataFrame:
            stayed = young(without(old, rules.suppressed, rules.key), rules.oldest)
            if not anew:
                return stayed
            texts, found = final_texts(stayed.get_column("review"), rules.scrubber)
            gathered.found.update(found)
            return stayed.with_columns(review=texts)

        old = in_form(place.data, place.scratch) if there else None
        counts = merge(old, gathered.parts, staged(place.data), place.scratch, keep)
        gathered.counts["repeated"] += counts["repeated"]
        return counts if counts["altered"] or old != place.data else None  # what is read again changes nothing

    def _stage_rejects(self, waiting: pl.DataFrame) -> bool:
        """Stage the rejects anew, unless they are those that are there."""
        rules = self.rules
        every = pl.concat([without(waiting, rules.suppressed, rules.key), *self.gathered.rejects])
        if rules.oldest is not None:
            time_of = pl.col("timestamp").cast(pl.Int64, strict=False).fill_null(int(self.now))
            every = every.filter((pl.col("rejected") >= rules.oldest) & (time_of >= rules.oldest))
        kept = every.sort(*TOLD, "rejected").unique(TOLD, keep="first", maintain_order=True)
        if kept.equals(read_rejects(self.place)):
            return False
        kept.write_parquet(staged(self.place.rejects))
        return True


def _catalogue(file: Path) -> pl.DataFrame:
    if not file.exists():
        raise ConfigError(f"{file}: Expected the federation's catalogue beside the interactions, there is none.")
    return read_items(file).select(pl.col("item_id").cast(pl.String)).unique()


def height_of(path: Path) -> int:
    """Rows of a parquet file; 0 of none."""
    return int(pl.scan_parquet(path).select(pl.len()).collect().item()) if path.exists() else 0


def _newest(path: Path) -> int:
    if "timestamp" not in pl.read_parquet_schema(path):
        return FIRST_REAL_TIME
    found = pl.scan_parquet(path).select(pl.col("timestamp").max()).collect().item()
    return FIRST_REAL_TIME if found is None else int(found)


def _any_older(path: Path, oldest: int | None) -> bool:
    if oldest is None or not path.exists():
        return False
    return bool(pl.scan_parquet(path).select((pl.col("timestamp") < oldest).any()).collect().item())
