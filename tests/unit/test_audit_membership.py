"""Rung 5: the attacks with reference models tell members of an unprotected federation, and not of a protected one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from partner_setting import changed
from scipy.stats import norm

from client.data.ingest import RawData
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import ConfigError, DataError
from shared.privacy.accounting import build_plan
from simulations.audit.estimators.roc import roc
from simulations.audit.findings import RungResult, ScoreSet, Verdict
from simulations.audit.retraining import drawn, events_of, federation, of, without
from simulations.audit.rungs.membership import (
    Shadows,
    attacked,
    drawn_coins,
    lira,
    membership_rung,
    rmia,
)
from simulations.audit.verdicts import bounded, decided, told_apart
from simulations.workspace import Workspace, prepare

M = 300
PRIVATE = RunConfig(
    seed=0,
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=4, max_events=8, max_tokens=16),
    prior=PriorConfig(kind="hybrid"),
    training=TrainingConfig(rounds=2, sampling_rate=1.0, drop_events=0.0),
    privacy=PrivacyConfig(population=60, noise_multiplier=8.0, clip_norm=0.5),
    federation=FederationConfig(partners=3),
)
PLAIN: dict[str, Any] = {"privacy": {"mode": "none", "noise_multiplier": None}}


def shadows(leak: float, references: int, seed: int = 0) -> Shadows:
    """Models that fit a member better by `leak`, in units of what differs from model to model.

    Users differ by far more than that: an attack without references would be lost.
    """
    rng = np.random.default_rng(seed)
    coins = drawn_coins(references, M, rng)
    values = 10 * rng.normal(size=M) + leak * coins + rng.normal(size=coins.shape)
    return Shadows(coins[0], values[0], coins[1:], values[1:])


def area(scores: ScoreSet) -> float:
    """Under the ROC curve."""
    return roc(scores).auc


def test_references_come_in_complements_and_the_audited_model_hangs_on_none() -> None:
    coins = drawn_coins(4, 1000, np.random.default_rng(0))
    assert coins.shape == (5, 1000)
    assert (coins[1] ^ coins[2]).all() and (coins[3] ^ coins[4]).all()
    for one in (1, 3):  # 4 standard deviations: false failure 6e-5 each
        assert abs((coins[0] == coins[one]).mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_rmia_tells_members_as_well_as_one_reference_allows() -> None:
    """The distance is leak / sqrt(2) standard deviations; 4 standard errors of the area: false failure 6e-5."""
    expected = float(norm.cdf(2.0 / np.sqrt(2) / np.sqrt(2)))
    (scores,) = attacked(shadows(2.0, 2))
    assert area(scores) == pytest.approx(expected, abs=4 * roc(scores).standard_error)


def test_the_ratio_ranks_people_as_the_share_of_others_it_dominates() -> None:
    """RMIA by its definition, for several gammas: never another order, only more ties."""
    given = shadows(1.0, 2, seed=3)
    ratios = rmia(given)
    for gamma in (1.0, 2.0, 10.0):
        share = (np.exp(ratios[:, None] - ratios[None, :]) >= gamma).mean(axis=1)
        order = np.argsort(ratios)
        assert (np.diff(share[order]) >= 0).all()


def test_lira_is_used_from_sixteen_references_on_and_is_better_than_a_loss_alone() -> None:
    assert [one.name for one in attacked(shadows(1.0, 14))] == ["RMIA"]
    given = shadows(2.0, 16)
    both = {one.name: area(one) for one in attacked(given)}
    inside = given.inside
    alone = area(ScoreSet("loss", given.target[inside], given.target[~inside]))
    assert both["LiRA"] > 0.85 and alone < 0.65
    assert both["LiRA"] > both["RMIA"] - 0.05


def test_shuffled_labels_are_at_chance() -> None:
    """4 standard errors: false failure 6e-5 each."""
    given, rng = shadows(3.0, 16), np.random.default_rng(5)
    mixed = Shadows(rng.permutation(given.inside), given.target, given.references_inside, given.references)
    for one in attacked(mixed):
        assert abs(area(one) - 0.5) < 4 * roc(one).standard_error
    assert all(area(one) > 0.9 for one in attacked(given))


def test_swapped_labels_bound_nothing() -> None:
    given = shadows(3.0, 2)
    swapped = Shadows(~given.inside, given.target, given.references_inside, given.references)
    plan = build_plan(changed(PRIVATE, PLAIN))
    assert all(one.lower_bound == 0 for one in bounded(attacked(swapped), plan, 0))


def verdict(leak: float, config: RunConfig) -> Verdict:
    """Of synthetic models under a plan."""
    plan, scores = build_plan(config), attacked(shadows(leak, 2))
    measured = [told_apart(one) for one in scores] if plan.mode == "none" else []
    return decided(plan, bounded(scores, plan, 0), measured)[0]


def test_a_leak_above_the_claim_fails_and_none_is_inconclusive() -> None:
    assert verdict(8.0, PRIVATE) is Verdict.FAIL
    assert verdict(0.0, PRIVATE) is Verdict.INCONCLUSIVE
    assert verdict(8.0, changed(PRIVATE, PLAIN)) is Verdict.FAIL
    assert verdict(0.5, changed(PRIVATE, PLAIN)) is Verdict.INCONCLUSIVE


def test_lira_knows_nothing_of_models_that_know_nothing() -> None:
    given = shadows(0.0, 16, seed=9)
    scores = lira(given)
    one = ScoreSet("LiRA", scores[given.inside], scores[~given.inside])
    assert abs(area(one) - 0.5) < 4 * roc(one).standard_error


@pytest.mark.parametrize("references", [0, 1, 3])
def test_references_that_are_no_pairs_are_refused(tmp_path: Path, references: int) -> None:
    with pytest.raises(ConfigError, match="even number of references"):
        membership_rung(tmp_path, tmp_path, 0, references=references)


# --- a federation ---------------------------------------------------------------------------------


def a_run(root: Path, config: RunConfig, users: int = 60, items: int = 40) -> Path:
    """The folder of a run, as far as an audit reads it: three partners with users of 10 to 14 events."""
    rng = np.random.default_rng(1)
    names = [f"item {k:02d}" for k in range(items)]
    rows = [
        (f"user {u:03d}", names[int(item)], age, "purchase", None, "", u % 3)
        for u in range(users)
        for age, item in enumerate(rng.choice(items, int(rng.integers(10, 15)), replace=False))
    ]
    kinds = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String, pl.Int32)
    columns = ("user_id", "item_id", "timestamp", "event", "rating", "review", "partner")
    events = pl.DataFrame(rows, schema=dict(zip(columns, kinds, strict=True)), orient="row")
    things = ("lamp", "boat", "fork", "drum", "rope")
    catalogue = pl.DataFrame(
        {
            "item_id": names,
            "title": [f"{things[k % 5]} {k}" for k in range(items)],
            "text": [f"A {things[k % 5]}." for k in range(items)],
            "categories": [f"{things[k % 5]}s > {k}" for k in range(items)],
        }
    )
    prepare(RawData("things", events.drop("partner"), catalogue), events, root / "partners", seed=0, which="nothing")
    (root / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return root


def test_a_federation_without_some_users_has_all_others_as_they_were(tmp_path: Path) -> None:
    before = Workspace.open(a_run(tmp_path, PRIVATE) / "partners")
    events = events_of(before)
    names = drawn(events, 20, np.random.default_rng(0))
    assert len(names) == 20
    less = federation(before, without(events, names), tmp_path / "less", 0)
    assert less.catalogue.digest == before.catalogue.digest
    assert events_of(less).equals(without(events, names))
    assert set(of(events, names).get_column("user_id")) == set(names)


def test_a_federation_of_short_histories_cannot_be_asked(tmp_path: Path) -> None:
    before = Workspace.open(a_run(tmp_path, PRIVATE) / "partners")
    with pytest.raises(DataError, match="at least 20 users with 50 events"):
        drawn(events_of(before), 20, np.random.default_rng(0), least=50)


def audited(root: Path, config: RunConfig) -> RungResult:
    """The rung on a real training of the small federation."""
    return membership_rung(a_run(root, config), root / "audit", 1, candidates=60)


@pytest.mark.slow
def test_members_of_an_unprotected_federation_are_found(tmp_path: Path) -> None:
    result = audited(tmp_path, changed(PRIVATE, {**PLAIN, "training": {"rounds": 3}}))
    assert result.verdict is Verdict.FAIL
    assert result.facts["auc"]["RMIA"] > 0.9
    assert RungResult.from_json(result.to_json()).to_json() == result.to_json()


@pytest.mark.slow
def test_members_of_a_protected_federation_are_not_found(tmp_path: Path) -> None:
    """60 users: the standard error of the area is 0.075; 3 of them: false failure 1e-3, at this seed none."""
    result = audited(tmp_path, PRIVATE)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert abs(result.facts["auc"]["RMIA"] - 0.5) < 0.23
    assert result.power is not None and result.power < 0.8
