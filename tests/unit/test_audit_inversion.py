"""Rung 6: the attacks read bare updates of a real small partner, nothing under masks, and notice masks that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from partner_setting import changed
from scipy.stats import binom

from client.data.ingest import RawData, write
from client.learner import Learner
from client.premises import write_partner
from client.secure_sum import MaskingSession
from shared.adapter import Release as Adapter
from shared.adapter import load_parameters
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import ConfigError, DataError
from shared.hazmat.masking import add_mask
from shared.model.behaviour import BehaviourStage, trainable_parameters
from shared.model.prior import uninformed
from shared.privacy.accounting import build_plan
from simulations.audit.findings import RungResult, Verdict
from simulations.audit.rungs import inversion, inversion_attacks
from simulations.audit.rungs.inversion import Effort, inversion_rung
from simulations.audit.rungs.inversion_attacks import Learned, areas, p_value
from simulations.audit.rungs.inversion_masks import byte_p_value, uniform

ITEMS, USERS = 48, 80
SMALL = Effort(sizes=(1, 4), groups=12, shadows=30, victims=50)
LEAST = Effort(sizes=(1,), groups=10, shadows=20, victims=30)
ALARM = 1e-4
CONFIG = RunConfig(
    seed=0,
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=4, max_events=8, max_tokens=16),
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=2, sampling_rate=1.0, drop_events=0.0),
    privacy=PrivacyConfig(population=USERS, noise_multiplier=2.0, clip_norm=0.5),
    federation=FederationConfig(partners=3),
)
NO_NOISE: dict[str, Any] = {"privacy": {"mode": "none"}}
NO_MASKS: dict[str, Any] = {"federation": {"secure_sum": False}}


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A partner with 80 users of four to seven items each."""
    folder, rng = tmp_path_factory.mktemp("inversion"), np.random.default_rng(0)
    things, kinds = ("lamp", "boat", "fork", "drum", "rope", "soap", "wine", "coat"), ("red", "old", "tiny", "loud")
    titles = [f"{kinds[k % 4]} {things[k // 4 % 8]} {k}" for k in range(ITEMS)]
    rows = [
        (f"user {u}", f"item {int(item):02d}", age, "purchase", None, "")
        for u in range(USERS)
        for age, item in enumerate(rng.choice(ITEMS, int(rng.integers(4, 8)), replace=False))
    ]
    names = ("user_id", "item_id", "timestamp", "event", "rating", "review")
    types = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    events = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
    items = pl.DataFrame(
        {"item_id": [f"item {k:02d}" for k in range(ITEMS)], "title": titles, "text": titles, "categories": ""}
    )
    write(RawData("things", events, items), folder)
    return Learner(
        write_partner(folder, {"name": "partner-a", "simulated": True, "cache": str(folder / "cache.sqlite")}), "cpu"
    )


@pytest.fixture(scope="module")
def adapter(learner: Learner) -> Adapter:
    """As if it had been trained: B is not zero any more."""
    bench = learner.workbench(CONFIG.model, 0)
    model = BehaviourStage(bench.text.base, CONFIG.model, n_items=ITEMS)
    size = sum(p.numel() for p in trainable_parameters(model).values())
    load_parameters(model, np.random.default_rng(3).normal(scale=0.03, size=size).astype(np.float32))
    return Adapter(CONFIG, model, uninformed(ITEMS), {})


def audit(learner: Learner, changes: dict[str, Any] | None = None, **told: Any) -> RungResult:
    """The rung over a small effort."""
    config = changed(CONFIG, changes or {})
    return inversion_rung(learner, config, build_plan(config), 5, **{"effort": SMALL, **told})


def outcome(result: RungResult, release: str, users: int, view: str, attack: str) -> dict[str, Any]:
    """One line of the table."""
    wanted = {"release": release, "users": users, "view": view, "attack": attack}
    (found,) = (one for one in result.facts["outcomes"] if wanted.items() <= one.items())
    return dict(found)


