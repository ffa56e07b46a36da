"""Federations for the pitfalls: everything real but BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stub_federation import Federate, Gradient, StubFederation, gradient_of, names, set_up

from client import agent as agent_module
from client import learner as learner_module
from client.agent import PartnerAgent


@pytest.fixture
def federate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federate:
    """Make a federation and let Flower's client app find its agents."""

    agents: dict[Path, PartnerAgent] = {}
    monkeypatch.setattr(agent_module, "agent_for", agents.__getitem__)
    monkeypatch.setattr(learner_module, "load_parameters", lambda model, flat: None)

    def make(
        *counts: int,
        gradient: Gradient | None = None,
        size: int = 200,
        real: dict[str, Any] | None = None,
        at: str = "partners",
    ) -> StubFederation:
        users = [names(f"p{k}", count) for k, count in enumerate(counts)]
        made = set_up(tmp_path / at, users, gradient or gradient_of(size), real=real)
        agents.update(made.agents)
        return made

    return make
