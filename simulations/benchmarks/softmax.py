"""``veilrec bench softmax``: private training over large catalogues, with the softmax over all items or over a sample.

The catalogue is drawn, not read: item vectors in clusters, popularity by Zipf's law. A large catalogue's prior is what
its federation sums, popularity; likeness by text stands beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulations.benchmarks.turns import Contender, Turn, take_turns
from simulations.presets import preset

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from client.workbench import Workbench
    from shared.config import RunConfig
    from shared.model.behaviour import EventBatch
    from shared.model.prior import CollaborativePrior

FEW = 4
"""Users of a batch of the exact sum, which is made once and is not timed: memory is that of the turns."""
ALL, SAMPLED = "all items", "sample"
Row = dict[str, Any]


def benchmark(sizes: Sequence[int], users: int, repeat: int, told: Callable[[str], None] = lambda _: None) -> list[Row]:
    """One row a size and softmax: users a second, memory, and how near the clipped sum is to the exact one.

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
    """A turn is one private step over the users: with all items, or with the candidates of another round."""
    import time

    import numpy as np

    from shared.model.weights import has_fast_bf16

    config = preset(users=50_000, items=items, partners=8, seed=0, marketplace=False, rating_max=5.0, settings={})
    bench, prior = drawn_bench(items, config)
    histories = drawn_histories(items, users, config.model.max_events)
    bf16 = config.training.precision == "auto" and has_fast_bf16("cpu")

    def step(batches: Sequence[EventBatch], round_number: int | None) -> NDArray[np.float64]:
        logits = bench.prior_logits(prior, config.prior, round_number)
        return bench.gradients.clipped_sum(batches, bench.catalogue, logits, config.privacy.clip_norm, bf16=bf16).values

    whole, rounds = [batch_of(histories)], itertools.count()
    exact = step([batch_of(histories[start : start + FEW]) for start in range(0, users, FEW)], None)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        found = step(whole, next(rounds) if way == SAMPLED else None)
        seconds = time.perf_counter() - began
        cosine = found @ exact / (np.linalg.norm(found) * np.linalg.norm(exact))
        return {"users_per_s": users / seconds, "cosine": float(cosine)}

    return turn


def drawn_bench(items: int, config: RunConfig) -> tuple[Workbench, CollaborativePrior]:
    """A model over item vectors in clusters, and the prior of a catalogue too large for more than popularity."""
    import numpy as np
    import torch

    from client.training import UserGradients
    from client.workbench import Workbench
    from shared.model.behaviour import BehaviourStage, CatalogueVectors
    from shared.model.prior import solve
    from shared.model.text import TextStage
    from shared.model.weights import find_base
    from simulations.benchmarks.ranking_world import Drawn

    model = BehaviourStage(find_base(config.model.base), config.model, n_items=items, seed=0)
    vectors = torch.from_numpy(Drawn(model.width)([""] * items)[:, 0].astype(np.float32))
    bench = Workbench(model, UserGradients(model), CatalogueVectors(vectors, vectors), TextStage.of(config.model))
    return bench, solve("popularity", 1.0 / np.arange(1, items + 1), items, 1e-6, population=config.privacy.population)


def drawn_histories(items: int, users: int, events: int) -> torch.Tensor:
    """Items by Zipf's law, none twice, since targets are new items: ``(users, events + 1)``."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    drawn = rng.gumbel(size=(users, items)) - np.log(np.arange(1, items + 1))
    return torch.from_numpy(rng.permuted(np.argsort(-drawn, axis=1)[:, : events + 1], axis=1))


def batch_of(histories: torch.Tensor) -> EventBatch:
    """A user a row, whose every event has the next item for a target."""
    import torch

    from shared.model.behaviour import EventBatch

    items, targets = histories[:, :-1], histories[:, 1:]
    codes, lengths = torch.zeros_like(items), torch.full((len(items),), items.shape[1])
    return EventBatch(items, codes, codes, lengths, None, targets)
