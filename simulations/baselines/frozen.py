"""The base BERT without any training, with popularity: what the texts alone are worth."""

from __future__ import annotations

import numpy as np
import torch

from client.ranking.scorer import FrozenBert
from shared.errors import ConfigError
from shared.model.behaviour import CatalogueVectors
from shared.model.prior import solve
from simulations.baselines.classical import item_counts
from simulations.baselines.closed_forms import noisy_popularity
from simulations.baselines.noise import sum_noise
from simulations.baselines.problem import Budget, Problem, Settings


def frozen_bert(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> FrozenBert:
    """Similarity to the recency-weighted mean of the user's items, plus log popularity (noisy under a budget).

    Settings: ``temperature``, ``popularity_weight``, ``decay``, as `client.ranking.scorer.FrozenBert`.

    Raises
    ------
    ConfigError
        If the problem has no vectors.
    """
    if problem.vectors is None:
        raise ConfigError("Expected vectors of the catalogue, got vectors=None: frozen_bert reads text.")
    both = torch.from_numpy(np.ascontiguousarray(problem.vectors, dtype=np.float32))  # (I, 2, H)
    if budget is None:
        mass, stddev = item_counts(problem.histories, problem.items).astype(np.float64), 0.0
    else:
        mass = noisy_popularity(problem, budget, seed)
        stddev = sum_noise(problem, budget) * problem.partners_per_user
    return FrozenBert(
        CatalogueVectors(both[:, 0], both[:, 1]),
        solve("popularity", mass, problem.items, stddev).popularity,
        temperature=settings["temperature"],
        popularity_weight=settings["popularity_weight"],
        decay=settings["decay"],
    )
