"""The table of baselines: what holds for all of them, their tuning, and what they refuse."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from baseline_setting import ITEMS, histories_of, problem_of, walk

from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Histories
from simulations.baselines import Budget, tuning
from simulations.baselines.linear import Constant, everybody
from simulations.baselines.methods import METHODS, Method, Problem, Settings
from simulations.evaluation import Scorer

PARTS = (walk(ITEMS, 6, 5), histories_of([0, 1, 2], [3], [4, 5, 6, 0], first=6))
BUDGET = Budget(epsilon=8.0, delta=1e-5)
SMALL = {
    "sasrec": {"width": 8, "layers": 1, "max_events": 5, "epochs": 2, "batch": 4, "steps": 2},
    "als": {"factors": 4, "iterations": 3},
    "bpr": {"factors": 4, "iterations": 5},
    "federated_mf": {"factors": 4, "rounds": 3},
}
QUICK = [name for name in METHODS if name != "concatenated_text"]  # that one has tests of its own
PRIVATE = [name for name in QUICK if METHODS[name].private]


def fitted(name: str, budget: Budget | None, seed: int, histories: tuple[Histories, ...] = PARTS) -> Scorer:
    settings = {**METHODS[name].settings(budget)[0], **SMALL.get(name, {})}
    return METHODS[name].fit(problem_of(*histories), settings, budget, seed)


@pytest.mark.parametrize(("name", "budget"), [*((name, None) for name in QUICK), *((name, BUDGET) for name in PRIVATE)])
def test_a_method_is_deterministic_by_seed_and_scores_whoever_asks(name: str, budget: Budget | None) -> None:
    first, again = fitted(name, budget, 3), fitted(name, budget, 3)
    strangers = histories_of([], [4], [0, 0, 1], first=90)
    for histories in (*PARTS, strangers):
        scores = first(histories, everybody(histories))
        assert scores.shape == (len(histories), ITEMS)
        assert np.isfinite(scores).all()
        np.testing.assert_array_equal(scores, again(histories, everybody(histories)))


@pytest.mark.parametrize("name", PRIVATE)
def test_noise_changes_the_result_and_with_it_the_seed(name: str) -> None:
    asked = PARTS[1], everybody(PARTS[1])
    scores = [fitted(name, budget, seed)(*asked) for budget, seed in ((None, 0), (BUDGET, 0), (BUDGET, 1))]
    assert not np.allclose(scores[0], scores[1])
    assert not np.allclose(scores[1], scores[2])


@pytest.mark.parametrize("name", ["popularity", "item_knn", "ease", "ease_recency", "next_item_ridge", "frozen_bert"])
def test_closed_forms_of_the_partners_are_those_of_the_pool(name: str) -> None:
    pooled = histories_of(*(user.items.tolist() for part in PARTS for user in part))
    apart, together = fitted(name, None, 0), fitted(name, None, 0, (pooled,))
    np.testing.assert_allclose(apart(PARTS[1], everybody(PARTS[1])), together(pooled, np.arange(6, 9)), rtol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_batches_of_users_change_no_score(name: str) -> None:
    scorer, users = fitted(name, None, 0), everybody(PARTS[0])
    one_by_one = np.vstack([scorer(PARTS[0], users[k : k + 1]) for k in users])
    np.testing.assert_allclose(scorer(PARTS[0], users), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_that_cannot_do_without_vectors_are_those_that_say_so(name: str) -> None:
    method, blind = METHODS[name], replace(problem_of(*PARTS), vectors=None)
    assert method.reads_text == (name in ("frozen_bert", "concatenated_text"))
    if method.reads_text:
        with pytest.raises(ConfigError, match="vectors"):
            method.fit(blind, method.grid[0], None, 0)
    else:
        method.fit(blind, {**method.grid[0], **SMALL.get(name, {})}, None, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_grid_is_small_and_names_the_same_settings_throughout(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    for grid in (method.grid, method.private_grid):
        assert len(grid) <= 8
        assert len({frozenset(settings) for settings in grid}) <= 1
        assert len({tuple(sorted(settings.items())) for settings in grid}) == len(grid), "no setting twice"


def test_a_method_without_a_private_form_refuses_a_budget() -> None:
    with pytest.raises(ConfigError, match="method=als has no private form"):
        METHODS["als"].settings(BUDGET)


# --- tuning ---------------------------------------------------------------------------------------


def constant(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    """Everybody gets the item that the settings name."""
    return Constant(np.eye(ITEMS, dtype=np.float32)[int(settings["best"])])


def test_tuning_takes_the_best_of_the_grid_and_of_equals_the_first() -> None:
    method = Method("constant", constant, tuple({"best": best} for best in (1, 2, 6, 5)), private=False)
    histories = histories_of([0], [0], [1])
    targets = np.array([6, -1, 5], dtype=np.int32)
    found = tuning.trials(method, problem_of(histories), [targets], None, 0)
    assert [trial.ndcg for trial in found][2:] == [max(trial.ndcg for trial in found)] * 2
    assert tuning.tune(method, problem_of(histories), [targets], None, 0) == {"best": 6}


def test_tuning_pools_the_users_of_all_partners() -> None:
    method = Method("constant", constant, ({"best": 1}, {"best": 2}), private=False)
    targets = [np.array([1], dtype=np.int32), np.array([2, 2], dtype=np.int32)]
    problem = problem_of(histories_of([0]), histories_of([0], [3]))
    assert tuning.tune(method, problem, targets, None, 0) == {"best": 2}
    with pytest.raises(ConfigError, match="targets of each of partners=2, got targets=1"):
        tuning.tune(method, problem, targets[:1], None, 0)


# --- problems and budgets -------------------------------------------------------------------------


def test_a_problem_without_an_interaction_raises() -> None:
    with pytest.raises(EmptyHistoryError, match="at least one interaction"):
        problem_of(histories_of([], []))


def test_a_problem_that_contradicts_itself_raises() -> None:
    good = problem_of(histories_of([0]))
    with pytest.raises(ConfigError, match=f"items={ITEMS}, as in the catalogue"):
        Problem(good.histories, ITEMS + 1, good.catalogue, None, 10)
    with pytest.raises(ConfigError, match="at least 1, got population=0"):
        Problem(good.histories, ITEMS, good.catalogue, None, 0)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_promises_nothing_raises(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="epsilon > 0 and 0 < delta < 1"):
        Budget(epsilon, delta)


def test_frozen_bert_without_vectors_raises() -> None:
    good = problem_of(histories_of([0, 1]))
    blind = Problem(good.histories, ITEMS, good.catalogue, None, 10)
    with pytest.raises(ConfigError, match="vectors=None"):
        METHODS["frozen_bert"].fit(blind, METHODS["frozen_bert"].grid[0], None, 0)


@pytest.mark.parametrize("name", ["als", "bpr"])
def test_without_the_library_the_error_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"implicit.cpu.{name}", None)
    with pytest.raises(ConfigError, match=r"veilrec\[bench\]"):
        fitted(name, None, 0)
