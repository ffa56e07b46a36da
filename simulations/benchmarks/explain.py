"""Are explanations true of the model? Delete what they name, and see how far the score falls.

The deletion test (W. Samek et al., "Evaluating the visualization of what a deep neural network has learned", IEEE
TNNLS 28(11), 2017): of each user's best items, the things of the history that a method puts first are taken out
together, the items are scored again, and the fall is compared with that after as many things taken at random. Scores
are against the catalogue's mean (`client.ranking.explain`): a fall that all items share is none.

Effects shuffled among the things of a history must fail the test that the true ones pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.data.cleaning import clean
from client.data.histories import build_histories
from client.data.ingest import RawData, data_home
from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.ranking.explain import Effects, Read, ScoreParts, alone, missed
from client.ranking.rank import data_of
from client.workbench import catalogue_vectors
from shared.adapter import load_release
from shared.catalogue import build_catalogue
from shared.errors import AdapterMismatchError, EmptyHistoryError
from shared.model.behaviour import EventBatch
from shared.model.prior_scores import PriorScorer
from shared.model.text import TextStage
from shared.model.weights import choose_device
from shared.schema import Histories
from simulations.evaluation import bootstrap

LEAST_THINGS = 5
"""Users whose history holds fewer different things are not asked: a random set is too often the one named."""
BAR = 2.0
"""A method is true enough if what it names counts for this many times what is taken at random."""
STEPS = 16
"""Points of the path that gradients are integrated along."""
Sizes = tuple[float, ...]
SIZES: Sizes = (1, 3, 0.2)
"""How much is deleted: things, or below 1 a share of the history."""

Attribution = Callable[[ScoreParts, Read, Sequence[int], np.random.Generator], Effects]
"""Effects of every thing of a history on ranked items, shape ``(U, K)``."""


def integrated_gradients(parts: ScoreParts, read: Read, rows: Sequence[int], rng: np.random.Generator) -> Effects:
    """What leaving out says of the prior, plus, of BERT, gradients along the way from events without any content.

    Source: M. Sundararajan, A. Taly and Q. Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1.
    """
    effects = missed(ScoreParts(None, parts.prior, parts.catalogue), read, rows)
    if parts.model is None:
        return effects
    one, model, catalogue = read.batch, parts.model, parts.catalogue
    content = catalogue.texts[one.items.clamp(min=0)]  # (1, T, H)
    if model.residuals is not None:
        content = content + model.residuals.inputs(one.items.clamp(min=0))
    content = content * (one.items >= 0).unsqueeze(-1)
    own = torch.zeros_like(content) if one.texts is None else one.texts
    ways = ((torch.arange(STEPS, device=content.device) + 0.5) / STEPS)[:, None].repeat(1, content.shape[1])
    ways.requires_grad_(True)  # (S, T): how much of each event is there
    texts = ways.unsqueeze(-1) * (content + own) - content
    items, events, ratings = (x.expand(STEPS, -1) for x in (one.items, one.events, one.ratings))
    batch = EventBatch(items, events, ratings, one.lengths.expand(STEPS), texts, items)
    scores = model.score(model.newest(batch, catalogue), catalogue)
    for k, row in enumerate(rows):
        against_mean = (scores[:, row] - scores.mean(1)).sum()
        gradient = torch.autograd.grad(against_mean, ways, retain_graph=True)[0].mean(0)  # (T,)
        effects[:, k] += np.bincount(read.unit, gradient.cpu().numpy(), minlength=read.units)
    return effects


def _shuffled(parts: ScoreParts, read: Read, rows: Sequence[int], rng: np.random.Generator) -> Effects:
    return rng.permutation(missed(parts, read, rows))


def _newest(parts: ScoreParts, read: Read, rows: Sequence[int], rng: np.random.Generator) -> Effects:
    last = np.array([np.flatnonzero(read.unit == unit).max() for unit in range(read.units)], dtype=np.float64)
    return np.repeat(last[:, None], len(rows), axis=1)


METHODS: dict[str, Attribution] = {
    "leave one out": lambda parts, read, rows, rng: missed(parts, read, rows),
    "alone": lambda parts, read, rows, rng: alone(parts, read, rows),
    "mean of both": lambda parts, read, rows, rng: (missed(parts, read, rows) + alone(parts, read, rows)) / 2,
    "integrated gradients": integrated_gradients,
    "newest first": _newest,
    "shuffled": _shuffled,
}


@dataclass(frozen=True)
class Asked:
    """Whose explanations are tested: `places` of users in `histories`, by `parts` of a scorer."""

    parts: ScoreParts
    maker: BatchMaker
    histories: Histories
    places: NDArray[np.int64]

    def users(self, items: int) -> Iterator[tuple[Read, list[int]]]:
        """What is read of each user, with the best `items` rows that the user has not met."""
        for place in self.places:
            history = self.histories[int(place)]
            read = Read.of(self.maker, history, self.parts.catalogue.items.device)
            everything = list(range(len(self.parts.catalogue.items)))
            scores = self.parts(read.batch, everything)[0]
            scores[history.items] = -np.inf
            yield read, [int(row) for row in np.argsort(-scores, kind="stable")[:items] if np.isfinite(scores[row])]


def deletion_test(
    run: Path,
    data: str,
    *,
    users: int = 100,
    items: int = 3,
    sets: int = 30,
    sizes: Sizes = SIZES,
    seed: int = 0,
    device: str = "auto",
    methods: dict[str, Attribution] = METHODS,
) -> list[dict[str, Any]]:
    """Test explanations of a run's adapter on users drawn at random.

    Parameters
    ----------
    run : Path
        A run folder.
    data : str
        As `client.ranking.rank.data_of` takes it.
    users, items, sets : int
        How many users; best items of each; random sets for each user and size.
    sizes : tuple of float
        See `SIZES`.

    Returns
    -------
    list of dict
        One row for each method and size, see `falls`.

    Raises
    ------
    EmptyHistoryError
        If nobody has met enough things.
    """
    return falls(asked(run / "adapter", data_of(run, data), users, seed, device), items, sets, sizes, seed, methods)


def asked(adapter: Path, data: RawData, users: int, seed: int, device: str = "auto") -> Asked:
    """Users of the data who have met enough, under a verified adapter."""
    release, cleaned = load_release(adapter), clean(data)[0]
    catalogue = build_catalogue(cleaned.items)
    if release.manifest["catalogue_sha256"] != catalogue.digest:
        raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
    # A key that the seed decides: the same users are drawn each time.
    key, model = PseudonymKey.derive(seed), release.config.model
    histories = build_histories(cleaned.interactions, catalogue, key, max_events=model.max_history, tie_seed=0)
    text = TextStage.of(model, choose_device(device))
    cache, width = TextCache(data_home().parent / "cache" / "text-vectors.sqlite"), release.model.width
    vectors = catalogue_vectors(text, catalogue, cache, width).to(text.device)
    reviews = cache.vectors(text, histories.review_texts, width=width, items=False)[:, 0]
    prior = PriorScorer(release.prior, release.config.prior, vectors.items)
    parts = ScoreParts(release.model.to(text.device), prior, vectors)
    return Asked(
        parts, BatchMaker(histories, reviews, model), histories, _drawn(histories, users, seed, model.max_events)
    )


def _drawn(histories: Histories, users: int, seed: int, max_events: int) -> NDArray[np.int64]:
    things = np.array([len(np.unique(history.items[-max_events:])) for history in histories])
    return np.random.default_rng(seed).permutation(np.flatnonzero(things >= LEAST_THINGS))[:users]


def falls(
    asked: Asked, items: int, sets: int, sizes: Sizes, seed: int, methods: dict[str, Attribution]
) -> list[dict[str, Any]]:
    """Rows of the test.

    Returns
    -------
    list of dict
        `method`; `deleted` things; `users`; the mean falls `named` and `random` and their `ratio` (none where random
        sets do not make scores fall); `over_bar`, the mean over users of the fall less `BAR` times the random one,
        with its bootstrap interval `ci95`; `true`, whether all of that interval is above 0.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for read, rows in asked.users(items):
        effects = {name: method(asked.parts, read, rows, rng) for name, method in methods.items()}
        for size in sizes:
            n = max(1, round(size * read.units)) if size < 1 else int(size)
            if n >= read.units:
                continue
            by_chance = np.stack([rng.permutation(read.units) < n for _ in range(sets)])  # (sets, U)
            random = float(_falls(asked.parts, read, by_chance, rows).mean())
            for name, effect in effects.items():
                ranks = np.argsort(np.argsort(-effect, axis=0, kind="stable"), axis=0).T  # (K, U)
                named = float(np.diag(_falls(asked.parts, read, ranks < n, rows)).mean())
                found.setdefault((name, size), []).append((named, random))
    if not found:
        raise EmptyHistoryError(f"Expected users who met at least {LEAST_THINGS} different things.")
    return [_row(name, size, np.array(pairs), seed) for (name, size), pairs in found.items()]


def _falls(parts: ScoreParts, read: Read, gone: NDArray[np.bool_], rows: Sequence[int]) -> Effects:
    """How far the scores of `rows` fall without each set of things, ``(N, U)`` to ``(N, K)``."""
    return parts(read.batch, rows) - parts(read.keeping(~gone), rows)


def _row(method: str, size: float, pairs: NDArray[np.float64], seed: int) -> dict[str, Any]:
    named, random = pairs.mean(0)
    over, low, high = bootstrap(pairs[:, 0] - BAR * np.maximum(pairs[:, 1], 0.0), seed)
    return {
        "method": method,
        "deleted": f"{size:.0%}" if size < 1 else f"{size:g}",
        "users": len(pairs),
        "named": float(named),
        "random": float(random),
        "ratio": float(named / random) if random > 0 else None,
        "over_bar": over,
        "ci95": [low, high],
        "true": low > 0,
    }
