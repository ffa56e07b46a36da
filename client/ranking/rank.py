"""Rank the catalogue for one user or one query, with the titles that a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from client.batches import BatchMaker
from client.data.cleaning import clean
from client.data.histories import build_histories
from client.data.ingest import RawData, data_home, locate, read
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.ranking.scorer import ModelScorer, Scores
from client.workbench import catalogue_vectors
from shared.adapter import Release, load_release
from shared.catalogue import build_catalogue
from shared.errors import AdapterMismatchError, ConfigError, UnknownUserError
from shared.model.text import TextStage
from shared.model.weights import choose_device, find_base
from shared.schema import Catalogue, Histories, RankedItem, RankedList, UserHistory

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
    release : Release
    catalogue : Catalogue
    histories : Histories
    key : PseudonymKey
    cache : TextCache
    device : torch.device
    """

    def __init__(
        self,
        release: Release,
        catalogue: Catalogue,
        histories: Histories,
        key: PseudonymKey,
        cache: TextCache,
        device: torch.device,
    ) -> None:
        if release.manifest["catalogue_sha256"] != catalogue.digest:
            raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
        self._release, self._catalogue, self._histories, self._key = release, catalogue, histories, key
        config = release.config.model
        model = release.model.to(device)
        self._text = TextStage(
            find_base(config.base),
            adapted_layers=config.adapted_layers,
            max_tokens=config.max_tokens,
            device=device,
        )
        self._vectors = catalogue_vectors(self._text, catalogue, cache, model.width).to(device)
        reviews = cache.vectors(self._text, histories.review_texts, width=model.width, items=False)
        self._maker = BatchMaker(histories, reviews[:, 0], config)
        self._scorer = ModelScorer(model, release.prior, release.config.prior, self._vectors)

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
        histories = build_histories(
            cleaned.interactions, catalogue, key, max_events=release.config.model.max_history, tie_seed=0
        )
        cache = TextCache(data_home().parent / "cache" / "text-vectors.sqlite")
        return cls(release, catalogue, histories, key, cache, choose_device(device))

    def for_user(self, user_id: str, k: int, *, explain: bool = False) -> RankedList:
        """The `k` best items that the user has not met.

        Raises
        ------
        UnknownUserError
            If the data hold nothing of the user.
        """
        place = self._place(user_id)
        history = self._histories[place]
        scores = self._scorer.users(self._maker, np.array([place]))[0]
        scores[history.items] = -np.inf
        return self._ranked(user_id, scores, k, history if explain else None)

    def for_query(self, text: str, k: int) -> RankedList:
        """The `k` items that fit a wish in words best; it needs no history."""
        return self._ranked(text, self._scorer.query(text, self._text), k, None)

    def _place(self, user_id: str) -> int:
        pseudonym = self._key.pseudonym(user_id)
        place = int(np.searchsorted(np.array(self._histories.users), pseudonym))
        if place == len(self._histories) or self._histories.users[place] != pseudonym:
            raise UnknownUserError("Expected a user of the data: nothing is held of this one.")
        return place

    def _ranked(self, subject: str, scores: Scores, k: int, explained: UserHistory | None) -> RankedList:
        best = [int(row) for row in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[row])]
        reasons = self._reasons(explained, best) if explained is not None else [""] * len(best)
        return RankedList(
            subject,
            tuple(
                RankedItem(
                    n + 1,
                    self._catalogue.item_ids[row],
                    self._catalogue.titles[row],
                    float(scores[row]),
                    reason,
                )
                for n, (row, reason) in enumerate(zip(best, reasons, strict=True))
            ),
        )

    def _reasons(self, history: UserHistory, rows: list[int]) -> list[str]:
        """For each ranked item, the event without which its score falls most: the model is asked again without it."""
        newest = np.arange(len(history))[-self._release.config.model.max_events :]
        if len(newest) < 2:
            return [self._catalogue.titles[int(history.items[newest[0]])]] * len(rows)
        whole = self._scorer.batch(self._maker.without(history, None).to(self._vectors.items.device))[0]
        falls = []
        for gone in newest:
            batch = self._maker.without(history, int(gone)).to(self._vectors.items.device)
            falls.append((whole - self._scorer.batch(batch)[0]).cpu().numpy()[rows])
        strongest = newest[np.argmax(np.stack(falls), axis=0)]
        return [self._catalogue.titles[int(history.items[k])] for k in strongest]
