"""The model of one process, with the catalogue that it ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from client.batches import PADDING
from client.data.text_cache import TextCache
from client.training import PriorLogits, UserGradients
from shared.config import ModelConfig, PriorConfig
from shared.model.behaviour import BehaviourStage, CatalogueVectors
from shared.model.candidates import MOST_EXACT, draw_candidates
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import PriorScorer, mask_seen
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.schema import Catalogue


@dataclass(frozen=True)
class Workbench:
    """A behaviour stage with Opacus' hooks, and what it reads; simulated partners take turns at one."""

    model: BehaviourStage
    gradients: UserGradients
    catalogue: CatalogueVectors
    text: TextStage
    _stand_alone: dict[object, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def bf16_stands_alone(self, prior: CollaborativePrior, logits: PriorLogits) -> bool:
        """Whether noise may hide users whose gradients are computed in bfloat16 here, on top of a prior's `logits`.

        Tried out once a process for priors of the same shapes: what it hangs on are the sizes of matrix products.
        """
        shapes = tuple((name, array.shape) for name, array in prior.arrays().items())
        if shapes not in self._stand_alone:
            widths = {min(PADDING, self.model.config.max_events), self.model.config.max_events}
            self._stand_alone[shapes] = self.gradients.rows_stand_alone(self.catalogue, widths, logits)
        return self._stand_alone[shapes]

    def prior_logits(
        self, prior: CollaborativePrior, config: PriorConfig, round_number: int | None = None
    ) -> PriorLogits:
        """The prior's logits of a batch, without what was met before: what the behaviour stage is trained on top of.

        With `round_number` those of a large catalogue are of the round's candidates (`shared.model.candidates`).
        """
        scorer = PriorScorer(prior, config, self.catalogue.items)
        if round_number is None or len(self.catalogue.items) <= MOST_EXACT:
            return lambda batch: mask_seen(scorer.all_positions(batch.items), batch.items)
        drawn = draw_candidates(scorer.popularity, str(round_number).encode())
        return lambda batch: scorer.of_candidates(batch.items, batch.targets, drawn)


_open: dict[tuple[object, ...], Workbench] = {}


def open_workbench(model: ModelConfig, seed: int, catalogue: Catalogue, cache: Path, device: torch.device) -> Workbench:
    """The workbench of a model and a catalogue: the last one opened is kept, as loading BERT takes a while.

    Raises
    ------
    ConfigError
        If the base model is not there.
    """
    key = (model, seed, catalogue.digest, cache, device)
    if key not in _open:
        _open.clear()
        _open[key] = _build(model, seed, catalogue, cache, device)
    return _open[key]


def _build(model: ModelConfig, seed: int, catalogue: Catalogue, cache: Path, device: torch.device) -> Workbench:
    base = find_base(model.base)
    stage = BehaviourStage(base, model, n_items=len(catalogue), seed=seed).to(device)
    text = TextStage(base, adapted_layers=model.adapted_layers, max_tokens=model.max_tokens, device=device)
    vectors = catalogue_vectors(text, catalogue, TextCache(cache), stage.width).to(device)
    return Workbench(stage, UserGradients(stage), vectors, text)


def catalogue_vectors(text: TextStage, catalogue: Catalogue, cache: TextCache, width: int) -> CatalogueVectors:
    """Vectors of all items, from the cache or the frozen BERT."""
    vectors = cache.vectors(text, catalogue.passages(), width=width).astype(np.float32)
    both = torch.from_numpy(vectors)  # (I, 2, H)
    return CatalogueVectors(both[:, 0].contiguous(), both[:, 1].contiguous())
