"""Reranking is measured as the model is, what is chosen was chosen elsewhere, and the metrics that it adds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

from client.ranking.business_rules import Arrange, CapPerGroup, Pin
from client.ranking.rerank import read_settings
from client.ranking.rerank_stages import Exclude, Groups, ItemFacts, LongTailBoost
from shared import metrics
from shared.errors import DataError, EmptyHistoryError
from shared.schema import Catalogue, Histories
from simulations.baselines import item_counts
from simulations.benchmarks.rerank import (
    LONG_TAIL,
    NONE,
    Question,
    Row,
    Trial,
    chosen_strength,
    grid,
    measured,
    mix,
    reranked,
    retrieve,
    rows_of,
    tuning_run,
)
from simulations.benchmarks.rerank_command import rerank as rerank_command
from simulations.evaluation import evaluate
from simulations.segments import Part, rank_all
from simulations.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import HistoriesOf

ITEMS, USERS, CANDIDATES = 40, 60, 15
NAMES = tuple(f"i{row:02d}" for row in range(ITEMS))
CATALOGUE = Catalogue(NAMES, NAMES, NAMES, tuple("even" if row % 2 else "odd" for row in range(ITEMS)))


def popular_first(histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
    """Low rows first, with a little of each user's own; no two scores are equal."""
    own = np.random.default_rng(1).normal(size=(len(histories), ITEMS))[users]
    return (-0.3 * np.arange(ITEMS) + own).astype(np.float32)


