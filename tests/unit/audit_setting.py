"""What the tests of the audit's estimators share: plans, and scores of canaries under a Gaussian mechanism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from shared.privacy.plan import PrivacyPlan
from simulations.audit.estimators.tradeoff import gdp_epsilon
from simulations.audit.findings import ScoreSet

DELTA = 1e-5
DEMO = PrivacyPlan(
    mode="distributed",
    delta=DELTA,
    sampling_rate=0.2,
    population=6500,
    clip_norm=0.15,
    noise_multiplier=1.163,
    prior_noise_multiplier=0.655,
    rounds=8,
    local_steps=1,
    partners=4,
    survivors=4,
    colluders=0,
    masked=True,
    partners_per_user=1,
    max_events=1000,
)
"""As the demo's, for people at one partner: epsilon 8.0, of which the prior alone would be 7.2 and training 3.5."""
RARE = replace(DEMO, sampling_rate=0.05, rounds=60, noise_multiplier=1.0, prior_noise_multiplier=None)
FULL = replace(DEMO, sampling_rate=1.0, rounds=20, noise_multiplier=4.0, prior_noise_multiplier=None)
OPEN = replace(DEMO, mode="none", noise_multiplier=0.0, prior_noise_multiplier=0.0)


def mu_of(epsilon: float, delta: float = DELTA) -> float:
    """The signal of the Gaussian mechanism with this epsilon."""
    return float(brentq(lambda mu: gdp_epsilon(mu, delta) - epsilon, 1e-3, 30.0))


def gaussian_scores(m: int, mu: float, seed: int) -> ScoreSet:
    """Of m canaries with fair coins, each moved by `mu` standard deviations if it took part."""
    rng = np.random.default_rng(seed)
    took_part = rng.random(m) < 0.5
    scores = mu * took_part + rng.standard_normal(m)
    return ScoreSet("gaussian", scores[took_part], scores[~took_part])


def responses(m: int, epsilon: float, seed: int) -> ScoreSet:
    """Randomised response: each coin is told, truly with probability ``e^eps / (1 + e^eps)``."""
    rng = np.random.default_rng(seed)
    took_part = rng.random(m) < 0.5
    told = np.where(rng.random(m) < 1 / (1 + np.exp(-epsilon)), took_part, ~took_part).astype(float)
    return ScoreSet("responses", told[took_part], told[~took_part])
