"""A whole run with buckets: real texts, model, partners, masks and ledgers, nine partners in three buckets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from run_setting import files, released

from client.agent import agent_for
from client.app import app as client_app
from server.app import run_federation
from shared.adapter import load_release
from shared.buckets import assign
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.ledger_audit import read_ledger
from simulations.federation import InProcessGrid
from simulations.simulate import Simulation

if TYPE_CHECKING:
    from conftest import Start

PARTNERS = 9
BUCKETS: dict[str, Any] = {"federation": {"buckets": 3, "combine": "median"}, "training": {"rounds": 2}}


def train(simulation: Simulation) -> list[dict[str, Any]]:
    """All rounds and the release, without evaluation; returns the records, without seconds."""
    workspace = simulation.workspace
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    agent_for.cache_clear()
    run_federation(grid, simulation.config, workspace.catalogue, simulation.out, workspace.root)
    lines = (simulation.out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def done(begin: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, list[dict[str, Any]]]:
    simulation = begin(tmp_path_factory.mktemp("buckets") / "run", partners=PARTNERS, **BUCKETS)
    return simulation, train(simulation)


Run = tuple[Simulation, list[dict[str, Any]]]


def test_a_run_with_buckets_comes_to_its_end_and_tells_of_every_bucket(done: Run) -> None:
    _, records = done
    assert [(record["round"], record["stage"], record["cohort"]) for record in records] == [
        (1, "prior", 9),
        (2, "train", 9),
        (3, "train", 9),
    ]
    for record in records:
        assert [(line["bucket"], line["partners"], line["clipped"]) for line in record["buckets"]] == [
            (0, 3, False),
            (1, 3, False),
            (2, 3, False),
        ]


def test_what_the_ledgers_opened_are_the_buckets_that_everybody_works_out_alone(done: Run) -> None:
    simulation, _ = done
    names = [f"partner-{k:03d}" for k in range(PARTNERS)]
    opened: dict[int, set[tuple[str, ...]]] = {1: set(), 2: set(), 3: set()}
    run_id = ""
    for name in names:
        for line in (simulation.workspace.root / name / "ledger.jsonl").read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            if told["kind"] == "open":
                run_id = told["fields"]["run_id"]
                assert name in told["fields"]["survivors"]
                opened[told["fields"]["round"]].add(tuple(told["fields"]["survivors"]))
    for number, sets in opened.items():
        assert sets == set(assign(run_id, number, names, 3))
    assert opened[1] != opened[2] != opened[3]


def test_the_epsilon_is_that_of_a_run_without_buckets(done: Run) -> None:
    simulation, records = done
    config = simulation.config
    plain = config.model_copy(
        update={"federation": config.federation.model_copy(update={"buckets": 1, "combine": "sum"})}
    )
    with_, without = build_plan(config), build_plan(plain)
    assert (with_.noise_multiplier, with_.prior_noise_multiplier) == (
        without.noise_multiplier,
        without.prior_noise_multiplier,
    )
    (run,) = read_ledger(simulation.workspace.root / "partner-000" / "ledger.jsonl").runs
    assert run.epsilon == records[-1]["epsilon"] == epsilon_spent(without, without.rounds)
    # The bill of the buckets is in the noise: three partners make what nine made together.
    assert with_.share_variance("train", 1000) == pytest.approx(3 * without.share_variance("train", 1000))


def test_the_model_moves_by_about_the_noise_that_is_told(done: Run) -> None:
    """Under this much noise the step is nearly noise alone: its length is what the record says, to 5 %."""
    for record in done[1][1:]:
        assert record["update_norm"] == pytest.approx(record["noise_norm"], rel=0.05)


@pytest.mark.slow
def test_a_run_with_buckets_is_the_same_a_second_time(done: Run, begin: Start, tmp_path: Path) -> None:
    first, records = done
    second = begin(tmp_path / "run", partners=PARTNERS, **BUCKETS)
    assert train(second) == records
    assert released(second.out) == released(first.out)
    assert files(second.out / "adapter").keys() == files(first.out / "adapter").keys()
    assert np.isfinite(load_release(second.out / "adapter").prior.popularity).all()
