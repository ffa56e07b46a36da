"""How much noise a private baseline needs, by the accountant of the federated model itself.

All have the same bill: `shared.privacy.accounting.build_plan`, with the clip norm, the rounding and the lattice of
the federated model counted in. A baseline adds continuous Gaussian noise of that size, which costs no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.config import FederationConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.privacy.accounting import build_plan
from simulations.baselines.problem import Budget, Problem


def sum_noise(problem: Problem, budget: Budget | None) -> float:
    """Standard deviation of the noise of one sum that a user moves by at most 1 in L2; 0 without a budget.

    Guarantees
    ----------
    The sum with this noise is (epsilon, delta)-private at user level, under add-or-remove, if at each of
    ``partners_per_user`` partners a user adds at most ``1 / partners_per_user``.

    Raises
    ------
    AccountingError
        If no noise that can be accounted reaches the budget.
    """
    if budget is None:
        return 0.0
    plan = build_plan(_config(problem, budget, TrainingConfig(rounds=0), PriorConfig(kind="popularity")))
    return float(plan.prior_noise_multiplier or 0.0)


def step_noise(problem: Problem, budget: Budget | None, *, sampling_rate: float, steps: int) -> float:
    """The same for each of `steps` sums to which every user belongs with probability `sampling_rate`.

    Guarantees
    ----------
    As `sum_noise`, for all steps together; partners may sample a user that they share independently.

    Raises
    ------
    AccountingError
        As `sum_noise`.
    """
    if budget is None:
        return 0.0
    training = TrainingConfig(rounds=steps, sampling_rate=sampling_rate)
    return build_plan(_config(problem, budget, training, PriorConfig(kind="none"))).noise_multiplier


def add_noise(total: NDArray[np.float64], stddev: float, seed: int) -> NDArray[np.float64]:
    """The sum with seeded Gaussian noise on every entry; the sum itself where `stddev` is 0.

    Seeded noise protects nobody: baselines are only ever fitted in simulations.
    """
    if not stddev:
        return total
    return total + np.random.default_rng(seed).normal(scale=stddev, size=total.shape)


def _config(problem: Problem, budget: Budget, training: TrainingConfig, prior: PriorConfig) -> RunConfig:
    private = PrivacyConfig(
        epsilon=budget.epsilon,
        delta=budget.delta,
        clip_norm=1.0,
        population=problem.population,
        partners_per_user=problem.partners_per_user,
    )
    federation = FederationConfig(partners=max(len(problem.histories), 1))
    return RunConfig(training=training, prior=prior, privacy=private, federation=federation)
