"""What a partner computes: the noised sums of its own users, with noise of its own.

A spread is taken over P = 24,961 coordinates, so that its relative standard error is 0.45 %: for a seed, or bytes
of the system, drawn at random, correct code misses a bound of 3 % once in 10^10.
"""

from __future__ import annotations

import math
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from partner_setting import CONFIG, ITEMS, SIMULATED, USERS, Federation, begin, changed, simulated_premises

from client.learner import Learner
from client.statistics import clipped_statistics
from shared.config import RunConfig
from shared.errors import AdapterMismatchError, PolicyViolationError
from shared.hazmat.randomness import SeededRandomness
from shared.messages import NoisedSum, RoundPlan
from shared.model.prior import CollaborativePrior, uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.plan import Stage

REAL = changed(CONFIG, {"prior": {"kind": "none"}, "privacy": {"population": USERS}})
SEEDED = changed(REAL, SIMULATED)
PLAIN = changed(SEEDED, {"privacy": {"mode": "none"}})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of text vectors: BERT reads the catalogue once."""
    return tmp_path_factory.mktemp("cache") / "vectors.sqlite"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Learner:
    return Learner(simulated_premises(tmp_path_factory.mktemp("simulated"), cache), "cpu")


@pytest.fixture
def real(tmp_path: Path, cache: Path) -> Learner:
    return Federation.of(tmp_path, cache=cache).learner()


def order(learner: Learner, config: RunConfig, number: int = 1, stage: Stage = "train") -> RoundPlan:
    return RoundPlan("run", number, stage, config, build_plan(config), learner.catalogue.digest, "", "0" * 32)


def trained(learner: Learner, config: RunConfig, number: int = 1, prior: CollaborativePrior | None = None) -> NoisedSum:
    start = begin(learner, config)
    assert start.parameters is not None
    return learner.noised_gradients(order(learner, config, number), start.parameters, prior or uninformed(ITEMS))


def share(config: RunConfig, size: int) -> float:
    """Standard deviation of a partner's noise in one step, in lattice steps."""
    return math.sqrt(build_plan(config).share_variance("train", size))


def spread(values: NDArray[np.int64]) -> float:
    return float(values.astype(np.float64).std())


# --- users ----------------------------------------------------------------------------------------


def test_the_pseudonym_key_of_real_data_is_drawn_and_kept_from_others(real: Learner) -> None:
    users = real.histories(CONFIG.model).users
    file = real.premises.folder / "pseudonym.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Learner(real.premises, "cpu").histories(CONFIG.model).users == users
    file.unlink()
    assert set(Learner(real.premises, "cpu").histories(CONFIG.model).users).isdisjoint(users)


def test_histories_are_as_long_as_the_model_that_reads_them_allows(simulated: Learner) -> None:
    for longest in (3, 5):
        histories = simulated.histories(CONFIG.model.model_copy(update={"max_history": longest}))
        assert set(np.diff(histories.offsets)) == {longest}


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["short", "two axes", "nan", "inf", "huge"])
def test_parameters_that_no_round_can_start_from_are_refused(simulated: Learner, change: str) -> None:
    good = begin(simulated, SEEDED).parameters
    assert good is not None
    simulated.check_parameters(SEEDED, good)
    other = good.copy()
    other[7] = {"nan": np.nan, "inf": np.inf, "huge": -4.01}.get(change, 0.0)
    shaped = {"short": other[1:], "two axes": other[:, None]}.get(change, other)
    with pytest.raises(AdapterMismatchError, match=f"Expected {len(good)} parameters of size <= 4, got shape="):
        simulated.check_parameters(SEEDED, shaped)


# --- noise ----------------------------------------------------------------------------------------


def test_the_noise_of_real_data_is_the_plan_s_and_cannot_be_replayed(real: Learner) -> None:
    one, other = trained(real, REAL).values, trained(real, REAL).values
    # The clipped sum is the same: the difference is the noise of both, and their dithers.
    assert spread(one - other) == pytest.approx(math.sqrt(2) * share(REAL, len(one)), rel=0.03)


def test_real_data_take_no_noise_that_can_be_replayed(real: Learner) -> None:
    with pytest.raises(PolicyViolationError, match="seed"):
        trained(real, SEEDED)


def test_a_simulated_round_can_be_repeated_to_the_bit(simulated: Learner) -> None:
    one = trained(simulated, SEEDED).values
    np.testing.assert_array_equal(trained(simulated, SEEDED).values, one)
    assert spread(trained(simulated, SEEDED, number=2).values - one) > share(SEEDED, len(one))


