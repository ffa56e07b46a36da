"""SASRec trained centrally: all windows of all histories, full softmax, AdamW; on the CPU, in one process.

A user with more events than the network reads is cut into windows that do not overlap, from another place in every
epoch: every event is learned from. Batches hold windows of about one length, so that little is padded.
What is predicted is the next item that the user has not met before: others are never candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from client.batches import next_new_items
from shared.schema import Histories
from simulations.baselines.problem import Budget, Problem, Settings
from simulations.baselines.sasrec_model import PADDING, SasRec

Windows = list[tuple[NDArray[np.int32], NDArray[np.int64]]]
"""Items that are read and, at each, the item to predict (-1: none)."""
HEADS = 2
BUCKET = 16
"""Batches whose windows are sorted by length together."""
USERS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class SasRecScorer:
    """Scores after the newest event of a user; no history is cut but to the newest `max_events`."""

    model: SasRec
    max_events: int

    @torch.inference_mode()
    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I); a user without any event gets the scores of the bias alone."""
        scores = np.empty((len(users), self.model.items.num_embeddings), dtype=np.float32)
        for start in range(0, len(users), USERS_AT_ONCE):
            newest = [histories[int(k)].items[-self.max_events :] for k in users[start : start + USERS_AT_ONCE]]
            lengths = torch.tensor([len(items) for items in newest])
            states = self.model(padded(newest))
            last = states[torch.arange(len(newest)), (lengths - 1).clamp(min=0)] * (lengths > 0).unsqueeze(1)
            scores[start : start + USERS_AT_ONCE] = self.model.score(last).numpy()
        return scores


def sasrec(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> SasRecScorer:
    """Train on the users of all partners; with a budget by DP-SGD (`simulations.baselines.sasrec_private`).

    Settings: ``width``, ``layers``, ``dropout``, ``max_events``, ``batch`` (windows), ``learning_rate`` (falls to a
    tenth in a line), ``epochs``, and ``most_steps``, at which many users end sooner. The same seed gives the same
    weights on one machine with one number of threads.
    """
    if budget is not None:
        from simulations.baselines.sasrec_private import train_private

        return SasRecScorer(train_private(problem, settings, budget, seed), int(settings["max_events"]))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(problem, settings, dropout=float(settings["dropout"]))
        _train(model, problem, settings, rng)
    return SasRecScorer(model.eval(), int(settings["max_events"]))


def new_model(problem: Problem, settings: Settings, *, dropout: float) -> SasRec:
    """An untrained network, drawn from torch's generator."""
    return SasRec(
        items=problem.items,
        width=int(settings["width"]),
        layers=int(settings["layers"]),
        heads=HEADS,
        max_events=int(settings["max_events"]),
        dropout=dropout,
    )


def _train(model: SasRec, problem: Problem, settings: Settings, rng: np.random.Generator) -> None:
    T, size, rate = int(settings["max_events"]), int(settings["batch"]), float(settings["learning_rate"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    histories = [history.items for part in problem.histories for history in part if len(history)]
    targets = [next_new_items(items) for items in histories]
    model.train()
    step, last = 0, int(settings["most_steps"])
    for epoch in range(int(settings["epochs"])):
        batches = list(_batches(windows(histories, targets, T, rng), size, rng))
        if epoch == 0:
            last = min(last, int(settings["epochs"]) * len(batches))
        for items, wanted in batches[: last - step]:
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - 0.9 * step / last)
            known = wanted >= 0
            loss = F.cross_entropy(model.score(model(items)[known]), wanted[known])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1


def windows(
    histories: list[NDArray[np.int32]], targets: list[NDArray[np.int64]], size: int, rng: np.random.Generator
) -> Windows:
    """Cut every history into windows of at most `size` events; the newest ends at the newest event half of the time."""
    cut: Windows = []
    for items, wanted in zip(histories, targets, strict=True):
        end = len(items) - 1  # the last event is only ever a target
        if end > size and rng.random() < 0.5:
            end -= int(rng.integers(0, min(size, end - size) + 1))
        while end > 0:
            start = max(0, end - size)
            if (wanted[start:end] >= 0).any():
                cut.append((items[start:end], wanted[start:end]))
            end = start
    return cut


def _batches(cut: Windows, size: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    by_length = _sorted_in_groups(cut, [int(k) for k in rng.permutation(len(cut))], size * BUCKET)
    batches = [by_length[start : start + size] for start in range(0, len(cut), size)]
    for place in rng.permutation(len(batches)):
        chosen = batches[int(place)]
        yield padded([cut[k][0] for k in chosen]), padded([cut[k][1] for k in chosen])


def _sorted_in_groups(cut: Windows, order: list[int], group: int) -> list[int]:
    lengths = [len(items) for items, _ in cut]
    groups = [sorted(order[start : start + group], key=lengths.__getitem__) for start in range(0, len(order), group)]
    return [k for each in groups for k in each]


def padded(rows: Sequence[NDArray[np.signedinteger[Any]]]) -> torch.Tensor:
    """Rows one below the other, padded at the end with -1, shape (B, T); T is at least 1."""
    table = np.full((len(rows), max(1, *(len(row) for row in rows))), PADDING, dtype=np.int64)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return torch.from_numpy(table)
