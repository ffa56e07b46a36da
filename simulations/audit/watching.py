"""What an audit sees while partners train: who is in each sum, and what the sum of all others is.

An insider of differential privacy knows everybody but one. So while the installed code trains, each gradient of a real
user is clipped and added up once more here, by other code, and canaries get their gradients. What goes on from there to
the released sum (clip, lattice, noise, masks, opening) is the installed code's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import BatchMaker, Window
from client.learner import Learner
from client.training import LARGEST_GRADIENT, ROUNDING_SLACK, UserGradients
from client.workbench import Workbench
from shared.config import RunConfig, TrainingConfig
from shared.model.behaviour import CatalogueVectors, EventBatch
from shared.privacy.plan import PrivacyPlan
from simulations.audit.canaries import EXCESS, GradientCanaries
from simulations.audit.mechanism.checks import exchanged

Content = bytes
Gradients = NDArray[np.float64]


@dataclass
class Watch:
    """Follows the rounds of one training.

    Attributes
    ----------
    plan : PrivacyPlan
    canaries : GradientCanaries
    marked : dict
        Pseudonym of every canary: its place among the gradient canaries, or None for a canary user.
    others : dict
        Sum over all users but canaries, each clipped to the partner's clip norm, (P,), of the steps of this round, by
        the key of their windows.
    """

    plan: PrivacyPlan
    canaries: GradientCanaries
    marked: dict[str, int | None]
    others: dict[bytes, Gradients] = field(default_factory=dict)
    _present: dict[Content, int | None] = field(default_factory=dict)
    _key: bytes | None = None

    @contextmanager
    def over(self, learners: Sequence[Learner], bench: Workbench, config: RunConfig) -> Iterator[None]:
        """Watch these partners, which share one workbench."""
        with ExitStack() as stack:
            stack.enter_context(exchanged(bench.gradients, "of", self._gradients(bench.gradients)))
            for learner in learners:
                maker = learner.batch_maker(config.model, config.seed or 0)
                stack.enter_context(exchanged(maker, "training", self._batches(maker)))
            yield

    def _batches(self, maker: BatchMaker) -> Any:
        """`BatchMaker.training`, after which it is known how the windows of this step's canaries read."""
        made = maker.training

        def training(users: NDArray[np.int64], settings: TrainingConfig, key: bytes) -> Iterator[EventBatch]:
            self._key, self._present = key, {}
            self.others.setdefault(key, np.zeros(0))
            for user in users:
                history = maker.histories[int(user)]
                if history.user in self.marked:
                    window = maker._training_window(history, settings, key)
                    self._present[content_of(window)] = self.marked[history.user]
            yield from made(users, settings, key)
            self._key = None

        return training

    def _gradients(self, gradients: UserGradients) -> Any:
        """`UserGradients.of` in which canaries have their own gradients, and all others are added up."""
        made = gradients.of

        def of(
            batch: EventBatch, catalogue: CatalogueVectors, prior: Tensor, *, bf16: bool = False
        ) -> tuple[Tensor, Tensor]:
            flat, losses = made(batch, catalogue, prior, bf16=bf16)
            if self._key is None:  # no step: the partner tries out its machine's arithmetic
                return flat, losses
            real = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
            for row, content in enumerate(contents_of(batch)):
                if content in self._present:
                    real[row] = False
                    canary = self._present[content]
                    if canary is not None:
                        flat[row] = 0.0
                        flat[row, int(self.canaries.coordinates[canary])] = EXCESS * self.plan.clip_norm
            added = clipped(flat[real].double().cpu().numpy(), self.plan.partner_clip_norm).sum(axis=0)
            before = self.others[self._key]
            self.others[self._key] = before + added if len(before) else added
            return flat, losses

        return of


def clipped(gradients: Gradients, clip_norm: float) -> Gradients:
    """Rows scaled to norm at most `clip_norm`, less the room for rounding; rows that are no numbers are 0."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    usable = norms <= LARGEST_GRADIENT  # False for NaN
    factors = np.minimum(1.0, clip_norm * (1 - ROUNDING_SLACK) / np.maximum(np.where(usable, norms, 1.0), 1e-12))
    return np.where(usable, gradients, 0.0) * factors


def content_of(window: Window) -> Content:
    """What a window says, as bytes."""
    return _content(window.items, window.events, window.ratings)


def contents_of(batch: EventBatch) -> list[Content]:
    """The same of every row of a batch."""
    parts = [part.cpu().numpy() for part in (batch.items, batch.events, batch.ratings)]
    return [_content(*(part[row, :n] for part in parts)) for row, n in enumerate(batch.lengths.tolist())]


def _content(*parts: NDArray[Any]) -> Content:
    return b"".join(np.ascontiguousarray(part, dtype="<i8").tobytes() for part in parts)
