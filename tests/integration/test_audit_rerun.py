"""An audited re-run of a real simulation: what the insider sees is what the plan says, and bugs are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import client.privatize
import client.training
from client.agent import agent_for
from simulations.audit.findings import Verdict
from simulations.audit.rerun import Rerun, Sizes, rerun
from simulations.audit.rungs.canary_users import canary_users_rung
from simulations.audit.rungs.gradient_canaries import gradient_canaries_rung
from simulations.audit.rungs.user_inference import user_inference_rung
from simulations.simulate import run

if TYPE_CHECKING:
    from conftest import Done, Start

SIZES = Sizes(gradient=60, text=12, users=20)


def quiet(_: str) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def made(whole: Done, tmp_path_factory: pytest.TempPathFactory) -> Rerun:
    """One re-run of the simulation that nothing disturbed."""
    agent_for.cache_clear()
    return rerun(whole.out, tmp_path_factory.mktemp("audit"), seed=5, sizes=SIZES, tell=quiet)


def test_what_is_left_of_a_sum_is_the_noise_of_the_plan_and_the_canary(made: Rerun) -> None:
    inside = made.subjects.gradient.inside
    noise = made.plan.noise_multiplier * made.noise_factor
    out, within = made.training[~inside], made.training[inside]
    assert abs(out.std() / noise - 1) < 4 / np.sqrt(2 * out.size)  # 4 standard errors: false alarm 6e-5
    assert abs(out.mean()) < 4 * noise / np.sqrt(out.size)
    spread = np.hypot(noise, 0.5)
    assert abs(within.mean() - made.plan.sampling_rate) < 4 * spread / np.sqrt(within.size)
    assert made.prior is not None
    stddev = made.plan.multiplier("prior") * made.noise_factor
    assert abs(made.prior[inside].mean() - made.prior_signal) < 4 * stddev / np.sqrt(inside.sum())
    assert abs(made.prior[~inside].mean()) < 4 * stddev / np.sqrt((~inside).sum())


def test_who_does_not_take_part_is_nowhere_in_the_partners_data(made: Rerun) -> None:
    config = made.config.model
    trained = {user for learner in made.workspace.learners() for user in learner.histories(config).users}
    apart = set(made.apart.learner(0).histories(config).users)
    from simulations.workspace import simulated_key

    for names, inside in (
        (made.subjects.gradient.names, made.subjects.gradient.inside),
        (made.subjects.text.names, made.subjects.text.inside),
        (made.subjects.users.names, made.subjects.users.inside),
    ):
        assert [user in trained for user in simulated_key().pseudonyms(list(names))] == inside.tolist()
    assert set(simulated_key().pseudonyms([*made.subjects.text.names, *made.subjects.users.names])) == apart


def test_rungs_find_nothing_above_the_claim_and_too_few_canaries_never_pass(made: Rerun) -> None:
    for result in (
        gradient_canaries_rung(made, seed=1),
        canary_users_rung(made, seed=1),
        user_inference_rung(made, seed=1),
    ):
        assert result.verdict is Verdict.INCONCLUSIVE
        assert result.epsilon_lower_bound is not None
        assert result.epsilon_lower_bound < 8.0
        assert all(one.claimed is not None and not one.refutes for one in result.estimates)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(
            lambda patch: patch.setattr(
                client.privatize, "skellam", lambda source, at, size, variance: np.zeros(size, dtype=np.int64)
            ),
            id="noise missing",
        ),
        pytest.param(
            lambda patch: patch.setattr(client.training, "clip_and_sum", lambda gradients, _: gradients.sum(dim=0)),
            id="clip missing",
        ),
    ],
)
def test_a_bug_in_the_mechanism_fails_the_audit(
    whole: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    found = rerun(whole.out, tmp_path, seed=5, sizes=SIZES, tell=quiet)
    result = gradient_canaries_rung(found, seed=1)
    assert result.verdict is Verdict.FAIL
    assert any(one.refutes for one in result.estimates)


def test_labels_that_are_shuffled_tell_nothing(made: Rerun) -> None:
    from simulations.audit.estimators.insider import insider_scores
    from simulations.audit.estimators.roc import area_under

    scores = insider_scores(made.plan, "training", training=made.training)
    coins = np.random.default_rng(0).permutation(made.subjects.gradient.inside)
    assert abs(area_under(scores[coins], scores[~coins]) - 0.5) < 4 / np.sqrt(12 * 15)


def test_without_privacy_members_are_found_and_the_audit_fails(begin: Start, tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"mode": "none"}
    run(begin(tmp_path / "run", privacy=nothing), show=False)
    agent_for.cache_clear()
    found = rerun(tmp_path / "run", tmp_path / "audit", seed=2, sizes=SIZES, tell=quiet)
    result = gradient_canaries_rung(found, seed=1)
    assert result.verdict is Verdict.FAIL
    assert all(one.value > 0.9 for one in result.measurements if not one.name.endswith("training"))
    assert torch.is_grad_enabled()
