"""What else than the data set holds something of a user: vectors of the user's texts, the ranking store, own models.

Each function may be called again after a crash; it then finds less.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from client.intake.commit import IntakeFolder
from client.intake.gathering import read_rejects
from client.intake.settings import Ranking
from client.intake.suppression import tidied
from shared.errors import ConfigError, IntegrityError, VeilrecError

if TYPE_CHECKING:
    from client.ranking.store import EventStore
    from shared.model.text import TextStage

PERSONAL_FOLDER = "personal"
"""`client.ranking.personal_files.PERSONAL_FOLDER`, which is not imported from there: it would load torch."""
STORE_KEY, STORE_FILE = "pseudonyms.key", "events.sqlite"
"""In the state folder of `veilrec serve` (`client.service.command.open_service`)."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Reviews of a user that nobody else has written too, in the data set and in the rejects."""

    own: frozenset[str]
    reviews: int


def texts_of(place: IntakeFolder, user_id: str) -> Texts:
    """The texts whose vectors go with the user."""
    frames = [read_rejects(place).lazy().select("user_id", "review")]
    if place.data.exists():
        frames.append(pl.scan_parquet(place.data).select("user_id", "review"))
    texts = pl.concat(frames).filter(pl.col("review").fill_null("") != "").with_columns(tidied("user_id"))
    own = texts.filter(pl.col("user_id") == user_id).select("review").collect(engine="streaming")
    distinct = own.unique()
    others = texts.filter(pl.col("user_id") != user_id).join(distinct.lazy(), on="review", how="semi")
    shared = others.select(pl.col("review").unique()).collect(engine="streaming").to_series()
    return Texts(frozenset(distinct.get_column("review").to_list()) - frozenset(shared.to_list()), own.height)


def forget_vectors(place: IntakeFolder, ranking: Ranking | None, texts: Collection[str]) -> int:
    """Erase the vectors of texts from all caches; how many there were.

    A vector is filed under a digest of its recipe and text, so that it can only be found by a recipe that is known: the
    default one and those of the runs that are in ``runs/``.
    """
    caches = [cache for cache in caches_of(place, ranking) if cache.exists()]
    if not texts or not caches:
        return 0
    from client.data.text_cache import TextCache

    stages: dict[str, TextStage] = {}
    for stage in _stages(place):
        stages.setdefault(stage.recipe(items=False), stage)
    ordered = sorted(texts)
    return sum(TextCache(cache).erase(stage, ordered, items=False) for cache in caches for stage in stages.values())


def forget_all_vectors(place: IntakeFolder, ranking: Ranking | None) -> int:
    """Empty the caches: whatever model made a vector. All of them can be computed anew; how many there were."""
    erased = 0
    for cache in caches_of(place, ranking):
        if cache.exists():
            try:
                with closing(sqlite3.connect(cache, timeout=60.0)) as db, db:
                    db.execute("PRAGMA secure_delete = ON")
                    erased += db.execute("DELETE FROM vectors").rowcount
            except sqlite3.DatabaseError as error:
                raise IntegrityError(f"{cache}: not a text cache ({type(error).__name__}). Delete it.") from None
    return erased


def caches_of(place: IntakeFolder, ranking: Ranking | None) -> list[Path]:
    """Files of text vectors: the partner's, and those that ``[ranking]`` names."""
    named = [] if ranking is None else [place.premises.folder / cache for cache in ranking.caches]
    return [place.premises.cache, *named]


@contextmanager
def store_of(place: IntakeFolder, ranking: Ranking) -> Iterator[EventStore]:
    """The ranking service's store, by the service's own pseudonym key.

    Raises
    ------
    ConfigError
        If ``[ranking]`` names a store that is not there.
    """
    from client.data.pseudonyms import PseudonymKey
    from client.ranking.store import EventStore

    folder = place.premises.folder / ranking.state
    key_file, url = folder / STORE_KEY, f"sqlite:///{folder / STORE_FILE}"
    if not key_file.exists():
        raise ConfigError(f"{key_file}: Expected the key of the ranking service's store, there is none.")
    if ranking.url_env is not None:
        url = os.environ.get(ranking.url_env, "").strip()
        if not url:
            raise ConfigError(f"Expected the URL of the ranking store in the environment variable {ranking.url_env}.")
    with EventStore.open(url, PseudonymKey.load_or_create(key_file)) as store:
        yield store


def forget_personal(place: IntakeFolder) -> int:
    """Take away what the partner trained for itself, without noise, on data with the user in them; how many files."""
    files = list((place.premises.folder / PERSONAL_FOLDER).glob("*.safetensors"))
    for file in files:
        file.unlink()
    return len(files)


def forget_sums(place: IntakeFolder) -> int:
    """Take away noised sums of rounds that were opened: nobody will ask for them again; how many."""
    from shared.privacy.ledger import Ledger

    gone = 0
    sums = list(place.premises.folder.glob("runs/*/sum"))
    if not sums or not place.premises.ledger_file.exists():
        return 0
    ledger = Ledger(place.premises.ledger_file, place.premises.identity)
    for file in sums:
        with suppress(VeilrecError):
            state = _round_of(file.parent)
            if state is not None and ledger.opened(file.parent.name, state) is not None:
                file.unlink()
                gone += 1
    return gone


def _round_of(folder: Path) -> int | None:
    from client.run_folder import RunFolder

    state = RunFolder(folder).state()
    return None if state is None else state.round


def _stages(place: IntakeFolder) -> Iterator[TextStage]:
    import torch

    from client.run_folder import RunFolder
    from shared.config import ModelConfig
    from shared.model.text import TextStage
    from shared.model.weights import find_base
    from shared.wire import parse_plan

    models = [ModelConfig()]
    for folder in sorted(place.premises.folder.glob("runs/*")):
        with suppress(VeilrecError):
            state = RunFolder(folder).state()
            if state is not None:
                models.append(parse_plan(state.signed.text).config.model)
    for model in models:
        with suppress(VeilrecError):  # a base model that is not here has made no vector here
            base = find_base(model.base, local_only=True)
            layers, tokens = model.adapted_layers, model.max_tokens
            yield TextStage(base, adapted_layers=layers, max_tokens=tokens, device=torch.device("cpu"))
