"""SASRec by user-level DP-SGD: Poisson-sampled users, one clipped gradient each, Gaussian noise on the sum.

The gradient of a user is that of the mean loss over the user's newest events, taken for all users of a batch at
once with `torch.func`; clipping is the federated model's own (`client.training.clip_and_sum`).

Source: M. Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1; at user level H. B.
McMahan et al., "Learning differentially private recurrent language models", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from client.batches import next_new_items
from client.training import clip_and_sum
from shared.schema import Histories
from simulations.baselines.noise import step_noise
from simulations.baselines.problem import Budget, Problem, Settings
from simulations.baselines.sasrec import Windows, new_model, padded
from simulations.baselines.sasrec_model import SasRec

MICROBATCH = 32
STRIDE = 10
"""A user is padded to the next multiple, by the own length alone: nobody's gradient depends on others."""


def train_private(problem: Problem, settings: Settings, budget: Budget, seed: int) -> SasRec:
    """A trained network.

    Settings: ``width``, ``layers``, ``max_events``; ``steps``, ``sampling_rate``, ``clip_norm``, ``learning_rate`` (of
    Adam). There is no dropout: what a user adds must depend on that user alone.

    Guarantees
    ----------
    (epsilon, delta) at user level under add-or-remove: every user is in a step with the public probability
    ``sampling_rate``, adds at most ``clip_norm`` over all partners, and the sum is divided by public numbers.
    """
    q, steps, clip_norm = settings["sampling_rate"], int(settings["steps"]), float(settings["clip_norm"])
    stddev = step_noise(problem, budget, sampling_rate=q, steps=steps) * clip_norm
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(problem, settings, dropout=0.0).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=float(settings["learning_rate"]), betas=(0.9, 0.99))
    for _ in range(steps):
        total = torch.zeros(sum(p.numel() for p in model.parameters()))
        for part in problem.histories:
            users = np.flatnonzero(rng.random(len(part)) < q)
            total += clipped_gradients(model, part, users, clip_norm / problem.partners_per_user)
        total += stddev * torch.randn(total.shape, generator=noise)
        _step(model, optimizer, total / (q * problem.population))
    return model


def clipped_gradients(model: SasRec, histories: Histories, users: NDArray[np.int64], clip_norm: float) -> Tensor:
    """Sum of the users' gradients, each clipped to `clip_norm`, in the order of ``model.parameters()``, shape (P,)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], items: Tensor, targets: Tensor) -> Tensor:
        states = functional_call(model, weights, (items.unsqueeze(0),))[0]  # (T, D)
        logits = F.linear(states, weights["items.weight"], weights["bias"])  # (T, I)
        known = targets >= 0
        each = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    of_users = vmap(grad(loss), in_dims=(None, 0, 0))
    total = torch.zeros(sum(p.numel() for p in parameters.values()))
    for items, targets in _batches(histories, users, model.places.num_embeddings):
        own = of_users(parameters, items, targets)
        total += clip_and_sum(torch.cat([own[name].flatten(1) for name in parameters], dim=1), clip_norm)
    return total


def _batches(histories: Histories, users: NDArray[np.int64], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    alike: dict[int, Windows] = {}
    for user in users:
        own = histories[int(user)].items
        if len(own) < 2:
            continue
        items, targets = own[:-1][-size:], next_new_items(own)[:-1][-size:]
        if (targets >= 0).any():
            alike.setdefault(min(-(-len(items) // STRIDE) * STRIDE, size), []).append((items, targets))
    for length, group in sorted(alike.items()):
        filler = np.full(length, -1, dtype=np.int64)
        for start in range(0, len(group), MICROBATCH):
            rows = group[start : start + MICROBATCH]
            yield padded([filler, *(row[0] for row in rows)])[1:], padded([filler, *(row[1] for row in rows)])[1:]


def _step(model: SasRec, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    parameters = list(model.parameters())
    parts = torch.split(gradient, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
    optimizer.step()
