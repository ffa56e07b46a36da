"""What a release says of the users of a run, and what they took next: measured from by the questions of a shop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.engine import BATCH, Engine
from shared import metrics
from shared.adapter import Release
from shared.errors import DataError
from simulations.evaluation import NO_TARGET
from simulations.results import parts_of
from simulations.workspace import Workspace

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """The evaluated users of all partners, and what a release says of them.

    Parameters
    ----------
    engine : Engine
    scores : array of float32, shape (n, I)
    met : array of bool, shape (n, I)
    decayed : array of float32, shape (n, I)
        Events with each item, the newest counted most (0.8 per event).
    states : array of float32, shape (n, H)
        What the behaviour stage says is wanted next, norm 1: the prior has no part in it.
    newest, targets : array of int64, shape (n,)
        Catalogue rows: the last item of the history, and the held-out one.
    partner : array of int64, shape (n,)
    """

    engine: Engine
    scores: NDArray[np.float32]
    met: NDArray[np.bool_]
    decayed: NDArray[np.float32]
    states: NDArray[np.float32]
    newest: NDArray[np.int64]
    targets: NDArray[np.int64]
    partner: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many of the users met each item."""
        return np.asarray(self.met.sum(axis=0), dtype=np.int64)


def setting_of(release: Release, workspace: Workspace) -> Setting:
    """Score all items for all evaluated users."""
    config = release.config
    bench = workspace.learner(0).workbench(config.model, config.seed or 0)
    cannot: Callable[..., Any] = lambda texts: np.zeros((len(texts), release.model.width), np.float16)  # noqa: E731
    engine = Engine(release, workspace.catalogue, bench.catalogue, bench.text, cannot)
    columns: list[tuple[NDArray[Any], ...]] = []
    for k, part in enumerate(parts_of(workspace, config)):
        users = np.flatnonzero((part.targets != NO_TARGET) & (part.histories.lengths > 0))
        maker = workspace.learner(k).batch_maker(config.model, config.seed or 0)
        met = np.zeros((len(users), len(workspace.catalogue)), dtype=bool)
        decayed = np.zeros(met.shape, dtype=np.float32)
        newest = np.zeros(len(users), dtype=np.int64)
        for place, user in enumerate(users):
            items = part.histories[int(user)].items
            met[place, items], newest[place] = True, items[-1]
            np.add.at(decayed[place], items, 0.8 ** np.arange(len(items), dtype=np.float32)[::-1])
        scores, own = engine.scorer.users(maker, users), part.targets[users].astype(np.int64)
        states = _states(engine, maker, users)
        columns.append((scores, met, decayed, states, newest, own, np.full(len(users), k, dtype=np.int64)))
    if not any(len(one[0]) for one in columns):
        raise DataError("Expected held-out items of users>=1.")
    return Setting(engine, *(np.concatenate(column) for column in zip(*columns, strict=True)))


@torch.inference_mode()
def _states(engine: Engine, maker: BatchMaker, users: NDArray[np.int64]) -> NDArray[np.float32]:
    states = np.zeros((len(users), engine.model.width), dtype=np.float32)
    for places, batch in maker.latest(users, BATCH):
        hidden = engine.model.newest(batch.to(engine.device), engine.vectors)
        wanted = hidden if engine.model.head is None else hidden + engine.model.head(hidden)
        states[places] = F.normalize(wanted, dim=1).cpu().numpy()
    return states


def ranks(scores: Matrix, setting: Setting, users: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of the held-out item of some users, whose scores are the rows, among what they have not met."""
    return metrics.fractional_ranks(scores, setting.targets[users], ~setting.met[users])


def softmax(scores: NDArray[np.float32], temperature: float) -> Matrix:
    """Probabilities of all items, rows adding up to 1."""
    logits = scores.astype(np.float64) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def standardised(scores: NDArray[np.float32]) -> Matrix:
    """Rows of mean 0 and deviation 1."""
    wide = scores.astype(np.float64)
    return np.asarray((wide - wide.mean(axis=1, keepdims=True)) / np.maximum(wide.std(axis=1, keepdims=True), 1e-12))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of norm 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
