"""Federations for the pitfalls, and the audit's checks: what is looked for here is looked for at a customer's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stub_federation import Federate, Gradient, Holds, StubFederation

from shared.config import ModelConfig, RunConfig
from shared.privacy.plan import PrivacyPlan
from simulations.audit.mechanism.checks import REFERENCE, Setting, run_check
from simulations.audit.mechanism.registry import named


@pytest.fixture
def holds(tmp_path: Path, tiny_model: ModelConfig) -> Holds:
    """Run a check of the audit under a plan, with a fixed seed. What draws from the system fails one in a million."""

    def check(name: str, plan: PrivacyPlan = REFERENCE) -> None:
        folder = tmp_path / "audit"
        folder.mkdir(exist_ok=True)
        outcome = run_check(named(name), Setting(plan, RunConfig(model=tiny_model), 5, folder))
        assert outcome.holds, outcome.broken

    return check


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    """Make a federation whose agents Flower's client app finds."""

    def make(
        *counts: int,
        gradient: Gradient | None = None,
        size: int = 200,
        real: dict[str, Any] | None = None,
        at: str = "partners",
    ) -> StubFederation:
        return StubFederation.of(tmp_path / at, *counts, gradient=gradient, size=size, real=real)

    return make