@pytest.fixture(scope="module")
def parts(histories_of: HistoriesOf) -> list[Part]:
    """Two partners; low rows are popular, and the held-out items are anywhere."""
    rng, found = np.random.default_rng(0), []
    chance = 1 / (1 + np.arange(ITEMS))
    for _ in range(2):
        met = [rng.choice(ITEMS, 8, replace=False, p=chance / chance.sum()) for _ in range(USERS // 2)]
        targets = np.array([rng.choice(np.setdiff1d(np.arange(ITEMS), own)) for own in met], dtype=np.int32)
        targets[3] = -1
        found.append(Part(histories_of([own.tolist() for own in met]), targets))
    return found


@pytest.fixture(scope="module")
def question(parts: list[Part]) -> Question:
    before, candidates = retrieve(lambda *_: popular_first, parts, CANDIDATES)
    counts = item_counts([part.histories for part in parts], ITEMS)
    vectors = np.random.default_rng(2).normal(size=(ITEMS, 8)).astype(np.float32)
    facts = ItemFacts(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        (np.log(counts + 1) - np.log(counts + 1).mean()).astype(np.float32),
        np.arange(ITEMS) * 86_400.0,
        {"category": Groups.of(CATALOGUE.categories)},
    )
    return Question(before, candidates, facts, CATALOGUE, counts, now=ITEMS * 86_400.0)


# --- ranks ----------------------------------------------------------------------------------------


def test_without_a_stage_every_rank_is_that_of_the_evaluation(question: Question, parts: list[Part]) -> None:
    whole = rank_all(lambda *_: popular_first, parts)
    same = reranked(question, ())
    assert same.ranks.tolist() == whole.ranks.tolist()
    assert same.top.tolist() == whole.top.tolist()
    assert (same.ranks >= CANDIDATES).any(), "some targets are no candidates, or nothing was tested"


def test_a_rank_is_that_of_the_whole_order_with_the_reranked_first(question: Question, parts: list[Part]) -> None:
    after = reranked(question, (LongTailBoost(0.8),))
    boosted: dict[int, NDArray[np.float32]] = {}
    asked = 0
    for k, part in enumerate(parts):
        users = np.flatnonzero(part.targets >= 0)
        scores = popular_first(part.histories, users)
        for row in range(len(users)):
            listed = LongTailBoost(0.8)(question.candidates[asked], question.facts).rows
            scores[row, listed] = 1000 - np.arange(len(listed))  # above all that was not retrieved
            asked += 1
        boosted[k] = scores
    ranks = [
        evaluate(lambda *_, k=k: boosted[k], part.histories, part.targets).ranks.tolist()
        for k, part in enumerate(parts)
    ]
    assert after.ranks.tolist() == ranks[0] + ranks[1]


def test_retrieval_in_small_batches_is_the_same(
    parts: list[Part], question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.benchmarks.rerank.USERS_AT_ONCE", 7)
    before, candidates = retrieve(lambda *_: popular_first, parts, CANDIDATES)
    assert before.ranks.tolist() == question.before.ranks.tolist()
    for one, other in zip(candidates, question.candidates, strict=True):
        assert (one.rows.tolist(), one.scores.tolist()) == (other.rows.tolist(), other.scores.tolist())


def test_a_held_out_item_that_a_stage_takes_away_is_last_of_all(question: Question) -> None:
    target = int(question.before.targets[int(np.argmin(question.before.ranks))])
    after = reranked(question, (Exclude((target,)),))
    hit = question.before.targets == target
    retrieved = np.array([target in one.rows for one in question.candidates])
    assert (after.ranks[hit & retrieved] == question.before.candidates[hit & retrieved] - 1).all()
    assert after.ranks[~hit].sum() <= question.before.ranks[~hit].sum()


def test_an_answer_that_is_pinned_counts_as_found(question: Question) -> None:
    after = reranked(question, (Arrange((Pin(39, 1),)),))
    assert (after.ranks[question.before.targets == 39] == 0).all() and (question.before.targets == 39).any()


def test_a_list_that_a_cap_cuts_short_has_empty_places(question: Question) -> None:
    after = reranked(question, (Arrange(caps=(CapPerGroup("category", 2),)),))
    assert (np.count_nonzero(after.top >= 0, axis=1) == 4).all()


# --- figures --------------------------------------------------------------------------------------


def test_a_row_tells_what_the_setting_gave_and_cost(question: Question) -> None:
    none, boosted = rows_of(question, [grid()[0], Trial(LONG_TAIL, 0.8, {"long_tail": {"strength": 0.8}})])
    assert none["stage"] == NONE and none["ndcg_change"] == [0, 0, 0]
    assert none["ndcg@10"] == metrics.ndcg(question.before.ranks)
    assert boosted["long_tail@10"] > 1.2 * none["long_tail@10"]
    assert boosted["novelty@10"] > none["novelty@10"]
    assert boosted["ndcg_change"][0] == pytest.approx(boosted["ndcg@10"] - none["ndcg@10"])
    assert boosted["ndcg_change"][1] < boosted["ndcg_change"][0] < boosted["ndcg_change"][2]
    assert sum(boosted["exposure"]) == pytest.approx(1)
    assert boosted["exposure"][0] < none["exposure"][0]
    assert json.loads(json.dumps(boosted)) == boosted


def test_each_stage_moves_its_own_figure(question: Question) -> None:
    base = reranked(question, ())

    def figures(**tree: object) -> Row:
        return measured(question, Trial("some", None, tree), base)

    none = figures()
    assert figures(diversify={"trade_off": 0.2})["diversity@10"] > none["diversity@10"] + 0.05
    assert figures(freshen={"strength": 10, "half_life_days": 10})["age_days@10"] < none["age_days@10"] - 1


def test_every_setting_of_the_grid_is_one_that_a_request_may_hold() -> None:
    for trial in [*grid(), mix()]:
        read_settings(trial.settings)


def test_where_no_times_are_known_there_is_no_age(question: Question) -> None:
    timeless = replace(question, facts=replace(question.facts, added=None))
    assert rows_of(timeless, [grid()[0]])[0]["age_days@10"] is None


# --- the choice -----------------------------------------------------------------------------------


def row(stage: str, value: float | None, tail: float, ndcg: float) -> Row:
    return {"stage": stage, "value": value, "long_tail@10": tail, "ndcg@10": ndcg}


def test_of_what_doubles_the_long_tail_the_most_accurate_is_chosen() -> None:
    rows = [
        row(NONE, None, 0.04, 0.100),
        row(LONG_TAIL, 0.1, 0.07, 0.110),
        row(LONG_TAIL, 0.2, 0.08, 0.097),
        row(LONG_TAIL, 0.3, 0.12, 0.099),
        row(LONG_TAIL, 0.4, 0.20, 0.099),
        row("diversify", 0.9, 0.20, 0.200),
    ]
    assert chosen_strength(rows) == 0.3


def test_where_every_doubling_costs_too_much_nothing_is_chosen() -> None:
    rows = [row(NONE, None, 0.04, 0.1), row(LONG_TAIL, 0.1, 0.07, 0.1), row(LONG_TAIL, 0.5, 0.09, 0.0949)]
    with pytest.raises(DataError, match="2 times the long tail at 5%"):
        chosen_strength(rows)


@pytest.mark.slow
def test_a_tuning_run_has_not_seen_what_the_run_is_asked_for(tmp_path: Path) -> None:
    """A whole small run and its tuning run; then the command."""
    from simulations.simulate import Request, run, start

    settings = {"privacy": {"mode": "none"}, "training": {"rounds": 1}}
    request = Request("marketplace", 2, "iid", 0, "inprocess", 80, 136, False, settings)
    run(start(request, tmp_path / "run"), show=False)
    release, split = tuning_run(tmp_path / "run", tmp_path / "tune")
    again, _ = tuning_run(tmp_path / "run", tmp_path / "tune")
    assert again.fingerprint == release.fingerprint, "opened, not trained again"

    workspace, model = Workspace.open(tmp_path / "run" / "partners"), release.config.model
    for k in range(2):
        whole, asked = workspace.learner(k).histories(model), workspace.targets(k, model)
        known, tuned = split.learner(k).histories(model), split.targets(k, model)
        assert known.users == whole.users
        for user in np.flatnonzero(tuned >= 0):
            left = set(known[int(user)].items.tolist())
            assert not {int(asked[user]), int(tuned[user])} & left
            assert left | {int(tuned[user])} == set(whole[int(user)].items.tolist())
            assert whole[int(user)].items[-1] == tuned[user]

    app = Typer()
    app.command()(rerank_command)
    told = CliRunner().invoke(app, ["--run", str(tmp_path / "run"), "--json"])
    assert told.exit_code == 0
    rows = json.loads(told.stdout)["results"]
    assert [one["stage"] for one in rows] == [trial.stage for trial in [*grid(), mix()]]
    document = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["federated"]
    assert {name: rows[0][name] for name in document} == pytest.approx(document), "the same figures as the run's own"
    table = CliRunner().invoke(app, ["--run", str(tmp_path / "run")], env={"COLUMNS": "80"})
    assert table.exit_code == 0 and "long_tail 0.5" in table.stdout and "NDCG@10" in table.stdout


# --- metrics --------------------------------------------------------------------------------------


def test_exposure_is_discounted_by_place_and_adds_up() -> None:
    top, groups = np.array([[0, 1, 2], [2, 0, -1]]), np.array([0, 1, 1])
    discount = [1, 1 / np.log2(3), 0.5]
    first = discount[0] + discount[1]
    second = discount[1] + discount[2] + discount[0]
    assert metrics.exposure(top, groups, 3).tolist() == pytest.approx(
        [first / (first + second), second / (first + second), 0]
    )
    with pytest.raises(EmptyHistoryError):
        metrics.exposure(np.array([[-1]]), groups, 2)


def test_fifths_of_the_catalogue_do_not_depend_on_the_order_of_equals() -> None:
    assert metrics.popularity_quantiles(np.array([9, 1, 7, 5, 3])).tolist() == [0, 4, 1, 2, 3]
    assert metrics.popularity_quantiles(np.array([2, 2, 2, 1]), 2).tolist() == [0, 0, 0, 1]
    assert metrics.popularity_quantiles(np.array([1, 2, 2, 2]), 2).tolist() == [1, 0, 0, 0]


def test_diversity_of_a_list_is_the_mean_over_its_pairs() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    assert metrics.intra_list_diversity(np.array([[0, 2]]), vectors) == pytest.approx(0)
    assert metrics.intra_list_diversity(np.array([[0, 1, 2]]), vectors) == pytest.approx(2 / 3)
    assert metrics.intra_list_diversity(np.array([[0, 3, -1], [0, 2, -1], [1, -1, -1]]), vectors) == pytest.approx(1)
    with pytest.raises(EmptyHistoryError, match="two items"):
        metrics.intra_list_diversity(np.array([[0, -1]]), vectors)


def test_a_mean_over_places_passes_over_what_is_not_known() -> None:
    assert metrics.mean_listed(np.array([[0, 1, 2], [0, -1, -1]]), np.array([1.0, np.nan, 4.0])) == 2
    with pytest.raises(EmptyHistoryError, match="with a value"):
        metrics.mean_listed(np.array([[1]]), np.array([1.0, np.nan]))
