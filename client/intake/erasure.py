"""Erasing a user: all that the partner holds of one person, in an order that a crash cannot break.

::

    journal (who, when)  ->  vectors of own texts  ->  ranking store  ->  own models  ->  sums of rounds that are over
    ->  one commit: data without the rows, rejects without the rows, the mark that keeps later imports from them
    ->  signed receipt  ->  journal gone

Each step can be repeated. The texts go last, since they say which vectors to look for. Until the receipt is written the
journal holds the id, in a file for the owner's eyes, beside data that hold it too.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from client.data.formats.columns import INTERACTION_COLUMNS
from client.intake import traces
from client.intake.commit import AGENT_WAIT_S, IntakeFolder, commit, digest_of, staged, stamp_of
from client.intake.gathering import read_rejects
from client.intake.merging import in_form, merge
from client.intake.receipts import ErasureReceipt, spent_of, write_receipt
from client.intake.settings import IntakeSettings
from client.intake.state import IntakeState
from client.intake.suppression import key_of, mark_of, tidied
from client.premises import Premises
from client.ranking.store_rows import tidy
from shared.errors import IntegrityError
from shared.files import write_bytes

JOURNAL = "erasure.json"


@dataclass(frozen=True, slots=True)
class _Journal:
    """An erasure under way. Never shown: ``repr`` has no id."""

    user_id: str = field(repr=False)
    asked: str
    data_before: str
    receipt: str
    all_vectors: bool
    removed: dict[str, int]
    resumed: bool = False


def erase(
    premises: Premises, user_id: str, *, all_vectors: bool = False, wait_s: float = AGENT_WAIT_S
) -> tuple[Path, ErasureReceipt]:
    """Remove all that is held of a user, and sign what was done; an import brings nothing of the user back.

    Parameters
    ----------
    premises : Premises
    user_id : str
        As the sources have it. It is in no message, no receipt and no log.
    all_vectors : bool
        Empty the text caches, so that no vector by a model of a run that is gone is left; they are computed anew.
    wait_s : float
        How long to wait for an agent that computes.

    Returns
    -------
    tuple of Path and ErasureReceipt

    Raises
    ------
    SchemaError
        If the id is empty or no Unicode text.
    ConfigError
        If the agent does not let go, or ``intake.toml`` names a ranking store that is not there. The erasure is then
        finished by the next import, retention or erasure.
    """
    user = tidy(user_id, "user_id")
    settings, place = IntakeSettings.read(premises.folder), IntakeFolder(premises)
    with place.working():
        finish_erasure(place, settings, wait_s=wait_s)
        now = datetime.now(UTC)
        number = len(list(place.receipts.glob("erasure-*.json"))) + 1
        name = f"erasure-{number:05d}-{now:%Y%m%dT%H%M%SZ}.json"
        begun = _Journal(user, _iso(now), digest_of(place.data), name, all_vectors, {})
        _keep(place, begun)
        return _finish(place, settings, begun, wait_s)


def finish_erasure(place: IntakeFolder, settings: IntakeSettings, *, wait_s: float = AGENT_WAIT_S) -> Path | None:
    """Finish an erasure that was interrupted, with the intake's lock held; its receipt, None where there was none.

    Raises
    ------
    IntegrityError
        If the journal is not what was written.
    """
    file = place.folder / JOURNAL
    if not file.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(file.read_bytes())
        journal = _Journal(**{**told, "removed": {str(k): int(v) for k, v in told["removed"].items()}, "resumed": True})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{file}: Expected the journal of an erasure that was interrupted.") from None
    return _finish(place, settings, journal, wait_s)[0]


def _finish(
    place: IntakeFolder, settings: IntakeSettings, journal: _Journal, wait_s: float
) -> tuple[Path, ErasureReceipt]:
    user, ranking = journal.user_id, settings.ranking
    texts = traces.texts_of(place, user).own
    if ranking is not None:
        with traces.store_of(place, ranking) as store:
            if journal.all_vectors:
                journal = _count(place, journal, text_vectors=traces.forget_all_vectors(place, ranking))
            else:
                found = traces.forget_vectors(place, ranking, texts | store.reviews(user))
                journal = _count(place, journal, text_vectors=found)
            journal = _count(place, journal, store_events=store.forget(user))
    elif journal.all_vectors:
        journal = _count(place, journal, text_vectors=traces.forget_all_vectors(place, None))
    else:
        journal = _count(place, journal, text_vectors=traces.forget_vectors(place, None, texts))
    journal = _count(place, journal, personal_models=traces.forget_personal(place))
    journal = _count(place, journal, noised_sums=traces.forget_sums(place))
    journal = _rows(place, journal, wait_s)
    receipt = ErasureReceipt(
        partner=place.premises.name,
        subject=mark_of(user, key_of(place.premises)),
        asked=journal.asked,
        finished=_iso(datetime.now(UTC)),
        removed=dict(sorted(journal.removed.items())),
        checked={"ranking_store": ranking is not None, "vectors_of_every_model": journal.all_vectors},
        data_before=journal.data_before,
        data_after=digest_of(place.data),
        resumed=journal.resumed,
        privacy=spent_of(place.premises.ledger_file),
    )
    place.receipts.mkdir(mode=0o700, exist_ok=True)
    path = place.receipts / journal.receipt
    write_receipt(path, receipt, place.premises.identity)
    (place.folder / JOURNAL).unlink()
    return path, receipt


def _rows(place: IntakeFolder, journal: _Journal, wait_s: float) -> _Journal:
    """Take the rows out of data and rejects, and keep the mark, in one commit."""
    user, mark = journal.user_id, mark_of(journal.user_id, key_of(place.premises))
    state = IntakeState.read(place.state)
    names, stamp = ["state"], state.data
    place.scratch.mkdir(mode=0o700, exist_ok=True)
    there = place.data.exists()
    old = in_form(place.data, place.scratch) if there else None
    own = pl.DataFrame() if old is None else _own(pl.scan_parquet(old).select(INTERACTION_COLUMNS), user)
    if old is not None and own.height:
        merge(old, [], staged(place.data), place.scratch, lambda rows: rows.filter(tidied("user_id") != user))
        names.append("data")
        stamp = stamp_of(staged(place.data)) if state.data == stamp_of(place.data) else state.data
        journal = _count(place, journal, **_counts(own))
    rejects = read_rejects(place)
    left = rejects.filter(tidied("user_id") != user)
    if left.height < rejects.height:
        left.write_parquet(staged(place.rejects))
        names.append("rejects")
        journal = _count(place, journal, rejected_rows=rejects.height - left.height)
    fresh = replace(state, suppressed=state.suppressed | {mark}, data=stamp)
    staged(place.state).write_bytes(fresh.to_bytes())
    commit(place, names, wait_s=wait_s)
    return journal


def _own(rows: pl.LazyFrame, user: str) -> pl.DataFrame:
    return rows.filter(tidied("user_id") == user).collect(engine="streaming")


def _counts(own: pl.DataFrame) -> dict[str, int]:
    kinds = Counter(own.get_column("event").to_list())
    reviews = own.filter(pl.col("review").fill_null("") != "").height
    return {"interactions": own.height, "reviews": reviews, **{f"events_{kind}": n for kind, n in kinds.items()}}


def _count(place: IntakeFolder, journal: _Journal, **removed: int) -> _Journal:
    """Remember what a step removed: of a step that is repeated the larger count is the one that found more."""
    counts = dict(journal.removed)
    for name, count in removed.items():
        counts[name] = max(count, counts.get(name, 0))
    fresh = replace(journal, removed=counts)
    _keep(place, fresh)
    return fresh


def _keep(place: IntakeFolder, journal: _Journal) -> None:
    write_bytes(place.folder / JOURNAL, json.dumps(asdict(journal)).encode())


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def users_of(text: str) -> list[str]:
    """Ids from a file or stdin, one a line; blank lines are skipped."""
    return [line for line in text.splitlines() if line.strip()]
