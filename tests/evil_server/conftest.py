"""One practice federation for all tests of the evil server; every run sets it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client.policy import Policy
from simulations.evil_server.attack import Result
from simulations.evil_server.practice import Practice
from simulations.evil_server.runner import ATTACKS, run

Named = Callable[..., list[Result]]
"""Runs the attacks of these names."""


@pytest.fixture(scope="session")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Practice:
    """Four partners with the strictness of real data, one of them the attacker's."""
    return Practice.build(tmp_path_factory.mktemp("practice"), Policy())


@pytest.fixture(scope="session")
def results(practice: Practice) -> dict[str, Result]:
    """What became of every attack on partners without a bug."""
    return {result.name: result for result in run(practice)}


@pytest.fixture
def attacked(practice: Practice) -> Named:
    """Attack partners that a test has broken."""
    by_name = {attack.name: attack for attack in ATTACKS}
    return lambda *names: run(practice, [by_name[name] for name in names])
