"""A tiny BERT, a small shop and its releases, and how the export's ranking is compared with the model's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.data.cleaning import clean
from client.data.histories import build_histories
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.ranking.personal import own_prior
from client.ranking.scorer import ModelScorer
from client.workbench import catalogue_vectors
from shared.adapter import flatten_parameters, load_parameters, load_release, save_release
from shared.catalogue import build_catalogue
from shared.config import ModelConfig, PriorConfig, RunConfig
from shared.model.behaviour import BehaviourStage
from shared.model.prior import CollaborativePrior
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.schema import Catalogue, Histories

WIDTH, LAYERS, ITEMS, TOP = 32, 3, 136, 100
TIE = 1e-4
SECRET = "zanzibarquince"
CONFIGS = {
    "residuals": (ModelConfig(adapted_layers=2, lora_rank=2, lora_alpha=6, item_rank=3, max_events=12), PriorConfig()),
    "sketch": (ModelConfig(adapted_layers=1, lora_rank=2, head_rank=0, max_events=12), PriorConfig(max_items=10)),
}
TEXT_WEIGHTS = np.array([4.0, 0.5], dtype=np.float32)
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Shop:
    """A tiny BERT, a shop that was read, and its releases."""

    data: RawData
    catalogue: Catalogue
    histories: Histories
    base: str
    root: Path

    def adapter(self, name: str) -> Path:
        return self.root / "runs" / name / "adapter"

    def cache(self) -> TextCache:
        return TextCache(self.root / "vectors.sqlite")


def shop_of(data: RawData, base: str, root: Path) -> Shop:
    cleaned = clean(data)[0]
    catalogue, key = build_catalogue(cleaned.items), PseudonymKey.derive(0)
    histories = build_histories(cleaned.interactions, catalogue, key, max_events=1000, tie_seed=0)
    return Shop(data, catalogue, histories, base, root)


def tiny_bert(folder: Path) -> Path:
    """Random weights, the packaged tokenizer."""
    from transformers import BertConfig, BertModel

    packaged = find_base(ModelConfig().base).path
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = BertConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=64,
            initializer_range=0.2,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(packaged / name, folder / name)
    return folder


def release_to(
    shop: Shop, folder: Path, name: str, prior: CollaborativePrior | None = None, *, spread: float = 0.1
) -> None:
    """A release none of whose parameters is what it began as, with a prior of the shop's own sums."""
    model_config, prior_config = CONFIGS[name]
    config = RunConfig(model=model_config.model_copy(update={"base": shop.base}), prior=prior_config, seed=3)
    model = BehaviourStage(find_base(shop.base), config.model, n_items=len(shop.catalogue), seed=3)
    flat = flatten_parameters(model)
    load_parameters(model, flat + np.random.default_rng(0).normal(scale=spread, size=len(flat)).astype(np.float32))
    folder.mkdir(parents=True)
    save_release(
        folder,
        model,
        prior or replace(own_prior(shop.histories, len(shop.catalogue), prior_config), text_weights=TEXT_WEIGHTS),
        config,
        catalogue_digest=shop.catalogue.digest,
        privacy={"mode": "distributed", "epsilon": 7.5, "delta": 1e-5},
        version=4,
    )


def scored(shop: Shop, adapter: Path, ranker: Any, users: NDArray[np.int64]) -> tuple[Scores, Scores]:
    """By the model, and by the export, from the same batches."""
    release = load_release(adapter)
    model, cache = release.config.model, shop.cache()
    stage = TextStage(find_base(shop.base), adapted_layers=model.adapted_layers, max_tokens=model.max_tokens)
    vectors = catalogue_vectors(stage, shop.catalogue, cache, release.model.width)
    reviews = cache.vectors(stage, shop.histories.review_texts, width=release.model.width, items=False)
    maker = BatchMaker(shop.histories, reviews[:, 0], model)
    expected = ModelScorer(release.model, release.prior, release.config.prior, vectors).users(maker, users)
    found = np.empty_like(expected)
    for places, batch in maker.latest(users, 16):
        texts = None if batch.texts is None else batch.texts.numpy()
        arrays = [t.numpy() for t in (batch.items, batch.events, batch.ratings, batch.lengths)]
        found[places] = ranker.scores(*arrays, texts)
    return expected, found


def check_the_same_ranking(expected: Scores, found: Scores) -> None:
    """At every place of the top the same item, or one whose score is the same but for a tie."""
    assert np.isfinite(found).all()
    first, second = (np.argsort(-scores, axis=1, kind="stable")[:, :TOP] for scores in (expected, found))
    at = [np.take_along_axis(expected, rows, axis=1) for rows in (first, second)]
    assert np.abs(at[0] - at[1]).max() <= TIE


def cosines(one: Scores, other: Scores) -> Scores:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)  # those of 16 bits are not quite 1
    return np.asarray(np.sum(one * other, axis=1) / lengths, dtype=np.float32)
