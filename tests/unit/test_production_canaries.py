"""Audit canaries: directions, what is added to a sum, and what it leaves as it is.

Seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
from partner_setting import (
    CONFIG,
    ITEMS,
    NO_PRIOR,
    SIMULATED,
    USERS,
    Federation,
    begin,
    changed,
    raw,
    simulated_premises,
)
from pydantic import ValidationError

from client import learner as learner_module
from client.audit_canaries import SEED_BYTES, add_canaries, commitment_of, direction
from client.data.ingest import write
from client.learner import Learner
from shared.config import AuditConfig, RunConfig
from shared.errors import PolicyViolationError, SensitivityError
from shared.messages import ClippedSum, RoundPlan
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.ledger_entries import Commitment

SEED = bytes(range(SEED_BYTES))
CANARIES = 20
AUDITED = replace(plans.PLAN, rounds=3, canaries=CANARIES)
BOUND = Commitment("run", CANARIES, commitment_of(SEED))


def with_canaries(config: RunConfig, canaries: int = CANARIES) -> RunConfig:
    return config.model_copy(update={"audit": AuditConfig(canaries=canaries)})


# --- directions and sums --------------------------------------------------------------------------


def test_a_direction_is_a_function_of_seed_and_number() -> None:
    # Written down: another version must find the directions of a run that is audited later.
    np.testing.assert_allclose(direction(bytes(SEED_BYTES), 0, 3), [0.5890854, 0.6122221, 0.5274111], atol=1e-7)
    np.testing.assert_array_equal(direction(SEED, 7, 101), direction(SEED, 7, 101))
    assert not np.allclose(direction(SEED, 7, 101), direction(SEED, 8, 101))
    assert not np.allclose(direction(SEED, 7, 101), direction(bytes(SEED_BYTES), 7, 101))


def test_directions_are_uniform_on_the_sphere() -> None:
    """Bounds of 5 standard errors, on ten statistics: correct code misses one once in 170,000."""
    k, d = 400, 501
    units = np.stack([direction(SEED, number, d) for number in range(k)])
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1.0, rtol=1e-12)
    inner = (units @ units.T)[np.triu_indices(k, 1)] * math.sqrt(d)  # close to N(0, 1)
    coordinates = units.ravel() * math.sqrt(d)
    for sample in (coordinates, inner):
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs((sample**power).mean() - moment) < 5 * math.sqrt(variance / len(sample)) + 6 / d
    for half in (units[:, : d // 2], units[:, d // 2 + 1 :]):  # cosines and sines of one angle are two numbers
        assert abs((half**2).sum(1).mean() - 0.5) < 5 * math.sqrt(1 / d / k) + 1 / d


def test_what_a_user_moves_is_the_same_vector_with_canaries_and_without() -> None:
    rng = np.random.default_rng(0)
    everybody, user = rng.normal(size=(2, 500))
    clip = AUDITED.partner_clip_norm
    user *= clip / np.linalg.norm(user)
    for taken in ((), (0,), range(CANARIES)):
        sums = [ClippedSum(values, clip) for values in (everybody, everybody + user)]
        without, having = (add_canaries(each, AUDITED, SEED, taken) for each in sums)
        np.testing.assert_allclose(having.values - without.values, user, atol=1e-13)
        assert without.clip_norm == having.clip_norm == clip
        expected = clip * sum((direction(SEED, n, 500) for n in taken), np.zeros(500))
        np.testing.assert_allclose(without.values - everybody, expected, atol=1e-13)


def test_a_canary_is_as_long_as_a_user_may_be() -> None:
    none = ClippedSum(np.zeros(300), AUDITED.partner_clip_norm)
    added = add_canaries(none, AUDITED, SEED, [3])
    assert np.linalg.norm(added.values) == pytest.approx(AUDITED.clip_norm / 2)  # at two partners at most
    assert not none.values.any()


def test_a_sum_that_was_clipped_otherwise_takes_no_canaries() -> None:
    with pytest.raises(SensitivityError, match="Expected a sum clipped to"):
        add_canaries(ClippedSum(np.zeros(3), AUDITED.clip_norm), AUDITED, SEED, [0])


def test_canaries_of_all_partners_are_at_most_a_hundredth_of_the_parameters() -> None:
    AUDITED.check_canaries(10_000)  # 20 at each of five partners
    with pytest.raises(PolicyViolationError, match="Expected canaries <= 19 at each of 5 partners"):
        AUDITED.check_canaries(9_999)


# --- configuration and plan -----------------------------------------------------------------------


def test_a_run_without_canaries_reads_as_it_did_before_there_were_any() -> None:
    assert "audit" not in RunConfig().model_dump() and "audit" not in RunConfig().model_dump_json()
    assert "canaries" not in build_plan(CONFIG).told()
    assert RunConfig.model_validate(RunConfig().model_dump()) == RunConfig()
    # The digest that this plan had before there was the field: ledgers of that time verify.
    assert plans.PLAN.digest() == "004b41cbbc5894f69cc8097e93a51cf5eebcf19b0cabe06a135c4fec376c5c50"
    told = with_canaries(RunConfig())
    assert RunConfig.model_validate_json(told.model_dump_json()) == told


def test_canaries_are_part_of_the_plan_and_cost_no_epsilon() -> None:
    few, none = build_plan(with_canaries(CONFIG)), build_plan(CONFIG)
    assert few == replace(none, canaries=CANARIES) and few.digest() != none.digest()
    with pytest.raises(PolicyViolationError, match="Expected canaries >= 0"):
        replace(none, canaries=-1)


@pytest.mark.parametrize(
    "changes", [{"training": {"rounds": 0}}, {"federation": {"partners": 9, "quorum": 3, "buckets": 3}}]
)
def test_canaries_that_no_audit_could_find_are_refused(changes: dict[str, Any]) -> None:
    without = changed(CONFIG, changes).model_dump()
    with pytest.raises(ValidationError, match=r"audit\.canaries needs"):
        RunConfig.model_validate({**without, "audit": {"canaries": 1}})


# --- the learner ----------------------------------------------------------------------------------

SEEDED = changed(CONFIG, {**NO_PRIOR, **SIMULATED, "privacy": {"population": USERS}})
HALF = changed(SEEDED, {"training": {"sampling_rate": 0.5}})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of text vectors: BERT reads the catalogue once."""
    return tmp_path_factory.mktemp("cache") / "vectors.sqlite"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Learner:
    return Learner(simulated_premises(tmp_path_factory.mktemp("simulated"), cache), "cpu")


