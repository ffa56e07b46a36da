"""Reading users out of one update: four attacks of a coordinator that knows model, catalogue and plan.

Every attack gives a score for each candidate, an item of the public catalogue or a user of whom it holds a copy; higher
means: rather in the update. None of them needs more than linear algebra, so that what they read is a lower bound of
what an update tells.

Sources: the row space of a first layer's gradient is spanned by its inputs (Petrov et al., "DAGER: Exact Gradient
Inversion for Large Language Models", NeurIPS 2024); an update can be inverted by what other users' updates teach (Wu
et al., "Learning to Invert", UAI 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.model.behaviour import BehaviourStage, CatalogueVectors, trainable_parameters

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]
Finds = Literal["items", "users"]
FIRST_MAPS = ("query", "key", "value")
"""Linear maps that read the events themselves, in the first adapted layer."""
RELATIVE_RIDGE = 1e-3
"""Of the learned attack, in mean squared lengths of an update: keeps it from fitting what other users have alone."""
NEARLY_INSIDE = 1e-4
"""Squared sine of the angle to the span below which candidates are not told apart."""


class Attack(Protocol):
    """Scores candidates by one update, of shape (P,), of `users` users under noise of standard deviation `stddev`."""

    name: str
    finds: Finds

    def score(self, update: Floats, users: int, stddev: float) -> Floats:
        """Scores, shape (candidates,)."""
        ...


class Structure:
    """What the places of the gradient say: LoRA's inputs, the head's outputs, and rows of item tables.

    - The gradient of a first LoRA matrix A is ``sum_t (B^T g_t) x_t^T``: its rows lie in the span of the events' text
      vectors. An item is scored by how little of its text vector sticks out of that span (nothing while B = 0).
    - The gradient of the head's second map is a sum of ``sum_i (p_i - y_i) e_i``: its columns are mixed of item
      vectors, most of all of those that came next. An item is scored by its weight in the mix, by least squares.
    - A table with a row an item has a gradient in the rows of the user's items.

    Each part that says anything is standardised over the catalogue; the score is their sum.
    """

    name: str = "structure"
    finds: Finds = "items"

    def __init__(self, model: BehaviourStage, catalogue: CatalogueVectors) -> None:
        self._places: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for name, parameter in trainable_parameters(model).items():
            self._places[name] = slice(start, start + parameter.numel()), tuple(parameter.shape)
            start += parameter.numel()
        texts = catalogue.texts.double().cpu().numpy()  # (I, H)
        self._texts = texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-12)
        self._unmix = np.linalg.pinv(catalogue.items.double().cpu().numpy().T)  # (I, H)

    def score(self, update: Floats, users: int, stddev: float) -> Floats:
        """Scores of all items, shape (I,)."""
        parts = [*self._inputs(update), *self._outputs(update), *self._tables(update)]
        spreads = [float(part.std()) for part in parts]
        told = [(part - part.mean()) / spread for part, spread in zip(parts, spreads, strict=True) if spread > 0]
        return np.sum(told, axis=0) if told else np.zeros(len(self._texts))

    def _inputs(self, update: Floats) -> list[Floats]:
        names = [f"layers.0.attention.self.{which}.lora_A.default.weight" for which in FIRST_MAPS]
        rows = [self._part(update, name) for name in names if name in self._places]
        if not rows or not np.any(together := np.concatenate(rows)):
            return []
        _, sizes, span = np.linalg.svd(together, full_matrices=False)  # (k, H)
        inside = np.square(self._texts @ span[sizes > 1e-7 * sizes[0]].T).sum(axis=1)
        return [-np.log(np.maximum(1.0 - inside, 0.0) + NEARLY_INSIDE)]

    def _outputs(self, update: Floats) -> list[Floats]:
        if "head.up.weight" not in self._places:
            return []
        weights = self._unmix @ self._part(update, "head.up.weight")  # (I, head_rank)
        return [np.linalg.norm(weights, axis=1)]

    def _tables(self, update: Floats) -> list[Floats]:
        if "residuals.factors.weight" not in self._places:
            return []
        return [np.linalg.norm(self._part(update, "residuals.factors.weight"), axis=1)]

    def _part(self, update: Floats, name: str) -> Floats:
        place, shape = self._places[name]
        return update[place].reshape(shape)


class Learned:
    """The best linear guess of who has which item, learned from the updates of users that the attacker knows.

    Ridge regression of items on clipped gradients, in its dual form; the ridge is the noise of the update, which the
    public plan tells. Scores are in standard deviations of each item, so that popularity alone says nothing.

    Parameters
    ----------
    shadows : (N, P) float32
        Clipped gradients of known users.
    items : (N, I) bool
        Their items.
    """

    name: str = "learned"
    finds: Finds = "items"

    def __init__(self, shadows: NDArray[np.float32], items: Truth) -> None:
        self._shadows = shadows
        self._mean = shadows.mean(axis=0, dtype=np.float64).astype(np.float32)
        gram = (shadows @ shadows.T).astype(np.float64)
        centre = np.eye(len(shadows)) - 1.0 / len(shadows)
        self._values, self._vectors = np.linalg.eigh(centre @ gram @ centre)
        labels = items.astype(np.float64)
        self._labels = (labels - labels.mean(axis=0)) / (labels.std(axis=0) + 1e-3)

    def score(self, update: Floats, users: int, stddev: float) -> Floats:
        """Scores of all items, shape (I,)."""
        like = (self._shadows @ (update.astype(np.float32) - users * self._mean)).astype(np.float64)  # (N,)
        like -= like.mean()
        count = len(self._shadows)
        ridge = count * stddev**2 / users + RELATIVE_RIDGE * max(float(self._values.mean()), 1e-30)
        weights = self._vectors @ ((self._vectors.T @ like) / (np.maximum(self._values, 0.0) + ridge))
        return np.asarray(self._labels.T @ weights, dtype=np.float64)


class Matching:
    """Whose gradient points along the update: the matched filter of one who holds copies of histories.

    Parameters
    ----------
    candidates : (M, P) float32
        Clipped gradients of the candidates.
    mean : (P,) float32
        Of known users: what all have in common tells nobody from another.
    """

    name: str = "matching"
    finds: Finds = "users"

    def __init__(self, candidates: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
        own = candidates - mean
        self._own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
        self._mean = mean

    def score(self, update: Floats, users: int, stddev: float) -> Floats:
        """Scores of all candidates, shape (M,)."""
        along = self._own @ (update.astype(np.float32) - users * self._mean)
        return np.asarray(along, dtype=np.float64)


class Masses:
    """What the prior's sum holds of every item by itself: the diagonal of the co-occurrences, or its votes.

    Parameters
    ----------
    kind : str
        What is summed (`shared.model.prior.effective_kind`).
    n_items : int
    """

    name: str = "masses"
    finds: Finds = "items"

    def __init__(self, kind: str, n_items: int) -> None:
        votes = kind == "popularity" or "sketch" in kind
        # Row i of the packed upper triangle begins with the diagonal and has n - i entries.
        steps = np.arange(n_items)
        self._places = steps if votes else steps * n_items - steps * (steps - 1) // 2

    def score(self, update: Floats, users: int, stddev: float) -> Floats:
        """Scores of all items, shape (I,)."""
        return update[self._places]


def areas(scores: Floats, truth: Truth) -> Floats:
    """How well each update's scores tell each group's truth: AUC, shape (groups, groups), own ones on the diagonal.

    Parameters
    ----------
    scores : (G, M) float64
    truth : (G, M) bool
        No row all true or all false.
    """
    order = scores.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable") + 1.0
    # Ties count half: where scores are few values, midranks.
    for row, values in enumerate(scores):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < len(values):
            ends = counts.cumsum()
            order[row] = (ends - (counts - 1) / 2.0)[inverse]
    hits = truth.sum(axis=1).astype(np.float64)  # (G,)
    misses = truth.shape[1] - hits
    return np.asarray((order @ truth.T - hits * (hits + 1) / 2) / (hits * misses), dtype=np.float64)


def p_value(matrix: Floats, seed: int, draws: int = 99_999) -> float:
    """Chance that scores which know nothing fit their own groups as well as these: a permutation test.

    Updates that tell nothing of their group fit any group alike, whatever all groups have in common. Exact for
    any scores; at least ``1 / (draws + 1)``.

    Parameters
    ----------
    matrix : (G, G) float64
        How well the scores of each update fit each group.
    seed : int
        Of the orders that groups are tried in.
    draws : int
    """
    groups = len(matrix)
    if groups < 2:
        return 1.0
    others = matrix[np.arange(groups), _orders(groups, draws, seed)].sum(axis=1)
    own = float(np.trace(matrix))
    return float((1 + np.count_nonzero(others >= own - 1e-12 * math.fabs(own))) / (draws + 1))


@lru_cache(maxsize=2)
def _orders(groups: int, draws: int, seed: int) -> NDArray[np.int8]:
    """Random orders of the groups, (draws, groups); the same for all tests of a rung."""
    rng = np.random.default_rng([seed, 62])
    return rng.permuted(np.broadcast_to(np.arange(groups, dtype=np.int8), (draws, groups)), axis=1)


def found_among_first(scores: Floats, truth: Truth, first: int | None) -> tuple[float, float]:
    """Share of the best scored that are true: of each group's own, and of the other groups' (chance).

    With ``first=None`` as many as there are true ones, which makes the share both recall and precision.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    counts = truth.sum(axis=1)
    own: list[float] = []
    other: list[float] = []
    for group, best in enumerate(order):
        for of in range(len(truth)):
            share = float(truth[of, best[: first or counts[of]]].mean())
            (own if of == group else other).append(share)
    return float(np.mean(own)), float(np.mean(other)) if other else math.nan


def grouped(pool: int, users: int, groups: int, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
    """Groups of users drawn without replacement from a pool; disjoint as long as the pool lasts."""
    if users * groups <= pool:
        return np.split(rng.permutation(pool)[: users * groups], groups)
    return [rng.choice(pool, users, replace=False) for _ in range(groups)]
