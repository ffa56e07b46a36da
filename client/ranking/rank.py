"""Rank the catalogue for one user or one query, with the titles that a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.cleaning import clean
from client.data.histories import build_histories
from client.data.ingest import RawData, data_home, locate, read
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.ranking.engine import Engine, own_texts
from client.ranking.explain import explain
from client.ranking.scorer import Scores
from client.ranking.sentences import sentence
from client.workbench import catalogue_vectors
from shared.adapter import load_release
from shared.catalogue import build_catalogue
from shared.errors import AdapterMismatchError, ConfigError, UnknownUserError
from shared.model.text import TextStage
from shared.model.weights import choose_device
from shared.schema import Histories, RankedItem, RankedList, UserHistory

MARKETPLACE = "marketplace"


def data_of(run: Path, name_or_path: str) -> RawData:
    """The data to rank with: an imported set, a path, or ``marketplace`` for the run's own simulated partners.

    Raises
    ------
    ConfigError
        If there is no such data.
    """
    if name_or_path == MARKETPLACE:
        folders = sorted((run / "partners").glob("partner-*"))
        if not folders:
            raise ConfigError(f"{run}: Expected the partners' folders of a simulation for data={MARKETPLACE}.")
        parts = [read(folder) for folder in folders]
        return RawData(MARKETPLACE, pl.concat([part.interactions for part in parts]), parts[0].items)
    path = locate(name_or_path)
    if path is None:
        raise ConfigError(f"Expected data=an imported set or a path, got {name_or_path}: there is neither.")
    return read(path)


class LocalRanker:
    """A released adapter over a partner's own data.

    Parameters
    ----------
    engine : Engine
    histories : Histories
        Of the rows of the engine's catalogue.
    key : PseudonymKey
        That their users were named with.
    """

    def __init__(self, engine: Engine, histories: Histories, key: PseudonymKey) -> None:
        self._engine, self._histories, self._key = engine, histories, key
        self._maker = engine.maker(histories)

    @classmethod
    def open(cls, adapter: Path, data: RawData, *, device: str = "auto") -> LocalRanker:
        """Verify the adapter, then read the data; pseudonyms live no longer than the process.

        Raises
        ------
        IntegrityError
            If the adapter is not what was released.
        AdapterMismatchError
            If it belongs to another catalogue.
        """
        release = load_release(adapter)
        cleaned = clean(data)[0]
        catalogue, key = build_catalogue(cleaned.items), PseudonymKey.generate()
        if release.manifest["catalogue_sha256"] != catalogue.digest:
            raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
        model = release.config.model
        histories = build_histories(cleaned.interactions, catalogue, key, max_events=model.max_history, tie_seed=0)
        cache = TextCache(data_home().parent / "cache" / "text-vectors.sqlite")
        text = TextStage.of(model, choose_device(device))
        vectors = catalogue_vectors(text, catalogue, cache, release.model.width).to(text.device)
        return cls(
            Engine(release, catalogue, vectors, text, own_texts(cache, text, release.model.width)), histories, key
        )

    def for_user(self, user_id: str, k: int, *, explain: bool = False) -> RankedList:
        """The `k` best items that the user has not met.

        Raises
        ------
        UnknownUserError
            If the data hold nothing of the user.
        """
        place = self._place(user_id)
        rows, scores = self._engine.retrieve(self._maker, np.array([place]), k).of(0)
        return self._ranked(user_id, rows, scores, self._histories[place] if explain else None)

    def for_query(self, text: str, k: int) -> RankedList:
        """The `k` items that fit a wish in words best; it needs no history."""
        return self._ranked(text, *self._engine.query([text], k).of(0), None)

    def _place(self, user_id: str) -> int:
        pseudonym = self._key.pseudonym(user_id)
        place = int(np.searchsorted(np.array(self._histories.users), pseudonym))
        if place == len(self._histories) or self._histories.users[place] != pseudonym:
            raise UnknownUserError("Expected a user of the data: nothing is held of this one.")
        return place

    def _ranked(
        self, subject: str, rows: NDArray[np.int64], scores: Scores, explained: UserHistory | None
    ) -> RankedList:
        catalogue, best = self._engine.catalogue, [int(row) for row in rows]
        reasons = self._reasons(explained, best) if explained is not None else [""] * len(best)
        return RankedList(
            subject,
            tuple(
                RankedItem(
                    n + 1,
                    catalogue.item_ids[row],
                    catalogue.titles[row],
                    float(score),
                    reason,
                )
                for n, (row, score, reason) in enumerate(zip(best, scores, reasons, strict=True))
            ),
        )

    def _reasons(self, history: UserHistory, rows: list[int]) -> list[str]:
        engine = self._engine
        return [sentence(one, engine.catalogue) for one in explain(engine.parts, self._maker, history, rows)]
