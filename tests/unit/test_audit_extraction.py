"""Rung 7: texts and attributes are extracted from a model that learned them by heart, and from no other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from partner_setting import changed
from test_audit_membership import PLAIN, PRIVATE, a_run

from client.batches import BatchMaker
from client.data.histories import build_histories
from client.learner import Learner
from client.statistics import clipped_statistics
from shared.adapter import Release, flatten_parameters, load_parameters
from shared.config import ModelConfig, RunConfig
from shared.errors import ConfigError
from shared.model.behaviour import BehaviourStage, trainable_parameters
from shared.model.prior import solve, uninformed
from shared.privacy.accounting import build_plan
from shared.schema import Catalogue
from simulations.audit.estimators.roc import roc
from simulations.audit.findings import RungResult, ScoreSet, Verdict
from simulations.audit.retraining import chosen, events_of, federation, without
from simulations.audit.rungs.extraction import (
    People,
    _attribute_facts,
    _attribute_scores,
    _chance,
    _log_chances,
    _secret_scores,
    categories_of,
    extraction_rung,
)
from simulations.audit.rungs.extraction_secrets import ALTERNATIVES, Exposed, Secrets, exposed, placed, untrained_like
from simulations.audit.verdicts import bounded, decided, told_apart
from simulations.workspace import Workspace, simulated_key

MODEL = ModelConfig(adapted_layers=1, lora_rank=8, lora_alpha=16, head_rank=16, max_events=16, max_tokens=16)
CONFIG = RunConfig(seed=0, model=MODEL)
EACH = 10


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A partner with a catalogue of forty things; its own users are not asked about."""
    return Workspace.open(a_run(tmp_path_factory.mktemp("extraction"), PRIVATE) / "partners").learner(0)


@pytest.fixture(scope="module")
def secrets(learner: Learner) -> Secrets:
    """Twenty canary users."""
    return Secrets.draw(EACH, np.arange(len(learner.catalogue)), seed=4, repeats=(1, 4))


def release_of(learner: Learner, parameters: np.ndarray) -> Release:
    """A model with these parameters and a prior that knows nothing."""
    model = BehaviourStage(learner.workbench(MODEL, 0).text.base, MODEL, n_items=len(learner.catalogue))
    load_parameters(model, parameters)
    return Release(CONFIG, model, uninformed(len(learner.catalogue)), {})


@pytest.fixture(scope="module")
def learned(learner: Learner, secrets: Secrets) -> Release:
    """A model that was trained on the canaries that take part, by plain gradient steps, until it knows them."""
    bench, events = learner.workbench(MODEL, 0), secrets.events(learner.catalogue)
    here = [name for name, inside in zip(secrets.names, secrets.inside, strict=True) if inside]
    histories = build_histories(
        events.filter(pl.col("user_id").is_in(here)), learner.catalogue, simulated_key(), max_events=30, tie_seed=0
    )
    vectors = bench.text.encode(list(histories.review_texts), items=False)[:, 0]
    maker, settings = BatchMaker(histories, vectors, MODEL), CONFIG.training.model_copy(update={"drop_events": 0.0})
    model = untrained_like(release_of(learner, _start(learner)), len(learner.catalogue))
    batches = list(maker.training(np.arange(len(histories)), settings, b"k" * 32))
    flat = torch.zeros(len(learner.catalogue))
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), lr=0.005)
    for _ in range(30):
        optimizer.zero_grad()
        losses = [model(batch, bench.catalogue, flat.expand(*batch.items.shape, -1)).sum() for batch in batches]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return release_of(learner, flatten_parameters(model))


def _start(learner: Learner) -> np.ndarray:
    bench = learner.workbench(MODEL, 0)
    return flatten_parameters(BehaviourStage(bench.text.base, MODEL, n_items=len(learner.catalogue)))


def apart(found: Exposed, secrets: Secrets) -> tuple[float, float]:
    """Mean exposure of those in and out."""
    return float(found.exposures[secrets.inside].mean()), float(found.exposures[~secrets.inside].mean())


# --- texts ----------------------------------------------------------------------------------------


def test_no_two_canaries_share_a_text_and_nobody_wrote_a_decoy(secrets: Secrets) -> None:
    assert len(secrets) == 2 * EACH and len(secrets.decoys) == ALTERNATIVES - 1 >= 99
    assert len({*secrets.texts, *secrets.decoys}) == len(secrets.texts) + len(secrets.decoys)
    assert Counter(Secrets.draw(EACH, np.arange(10), seed=4).repeats.tolist()) == {1: EACH, 4: EACH, 16: EACH}


