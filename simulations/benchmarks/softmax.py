"""``veilrec bench softmax``: private training over large catalogues, with the softmax over all items or over a sample.

The catalogue is drawn, not read: item vectors in clusters, popularity by Zipf's law. A large catalogue's prior is what
its federation sums, popularity; likeness by text stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from simulations.benchmarks.turns import Contender, Turn, take_turns
from simulations.presets import preset

if TYPE_CHECKING:
    import torch

    from client.workbench import Workbench
    from shared.config import RunConfig
    from shared.model.behaviour import EventBatch
    from shared.model.candidates import SampledPrior
    from shared.model.prior import CollaborativePrior

CLUSTERS, SPREAD = 2_000, 0.5
FEW = 4
ALL, SAMPLED = "all items", "sample"
Row = dict[str, Any]


def benchmark(sizes: Sequence[int], users: int, repeat: int, told: Callable[[str], None] = lambda _: None) -> list[Row]:
    """One row a size and softmax: users a second, memory, and how near the sum of users' gradients is to the exact one.

    Parameters
    ----------
    sizes : sequence of int
        Items of the catalogues.
    users : int
        Of one batch.
    repeat : int
        Turns of each; the median is told.
    """
    rows = []
    for items in sizes:
        contenders: dict[str, Contender] = {way: partial(turns, items, users, way) for way in (ALL, SAMPLED)}
        measured = take_turns(contenders, repeat, told)
        for way, figures in measured.items():
            rows.append(
                {
                    "items": items,
                    "softmax": way,
                    "users_per_s": figures.median("users_per_s"),
                    "peak_rss_mb": figures.peak_rss_mb,
                    "speed_up": figures.median("users_per_s") / measured[ALL].median("users_per_s"),
                    "cosine": figures.median("cosine"),
                }
            )
    return rows


def turns(items: int, users: int, way: str) -> Turn:
    """A turn is one private step over the users: with all items, or with candidates, other ones every turn."""
    import time

    import torch
    import torch.nn.functional as F

    config = _config(items)
    bench, prior, batch = drawn_world(items, users, config)
    rounds = iter(range(1_000_000))
    few = [batch_of(batch, start, start + FEW) for start in range(0, users, FEW)]
    exact = torch.stack([_gradients(bench, prior, config, some, None).sum(0) for some in few]).sum(0)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        found = _gradients(bench, prior, config, batch, next(rounds) if way == SAMPLED else None).sum(0)
        seconds = time.perf_counter() - began
        return {"users_per_s": users / seconds, "cosine": float(F.cosine_similarity(found, exact, dim=0))}

    return turn


def drawn_world(items: int, users: int, config: RunConfig) -> tuple[Workbench, CollaborativePrior, EventBatch]:
    """A model, the prior of a large catalogue, and users with full histories of items drawn by popularity."""
    import numpy as np
    import torch

    from client.training import UserGradients
    from client.workbench import Workbench
    from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch
    from shared.model.prior import solve
    from shared.model.text import TextStage
    from shared.model.weights import find_base

    rng, T = np.random.default_rng(0), config.model.max_events
    model = BehaviourStage(find_base(config.model.base), config.model, n_items=items, seed=0)
    centres = rng.normal(size=(CLUSTERS, model.width))
    vectors = centres[rng.integers(CLUSTERS, size=items)] + SPREAD * rng.normal(size=(items, model.width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    catalogue = CatalogueVectors(torch.from_numpy(vectors), torch.from_numpy(vectors))
    votes = 1.0 / np.arange(1, items + 1)
    drawn = np.log(votes) + rng.gumbel(size=(users, items))  # by popularity, none twice: targets are new items
    met = torch.from_numpy(rng.permuted(np.argsort(-drawn, axis=1)[:, : T + 1], axis=1))
    codes = torch.zeros(users, T, dtype=torch.long)
    batch = EventBatch(met[:, :-1], codes, codes, torch.full((users,), T), None, met[:, 1:])
    text = TextStage.of(config.model, torch.device("cpu"))
    bench = Workbench(model, UserGradients(model), catalogue, text)
    return bench, solve("popularity", votes * users, items, 1e-3, population=users), batch


def batch_of(batch: EventBatch, start: int, stop: int) -> EventBatch:
    """Some users of a batch without texts."""
    rows = slice(start, stop)
    return replace(
        batch,
        items=batch.items[rows],
        events=batch.events[rows],
        ratings=batch.ratings[rows],
        lengths=batch.lengths[rows],
        targets=batch.targets[rows],
    )


def _gradients(
    bench: Workbench, prior: CollaborativePrior, config: RunConfig, batch: EventBatch, number: int | None
) -> torch.Tensor:
    """Users' gradients on candidates of a round, or on all items, as production makes them: ``(B, P)``."""
    import torch

    from shared.model.candidates import draw_candidates
    from shared.model.prior_scores import PriorScorer, mask_seen
    from shared.model.weights import has_fast_bf16

    scorer, bf16 = PriorScorer(prior, config.prior, bench.catalogue.items), has_fast_bf16("cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if number is None:
            logits: torch.Tensor | SampledPrior = mask_seen(scorer.all_positions(batch.items), batch.items)
        else:
            drawn = draw_candidates(scorer.popularity, str(number).encode())
            logits = scorer.of_candidates(batch.items, batch.targets, drawn)
    return bench.gradients.of(batch, bench.catalogue, logits, bf16=bf16)[0]


def _config(items: int) -> RunConfig:
    """The preset of a private federation."""
    return preset(users=50_000, items=items, partners=8, seed=0, marketplace=False, rating_max=5.0, settings={})