@pytest.fixture(scope="module")
def result(learner: Learner, adapter: Adapter) -> RungResult:
    """The rung on the installed code."""
    return audit(learner, adapter=adapter)


def test_bare_updates_are_read_and_masked_ones_are_not(result: RungResult) -> None:
    assert (result.verdict, result.power) == (Verdict.PASS, 1.0)
    assert result.facts["releases"] == ["prior", "first round", "last round"]
    assert all(one.holds for one in result.measurements)
    for release, attack in (("prior", "masses"), ("first round", "structure"), ("last round", "structure")):
        bare, masked = (outcome(result, release, 1, view, attack) for view in ("raw", "leaves"))
        assert bare["recall"] > 0.6 and masked["recall"] < 0.3, release
        assert bare["chance_recall"] < 0.25
    assert outcome(result, "prior", 1, "raw", "masses")["recall"] == 1.0
    assert outcome(result, "last round", 1, "clipped", "matching")["recall"] == 1.0


def test_the_result_survives_its_way_through_json(result: RungResult) -> None:
    told = result.to_json()
    assert RungResult.from_json(told).to_json() == told
    assert {one.name.split(", ")[1] for one in result.scores} == {"prior", "first round", "last round"}


def test_lora_inputs_are_silent_while_b_is_zero_and_speak_after(result: RungResult) -> None:
    """In round one the structure attack reads what came next off the head alone; later also what was read."""
    first, last = (outcome(result, name, 1, "raw", "structure")["auc"] for name in ("first round", "last round"))
    assert last > first


def test_all_but_the_masks_repeat(learner: Learner, result: RungResult) -> None:
    again = audit(learner)
    for attack in ("structure", "learned", "matching"):
        one, two = (outcome(each, "first round", 4, "noised", attack) for each in (again, result))
        assert one["auc"] == two["auc"]
    one, two = (outcome(each, "first round", 4, "leaves", "matching") for each in (again, result))
    assert one["auc"] != two["auc"]


