"""A shop of 36 people and 24 items for the tests of the quality benchmark, and results without any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from client.data.ingest import RawData, write
from simulations.benchmarks.quality.cache import Result
from simulations.benchmarks.quality.study import Cell, Study

PARTNERS = 3
TINY: dict[str, Any] = {
    "model": {"adapted_layers": 1, "lora_rank": 2, "lora_alpha": 4, "head_rank": 2, "max_events": 8},
    "training": {"rounds": 2, "sampling_rate": 0.5},
}


def tiny_shop(seed: int = 0) -> RawData:
    """Everyone has seven events at four moments, walking on through a ring of items; two categories."""
    rng = np.random.default_rng(seed)
    starts, steps = rng.integers(24, size=36), rng.integers(1, 4, size=(36, 7)).cumsum(axis=1)
    items = (starts[:, None] + steps) % 24
    rows = pl.DataFrame(
        {
            "user_id": [f"u{user:02d}" for user in range(36) for _ in range(7)],
            "item_id": [f"i{item:02d}" for item in items.ravel()],
            "timestamp": [1_000_000 + place // 2 for _ in range(36) for place in range(7)],
        }
    ).with_columns(event=pl.lit("purchase"), rating=pl.lit(4.0), review=pl.lit(""))
    names = [f"i{item:02d}" for item in range(24)]
    catalogue = {
        "item_id": names,
        "title": [f"thing {name}" for name in names],
        "text": [""] * 24,
        "categories": ["red" if item % 2 else "blue" for item in range(24)],
    }
    return RawData("shop", rows, pl.DataFrame(catalogue))


def shop_folder(folder: Path) -> Path:
    """The shop in the parquet form, in a folder of its name."""
    write(tiny_shop(), folder / "shop")
    return folder / "shop"


def tiny_study(shop: Path, methods: Sequence[str], **asked: Any) -> Study:
    """A study of the shop over three partners, one seed, no privacy, and the smallest model."""
    given: dict[str, Any] = {"partners": PARTNERS, "seeds": 1, "settings": TINY, "tuned": False}
    return Study(data=(str(shop),), methods=tuple(methods), **(given | asked))


def result(
    method: str,
    ranks: Sequence[float],
    *,
    seed: int = 0,
    partition: str = "pooled",
    epsilon: float | None = None,
    users: Sequence[int] | None = None,
    code: str = "one",
    **figures: float,
) -> Result:
    """A finished cell with these ranks."""
    cell = Cell("shop", partition, PARTNERS, method, epsilon, None if epsilon is None else 1e-6, seed)
    who = np.arange(len(ranks)) if users is None else np.array(users)
    metrics = {"ndcg@10": 0.1, "hr@10": 0.2, "mrr": 0.1, "coverage@10": 0.5} | figures
    targets = np.zeros(len(ranks), dtype=np.int32)
    return Result(cell, metrics, {}, 1.0, code, who.astype(np.uint64), np.array(ranks, dtype=np.float64), targets)
