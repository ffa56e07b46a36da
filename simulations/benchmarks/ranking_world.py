"""What the ranking benchmark ranks: a shop of any size with a release of the shape that a federation gives for it.

What is measured is time, so that nothing has to be learned: parameters are drawn, not trained, and item vectors are
drawn in clusters, as texts of one category lie. Everything else is what a partner has: the same files, the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from client.data.cleaning import clean
from client.data.ingest import RawData, read, write
from client.ranking.index import CatalogueIndex
from shared.adapter import save_release
from shared.catalogue import build_catalogue
from shared.config import RunConfig
from shared.model.behaviour import BehaviourStage, trainable_parameters
from shared.model.prior import SKETCH_RANK, CollaborativePrior, statistics_size
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.privacy.lattice import LARGEST_VECTOR

EVENTS = 50
CLUSTERS = 2000
SPREAD = 0.7
"""Of items around the centre of their cluster, whose norm is 1."""
SEED = 5


def make_world(folder: Path, items: int, users: int) -> Path:
    """A run folder's adapter, the shop's data and the index of its catalogue, in `folder`; what is there is kept.

    Returns
    -------
    Path
        `folder`, with ``adapter/``, ``data/`` and ``state/index/``.
    """
    done = folder / "done"
    if done.exists():
        return folder
    write(_data(items, users), folder / "data")
    catalogue = build_catalogue(clean(read(folder / "data"))[0].items)
    config = RunConfig()
    model = BehaviourStage(find_base(config.model.base), config.model, n_items=items)
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    privacy = {"mode": "distributed", "epsilon": 8.0, "delta": 1e-5}
    save_release(
        folder / "adapter", model, _prior(items), config, catalogue_digest=catalogue.digest, privacy=privacy, version=1
    )
    recipe = TextStage.of(config.model).recipe(items=True)
    CatalogueIndex.build(folder / "state" / "index", catalogue, recipe, Drawn(model.width))
    done.touch()
    return folder


class Drawn:
    """Item vectors that are drawn instead of read: clusters on the unit sphere."""

    def __init__(self, width: int) -> None:
        self._random = np.random.default_rng(SEED)
        centres = self._random.normal(size=(CLUSTERS, width))
        self._centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def __call__(self, passages: Sequence[str]) -> NDArray[np.float16]:
        """Shape ``(n, 2, H)``."""
        own = self._random.integers(0, CLUSTERS, len(passages))
        noise = self._random.normal(size=(len(passages), self._centres.shape[1]))
        vectors = self._centres[own] + SPREAD / np.sqrt(self._centres.shape[1]) * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.stack([vectors, vectors], axis=1).astype(np.float16)


def user_id(number: int) -> str:
    """The name of a user of the shop."""
    return f"user-{number:06d}"


def _data(items: int, users: int) -> RawData:
    random = np.random.default_rng(SEED)
    names = [f"item-{k:07d}" for k in range(items)]
    met = random.integers(0, items, users * EVENTS)
    interactions = pl.DataFrame(
        {
            "user_id": [user_id(k) for k in range(users) for _ in range(EVENTS)],
            "item_id": [names[k] for k in met],
            "timestamp": 1_700_000_000 + np.arange(users * EVENTS),
            "event": "purchase",
            "rating": pl.Series([None] * (users * EVENTS), dtype=pl.Float64),
            "review": "",
        }
    )
    goods = pl.DataFrame(
        {
            "item_id": names,
            "title": [f"Thing {k}" for k in range(items)],
            "text": "",
            "categories": [f"Category {k % 100}" for k in range(items)],
        }
    )
    return RawData("shop", interactions, goods)


def _prior(items: int) -> CollaborativePrior:
    """Of the largest kind that a sum has room for: two factors, or popularity alone."""
    random = np.random.default_rng(SEED)
    popularity, texts = random.normal(size=items).astype(np.float32), np.array([7.0, 0.0], dtype=np.float32)
    if statistics_size("sketch", items) > LARGEST_VECTOR:
        return CollaborativePrior(popularity, text_weights=texts)
    left = random.normal(size=(items, SKETCH_RANK)).astype(np.float32)
    unseen = np.zeros(items, dtype=np.float32)
    return CollaborativePrior(popularity, left, np.ascontiguousarray(left.T), unseen, texts)