def order(learner: Learner, config: RunConfig, number: int = 1) -> RoundPlan:
    return RoundPlan("run", number, "train", config, build_plan(config), learner.catalogue.digest, "", "0" * 32)


def noised(learner: Learner, config: RunConfig, seed: bytes | None = None) -> np.ndarray[Any, Any]:
    start = begin(learner, config).parameters
    assert start is not None
    return learner.noised_gradients(order(learner, config), start, uninformed(ITEMS), canary_seed=seed).values


def test_canaries_off_leave_a_noised_sum_as_it_is_to_the_bit(
    simulated: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = noised(simulated, HALF)
    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "add_canaries", None)
        np.testing.assert_array_equal(noised(simulated, HALF, SEED), plain)
    assert not np.array_equal(noised(simulated, with_canaries(HALF), SEED), plain)


def test_canaries_change_nothing_else_and_do_not_depend_on_data(
    simulated: Learner, tmp_path: Path, cache: Path
) -> None:
    """With one seed the sample of users, the dither and the noise are the same; what is left is whole canaries."""
    fewer = Learner(simulated_premises(tmp_path, cache), "cpu")
    write(raw(USERS - 1), tmp_path)
    audited, found = with_canaries(HALF), []
    clip, step = HALF.privacy.clip_norm, build_plan(HALF).step("train")
    for learner in (simulated, fewer):
        moved = (noised(learner, audited, SEED) - noised(learner, HALF)) * step
        units = [direction(SEED, number, len(moved)) for number in range(CANARIES)]
        taken = [number for number, unit in enumerate(units) if unit @ moved > clip / 2]
        assert np.abs(moved - clip * sum(units[number] for number in taken)).max() <= step  # rounding
        found.append(taken)
    assert len(simulated.histories(HALF.model)) == len(fewer.histories(HALF.model)) + 1
    assert found[0] == found[1] and 0 < len(found[0]) < CANARIES


def test_a_canary_takes_part_as_often_as_a_user(simulated: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rounds of 20 canaries: bounds of 4.5 standard errors, missed once in 70,000 runs of correct code."""
    taken = np.zeros((200, CANARIES))

    def count(clipped: ClippedSum, _plan: object, _seed: bytes, numbers: list[int]) -> ClippedSum:
        taken[now, numbers] = 1
        return clipped

    monkeypatch.setattr(learner_module, "add_canaries", count)
    plan, clipped = build_plan(with_canaries(HALF)), ClippedSum(np.zeros(1), 1.0)
    source = simulated._randomness(order(simulated, HALF), "partner-000", None)
    for now in range(len(taken)):
        learner_module._with_canaries(clipped, plan, SEED, source, f"run/{now}/0")
    assert abs(taken.mean() - 0.5) < 4.5 * 0.5 / math.sqrt(taken.size)
    assert abs(taken.sum(0).var(ddof=1) / 50 - 1) < 4.5 * math.sqrt(2 / (CANARIES - 1))
    assert taken.sum(1).var() > 0  # fixed batches would have as many in every round


def test_a_plan_with_canaries_is_not_trained_without_their_seed(simulated: Learner) -> None:
    with pytest.raises(PolicyViolationError, match="Expected the seed of the audit canaries"):
        noised(simulated, with_canaries(HALF))


def test_seeds_of_real_data_come_from_the_system(tmp_path: Path, cache: Path, simulated: Learner) -> None:
    real = Federation.of(tmp_path, cache=cache).learner()
    drawn = {real.canary_seed(order(real, with_canaries(changed(CONFIG, NO_PRIOR)))) for _ in range(3)}
    assert len(drawn) == 3 and {len(seed) for seed in drawn} == {SEED_BYTES}
    seeded = [simulated.canary_seed(order(simulated, with_canaries(SEEDED))) for _ in range(2)]
    assert seeded[0] == seeded[1]  # a simulation can be replayed
