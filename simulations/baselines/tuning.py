"""Equal care for all: every method's settings are chosen from its grid, on the last-but-one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared import metrics
from shared.errors import ConfigError
from simulations.baselines.methods import Method
from simulations.baselines.problem import Budget, Problem, Settings
from simulations.evaluation import evaluate, merge


@dataclass(frozen=True, slots=True)
class Trial:
    """What some settings were worth: `ndcg`, NDCG@10 over the tuning targets of all partners' users."""

    settings: Settings
    ndcg: float


def tune(
    method: Method,
    problem: Problem,
    targets: Sequence[NDArray[np.int32]],
    budget: Budget | None,
    seed: int,
) -> Settings:
    """The settings of the method's grid with the best NDCG@10; of equals the first.

    Parameters
    ----------
    method : Method
    problem : Problem
        Of the split ``hold_out(which="last_but_one")``: what is reported later, in the same order of
        ties, is in neither part of it.
    targets : sequence of int32 arrays
        One a partner, as `simulations.evaluation.targets_of` gives them.
    budget : Budget or None
        Every fit has this budget. Choosing costs privacy too, which is not billed: all private methods of a
        benchmark are favoured alike.
    seed : int

    Raises
    ------
    ConfigError
        If there is not one array of targets for every partner, or the method has no private form.
    """
    return max(trials(method, problem, targets, budget, seed), key=lambda trial: trial.ndcg).settings


def trials(
    method: Method,
    problem: Problem,
    targets: Sequence[NDArray[np.int32]],
    budget: Budget | None,
    seed: int,
) -> tuple[Trial, ...]:
    """Fit and evaluate all settings of the grid, in order; see `tune`."""
    if len(targets) != len(problem.histories):
        raise ConfigError(f"Expected targets of each of partners={len(problem.histories)}, got targets={len(targets)}.")
    return tuple(
        Trial(settings, _ndcg(method, settings, problem, targets, budget, seed)) for settings in method.settings(budget)
    )


def _ndcg(
    method: Method,
    settings: Settings,
    problem: Problem,
    targets: Sequence[NDArray[np.int32]],
    budget: Budget | None,
    seed: int,
) -> float:
    scorer = method.fit(problem, settings, budget, seed)
    parts = [evaluate(scorer, own, wanted) for own, wanted in zip(problem.histories, targets, strict=True)]
    return metrics.ndcg(merge(parts).ranks, 10)