def test_a_canary_repeats_its_text_and_then_buys_a_rare_item(learner: Learner, secrets: Secrets) -> None:
    events = secrets.events(learner.catalogue)
    for k, name in enumerate(secrets.names):
        own = events.filter(pl.col("user_id") == name).sort("timestamp")
        assert own.get_column("review").to_list() == [secrets.texts[k]] * int(secrets.repeats[k]) + [""]
        assert own.get_column("item_id").to_list()[-1] == learner.catalogue.item_ids[int(secrets.items[k])]
        assert own.get_column("item_id").n_unique() == 2
    assert set(secrets.items.tolist()) <= set(range(20))  # the rarer half of forty
    assert secrets.carrier not in secrets.items.tolist()


def test_texts_that_were_learned_by_heart_are_found_first(learner: Learner, learned: Release, secrets: Secrets) -> None:
    found = exposed(learned, learner, secrets)
    inside, outside = apart(found, secrets)
    assert inside > 3.5
    # 4 standard errors of a mean of exposures at chance: false failure 6e-5.
    assert abs(outside - _chance()) < 4 * 1.44 / np.sqrt((~secrets.inside).sum())
    scores = _secret_scores(secrets, found)
    assert told_apart(scores).holds is False
    mixed = np.random.default_rng(0).permutation(np.concatenate([scores.inside, scores.outside]))
    shuffled = ScoreSet("shuffled", mixed[: len(scores.inside)], mixed[len(scores.inside) :])
    assert told_apart(shuffled).holds


def test_a_model_that_never_saw_the_texts_exposes_none(learner: Learner, secrets: Secrets) -> None:
    """Any other parameters; 4 standard errors: false failure 6e-5."""
    start = _start(learner)
    other = start + np.random.default_rng(6).normal(scale=0.05, size=start.size).astype(np.float32)
    found = exposed(release_of(learner, other), learner, secrets)
    assert abs(float(found.exposures.mean()) - _chance()) < 4 * 1.44 / np.sqrt(len(secrets))


def test_equal_scores_share_their_middle_rank() -> None:
    assert placed(np.zeros(ALTERNATIVES)) == ((ALTERNATIVES + 1) / 2, 0.0)
    assert placed(np.array([3.0, 1.0, 2.0, 0.0]))[0] == 1.0
    rank, margin = placed(np.array([0.0, 1.0, -1.0, 1.0, -1.0]))
    assert (rank, margin) == (3.0, 0.0)


@pytest.mark.parametrize("each, items", [(6, 10), (8, 3)])
def test_too_few_canaries_or_items_are_refused(each: int, items: int) -> None:
    with pytest.raises(ConfigError, match="at least 20 canaries and 4 items"):
        Secrets.draw(each, np.arange(items), seed=0)


# --- attributes -----------------------------------------------------------------------------------


def test_the_widest_category_counts() -> None:
    ids = ("a", "b", "c")
    catalogue = Catalogue(ids, ids, ids, ("Pets > Dogs", "Garden > Dogs", "Pets"))
    known, of_item = categories_of(catalogue)
    assert known == ("Garden", "Pets") and of_item.tolist() == [1, 0, 1]


def test_the_attribute_is_that_of_hidden_events_alone(tmp_path: Path) -> None:
    workspace = Workspace.open(a_run(tmp_path, PRIVATE) / "partners")
    events, catalogue = events_of(workspace), workspace.catalogue
    people = People.draw(20, events, catalogue, seed=0)
    assert people.public.group_by("user_id").len().get_column("len").to_list() == [3] * 20
    for k, name in enumerate(people.names):
        own = events.filter(pl.col("user_id") == name).sort("timestamp").get_column("item_id").to_list()
        public = people.public.filter(pl.col("user_id") == name).sort("timestamp").get_column("item_id").to_list()
        assert public == own[-3:]
        counted = Counter(int(people.of_item[catalogue.rows[item]]) for item in own[:-3])
        assert counted[int(people.attributes[k])] == max(counted.values())