@pytest.mark.parametrize("changes", [{}, NO_NOISE], ids=["under noise", "without noise"])
def test_masks_that_are_not_put_on_are_found(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(MaskingSession, "mask", lambda _, ring: ring.copy())
    result = audit(learner, changes, effort=LEAST)
    assert result.verdict is Verdict.FAIL
    failed = {one.name.split(",")[0] for one in result.measurements if not one.holds}
    assert any(name.startswith("bytes of") for name in failed)
    if changes:  # then the items themselves are read from what leaves
        assert any(name.startswith("items of 1 read from what leaves by structure") for name in failed)


def test_a_plan_without_noise_and_masks_fails(learner: Learner) -> None:
    result = audit(learner, {**NO_NOISE, **NO_MASKS}, effort=LEAST)
    assert result.verdict is Verdict.FAIL
    assert outcome(result, "first round", 1, "leaves", "structure")["recall"] > 0.6


def test_a_local_plan_has_no_masks_to_judge(learner: Learner) -> None:
    result = audit(learner, {"privacy": {"mode": "local"}, **NO_MASKS}, effort=LEAST)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "epsilon" in result.why


def test_attacks_that_read_nothing_never_pass(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for attack in (inversion_attacks.Masses, inversion_attacks.Structure, inversion_attacks.Learned):
        monkeypatch.setattr(attack, "score", lambda *_: rng.random(ITEMS))
    result = audit(learner, effort=LEAST)
    assert (result.verdict, result.power) == (Verdict.INCONCLUSIVE, 0.0)


def test_too_few_users_are_refused(learner: Learner) -> None:
    with pytest.raises(DataError, match="Expected more than 64 users"):
        inversion_rung(learner, CONFIG, build_plan(CONFIG), 0)


@pytest.mark.parametrize("told", [{"sizes": (4, 16)}, {"sizes": ()}, {"groups": 9}])
def test_an_effort_that_could_find_nothing_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Expected sizes with 1 and groups >= 10"):
        Effort(**told)


# --- the masks' own checks ------------------------------------------------------------------------


@pytest.fixture
def sums() -> list[np.ndarray]:
    """Twelve noised sums in the ring."""
    rng = np.random.default_rng(1)
    return [rng.normal(scale=300, size=4000).astype(np.int64).astype(np.int32).view(np.uint32) for _ in range(12)]


def masked(sums: list[np.ndarray], seed_of: Callable[[int], bytes]) -> list[np.ndarray]:
    """The sums under key streams."""
    made = [one.copy() for one in sums]
    for k, one in enumerate(made):
        add_mask(one, seed_of(k), 1)
    return made


def failing(leaving: list[np.ndarray], below: list[np.ndarray]) -> set[str]:
    """What catches it."""
    return {one.catches for one in uniform("x", leaving, below, ALARM) if not one.holds}


def test_masks_of_fresh_seeds_hold(sums: list[np.ndarray]) -> None:
    assert failing(masked(sums, lambda k: bytes([k]) * 32), sums) == set()
    assert byte_p_value(sums) < ALARM


def test_a_mask_used_twice_is_found(sums: list[np.ndarray]) -> None:
    assert failing(masked(sums, lambda k: bytes([k // 2]) * 32), sums) >= {"a mask used twice"}


def test_masks_of_few_bits_are_found(sums: list[np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    weak = [one + rng.integers(0, 2**24, one.size).astype(np.uint32) for one in sums]
    assert "masks that are missing or not uniform" in failing(weak, sums)


# --- the statistics -------------------------------------------------------------------------------


def shuffled_matrices(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(8)
    popular = rng.random(40)
    for _ in range(count):
        truth = rng.random((12, 40)) < popular  # what all groups have in common must not look like knowledge
        truth[:, 0], truth[:, 1] = True, False
        yield areas(rng.random((12, 40)) + popular, truth)


def test_scores_that_know_popularity_alone_are_at_chance() -> None:
    """P(more than 21 of 200 below 0.05) < 1e-3 where p-values are right."""
    false = sum(p_value(matrix, 9, 999) <= 0.05 for matrix in shuffled_matrices(200))
    assert binom.sf(21, 200, 0.05) < 1e-3
    assert false <= 21


def test_scores_of_the_wrong_group_are_at_chance_and_of_the_right_one_are_not() -> None:
    rng = np.random.default_rng(10)
    truth = rng.random((12, 40)) < 0.2
    truth[:, 0], truth[:, 1] = True, False
    scores = truth + rng.normal(scale=0.5, size=truth.shape)
    assert p_value(areas(scores, truth), 0) < ALARM
    assert p_value(areas(scores, np.roll(truth, 1, axis=0)), 0) > 0.01


def test_areas_count_ties_half() -> None:
    truth = np.array([[True, False, False, True]])
    assert areas(np.zeros((1, 4)), truth)[0, 0] == 0.5
    assert areas(np.array([[3.0, 1.0, 1.0, 1.0]]), truth)[0, 0] == 0.75


def test_the_learned_attack_on_shuffled_labels_is_at_chance() -> None:
    rng = np.random.default_rng(11)
    items = rng.random((90, 30)) < 0.2
    items[:, 0], items[:, 1] = True, False
    gradients = (items @ rng.normal(size=(30, 200)) + 0.1 * rng.normal(size=(90, 200))).astype(np.float32)
    known, victims = gradients[:60], gradients[60:]

    def p(labels: np.ndarray) -> float:
        attack = Learned(known, labels)
        return p_value(areas(np.array([attack.score(g.astype(float), 1, 0.0) for g in victims]), items[60:]), 0)

    assert p(items[:60]) < ALARM
    assert p(items[rng.permutation(60)]) > 0.01


def test_the_rung_shares_its_false_alarms(result: RungResult) -> None:
    """Every measurement of what leaves is a test at an even part of the rung's level."""
    tests = [one for one in result.measurements if one.expected.startswith(("<=", ">="))]
    level = inversion.FALSE_ALARM / len(tests)
    assert {one.expected for one in tests if one.expected.startswith(">=")} == {f">= {level:.1e}"}