def check_own_noise(simulated: Learner, other: Learner) -> None:
    """The same data under another name: the difference is two shares of noise, not none."""
    difference = trained(simulated, SEEDED).values - trained(other, SEEDED).values
    assert spread(difference) == pytest.approx(math.sqrt(2) * share(SEEDED, len(difference)), rel=0.03)


def test_partners_draw_noise_of_their_own(simulated: Learner, tmp_path: Path, cache: Path) -> None:
    check_own_noise(simulated, Learner(simulated_premises(tmp_path, cache, "partner-001"), "cpu"))


def test_noise_that_two_partners_share_would_be_caught(
    simulated: Learner, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Learner(simulated_premises(tmp_path, cache, "partner-001"), "cpu")
    monkeypatch.setattr(Learner, "_randomness", lambda *_: SeededRandomness(0, "anybody"))
    with pytest.raises(AssertionError):
        check_own_noise(simulated, other)


def test_in_a_simulation_all_partners_sample_a_user_alike(simulated: Learner, tmp_path: Path, cache: Path) -> None:
    """The same data under another name: without noise only the dithers differ, by one step."""
    other = Learner(simulated_premises(tmp_path, cache, "partner-001"), "cpu")
    half = changed(PLAIN, {"training": {"sampling_rate": 0.5}})
    one, same = trained(simulated, half).values, trained(other, half).values
    assert 0 < np.abs(one - same).max() <= 1
    assert np.abs(one - trained(simulated, PLAIN).values).max() > 1


def test_a_round_that_samples_nobody_is_noise(simulated: Learner) -> None:
    config = changed(SEEDED, {"training": {"sampling_rate": 1e-9}})
    values = trained(simulated, config).values
    assert spread(values) == pytest.approx(share(config, len(values)), rel=0.03)


def test_a_private_sum_reports_no_loss(simulated: Learner) -> None:
    assert trained(simulated, SEEDED).loss is None


# --- signal ---------------------------------------------------------------------------------------


def test_without_privacy_the_answer_is_the_clipped_sum_and_its_loss(simulated: Learner) -> None:
    config = changed(PLAIN, {"privacy": {"clip_norm": 0.1}})
    noised = trained(simulated, config)
    assert noised.values.dtype == np.int64
    assert 0 < np.linalg.norm(noised.values) * build_plan(config).step("train") <= 0.1 * USERS * 1.01
    assert noised.loss is not None and noised.loss > 0


def test_the_prior_is_part_of_what_is_learned(simulated: Learner) -> None:
    prior = CollaborativePrior(np.linspace(-1, 1, ITEMS, dtype=np.float32), np.eye(ITEMS, dtype=np.float32))
    assert np.abs(trained(simulated, PLAIN).values - trained(simulated, PLAIN, prior=prior).values).max() > 1


def test_the_prior_s_sum_is_that_of_the_histories(simulated: Learner) -> None:
    config = changed(PLAIN, {"prior": {"kind": "hybrid"}, "privacy": {"partners_per_user": 2}})
    asked = order(simulated, config, stage="prior")
    values = simulated.noised_statistics(asked).values
    expected = clipped_statistics(simulated.histories(config.model), ITEMS, config.prior, "hybrid", clip_norm=0.5)
    assert np.abs(values - expected.values / asked.plan.step("prior")).max() < 1  # rounded


def test_local_steps_add_up_and_each_has_the_whole_noise(simulated: Learner) -> None:
    # A vanishing learning rate: every step is taken from the same place, so that the steps can be told apart.
    steps: dict[str, Any] = {
        "training": {"local_steps": 2, "local_learning_rate": 1e-30},
        "federation": {"secure_sum": False},
    }
    local = changed(SEEDED, {**steps, "privacy": {"mode": "local"}})
    values = trained(simulated, local).values
    assert share(local, len(values)) > 1.5 * share(SEEDED, len(values))
    signal = trained(simulated, changed(PLAIN, steps)).values
    assert spread(values - signal) == pytest.approx(math.sqrt(2) * share(local, len(values)), rel=0.03)


def test_local_steps_go_on_from_where_the_last_one_ended(simulated: Learner) -> None:
    one = trained(simulated, PLAIN).values
    two = trained(simulated, changed(PLAIN, {"training": {"local_steps": 2, "local_learning_rate": 50.0}})).values
    assert np.linalg.norm(two - 2 * one) > 0.05 * np.linalg.norm(one)


def test_what_a_learner_draws_does_not_depend_on_the_attempt(simulated: Learner) -> None:
    asked = order(simulated, SEEDED)
    start = begin(simulated, SEEDED).parameters
    assert start is not None
    drawn = [
        simulated.noised_gradients(each, start, uninformed(ITEMS)).values
        for each in (asked, replace(asked, attempt="1" * 32))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