def test_attributes_of_those_who_took_part_are_read_off_a_release_without_noise(tmp_path: Path) -> None:
    """A release of no rounds: the sum of what those who took part met, and the collaborative prior that it makes."""
    before = Workspace.open(a_run(tmp_path, PRIVATE, users=60, items=200) / "partners")
    events, items = events_of(before), len(before.catalogue)
    people = People.draw(60, events, before.catalogue, seed=0)
    world = federation(before, without(events, chosen(people.names, ~people.inside)), tmp_path / "world", 0)
    total = sum(
        clipped_statistics(one, items, PRIVATE.prior, "hybrid", clip_norm=1.0).values
        for one in world.histories(PRIVATE.model)
    )
    released = Release(PRIVATE, _untrained_model(world), solve("hybrid", np.asarray(total), items, 0.0), {})
    nothing = Release(PRIVATE, _untrained_model(world), uninformed(items), {})
    apart = federation(before, people.public, tmp_path / "apart", 0).learner(0)
    learned, plain = (_log_chances(one, apart, people) for one in (released, nothing))
    found = roc(_attribute_scores(people, learned, plain))
    assert found.auc - 4 * found.standard_error > 0.5
    told = _attribute_facts(people, learned, plain)
    assert told["accuracy_inside"] > told["accuracy_outside"]
    assert roc(_attribute_scores(people, plain, plain)).auc == 0.5
    mixed = roc(
        _attribute_scores(replace(people, inside=np.random.default_rng(1).permutation(people.inside)), learned, plain)
    )
    assert abs(mixed.auc - 0.5) < 4 * mixed.standard_error


def _untrained_model(world: Workspace) -> BehaviourStage:
    base = world.learner(0).workbench(PRIVATE.model, 0).text.base
    return BehaviourStage(base, PRIVATE.model, n_items=len(world.catalogue))


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, leak, expected",
    [
        ({}, 12.0, Verdict.FAIL),
        ({}, 0.0, Verdict.INCONCLUSIVE),
        (PLAIN, 12.0, Verdict.FAIL),
        (PLAIN, 0.0, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_follow_the_margins(changes: dict[str, Any], leak: float, expected: Verdict) -> None:
    rng, plan = np.random.default_rng(2), build_plan(changed(PRIVATE, changes))
    scores = [ScoreSet(name, rng.normal(size=90) + leak, rng.normal(size=100)) for name in ("texts", "attributes")]
    measured = [told_apart(one) for one in scores] if plan.mode == "none" else []
    assert decided(plan, bounded(scores, plan, 0), measured)[0] is expected


QUICK: dict[str, Any] = {
    "model": {"lora_rank": 8, "lora_alpha": 16, "head_rank": 32},
    "training": {"rounds": 60, "learning_rate": 0.004, "average_from": 0.9, "precision": "float32"},
    "prior": {"kind": "none"},
}
"""Learns by heart what two dozen people and the canaries do."""


def audited(root: Path, changes: dict[str, Any]) -> RungResult:
    """The rung on a real training of a small federation."""
    run = a_run(root, changed(changed(PRIVATE, QUICK), changes), users=24)
    return extraction_rung(run, root / "audit", 1, candidates=20, canaries=12)


def exposures(result: RungResult, side: str) -> float:
    """Mean over the numbers of repetitions."""
    return float(np.mean([one[f"exposure_{side}"] for one in result.facts["texts"]["by_repeats"]]))


@pytest.mark.soak
def test_an_unprotected_federation_gives_texts_away(tmp_path: Path) -> None:
    result = audited(tmp_path, PLAIN)
    assert result.verdict is Verdict.FAIL
    assert exposures(result, "inside") > exposures(result, "outside") + 2.0
    assert {one.name: one.holds for one in result.measurements}["user membership AUC, canary texts"] is False
    assert RungResult.from_json(result.to_json()).to_json() == result.to_json()


@pytest.mark.slow
def test_a_protected_federation_tells_neither_texts_nor_attributes(tmp_path: Path) -> None:
    """4 standard errors of the exposures and of the advantage: false failure 6e-5 each."""
    result = audited(tmp_path, {"training": {"rounds": 5}})
    assert result.verdict is Verdict.INCONCLUSIVE
    inside = sum(one["inside"] for one in result.facts["texts"]["by_repeats"])
    assert abs(exposures(result, "inside") - _chance()) < 4 * 1.44 / np.sqrt(inside)
    told = result.facts["attributes"]
    assert abs(told["advantage"]) <= 4 * max(told["advantage_standard_error"], 0.1)
