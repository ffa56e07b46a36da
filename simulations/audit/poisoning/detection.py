"""Free riders: can a coordinator tell who sends noise alone? Where it sees single sums; under masks it sees none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulations.audit.poisoning.federation import Seen


def likeness(seen: Iterable[Seen], stage: str, partners: int) -> NDArray[np.float64] | None:
    """Mean over the rounds of a stage of the cosine of each partner's sum with the sum of the others, ``(partners,)``.

    None where nothing was seen: under masks.
    """
    rounds: dict[int, list[Seen]] = {}
    for one in seen:
        if one.stage == stage:
            rounds.setdefault(one.round, []).append(one)
    if not rounds:
        return None
    found = np.zeros((len(rounds), partners))
    for row, each in zip(found, rounds.values(), strict=True):
        total = np.sum([one.values for one in each], axis=0, dtype=np.float64)
        for one in each:
            own = one.values.astype(np.float64)
            row[one.partition] = _cosine(own, total - own)
    return np.asarray(found.mean(axis=0))


def detection_auc(scores: NDArray[np.float64], riders: Sequence[int]) -> float:
    """Chance that a free rider's score is below an honest partner's; 0.5 is guessing, equals count half."""
    riding = np.isin(np.arange(len(scores)), riders)
    below = scores[riding][:, None] - scores[~riding][None, :]
    return float(np.mean((below < 0) + 0.5 * (below == 0)))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0
