"""What the tests of the accountant share: published figures, plans, and the exact mechanisms to compare with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shared.config import PrivacyConfig, RunConfig, TrainingConfig
from shared.privacy import accounting
from shared.privacy.accounting import epsilon_spent
from shared.privacy.plan import PrivacyPlan


class Published(float):
    """A figure that knows to how many digits it was published."""

    def __new__(cls, text: str) -> Published:
        return super().__new__(cls, text)

    def __init__(self, text: str) -> None:
        self.half_a_step = 0.5 * 10.0 ** -len(text.partition(".")[2])

    def about(self) -> Any:
        """Equal up to the rounding of the figure, and 0.1 % for the accountants' own discretisation and bills."""
        return pytest.approx(self, abs=self.half_a_step + 1e-3 * self)


VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "accounting.json").read_text(), parse_float=Published
)
DELTA = VECTORS["delta"]


def plan_of(q: float, rounds: int, z: float, *, delta: float = 1e-5, prior: float | None = None) -> PrivacyPlan:
    return PrivacyPlan(
        mode="distributed",
        delta=delta,
        sampling_rate=q,
        population=1000,
        clip_norm=0.5,
        noise_multiplier=z,
        prior_noise_multiplier=prior,
        rounds=rounds,
        local_steps=1,
        partners=4,
        survivors=4,
        colluders=0,
        masked=True,
        partners_per_user=1,
        max_events=100,
    )


def spent(plan: PrivacyPlan, rounds: int | None = None) -> float:
    epsilon = epsilon_spent(plan, plan.rounds if rounds is None else rounds)
    assert epsilon is not None
    return epsilon


def config_of(epsilon: float, delta: float, **changes: Any) -> RunConfig:
    private = PrivacyConfig(population=1000, epsilon=epsilon, delta=delta, **changes.pop("privacy", {}))
    training = TrainingConfig(**({"rounds": 10, "sampling_rate": 0.2} | changes.pop("training", {})))
    return RunConfig(privacy=private, training=training, **changes)


def raw(plan: PrivacyPlan, delta: float) -> float:
    """The Gaussian's PLD of a plan of one stage, with nothing billed."""
    return accounting._pld(((plan.sampling_rate, plan.noise_multiplier, plan.steps),), delta)


def mixture(k: int, q: float, times: int, z: float, clip: float, interval: float = 5e-3) -> float:
    """Epsilon of `times` sums in which k contributions of `clip` each come and go by k coins: the exact mechanism."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    chances = [math.comb(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)]
    one = pld.from_mixture_gaussian_mechanism(
        z, [clip * j for j in range(k + 1)], chances, value_discretization_interval=interval
    )
    return float(one.self_compose(times).get_epsilon_for_delta(DELTA))
