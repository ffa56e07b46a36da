"""A privacy plan for tests; those that need another one replace fields of it."""

from __future__ import annotations

from shared.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(
    mode="distributed",
    delta=1e-5,
    sampling_rate=0.2,
    population=1000,
    clip_norm=0.5,
    noise_multiplier=2.0,
    prior_noise_multiplier=1.5,
    rounds=10,
    local_steps=1,
    partners=5,
    survivors=4,
    colluders=1,
    masked=True,
    partners_per_user=2,
    max_events=100,
)
