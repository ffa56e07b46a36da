"""Cells of a quality study: tuned once, measured once, the same again, and nothing before the canary is silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quality_setting import PARTNERS, shop_folder, tiny_study

from shared.errors import ConfigError, RankingError
from shared.schema import Histories
from simulations.baselines import Problem
from simulations.baselines.methods import METHODS, Method
from simulations.benchmarks.quality import central, federated, runner
from simulations.benchmarks.quality.cache import Cache, Result
from simulations.benchmarks.quality.canary import CHANCE, Canary
from simulations.benchmarks.quality.runner import Outcome, run_study
from simulations.evaluation import Evaluation, Scorer, evaluate


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def quiet_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second less a test; the canary has tests of its own."""
    silent = Canary(CHANCE, 0.12, {})
    monkeypatch.setattr(runner, "check_evaluator", lambda hold_out, evaluate: silent)


@pytest.fixture(scope="module")
def whole(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Federated, prior only, alone and popularity: the cache, and what came out."""
    folder = tmp_path_factory.mktemp("cache")
    study = tiny_study(shop, ["federated", "prior_only", "local_only", "popularity"])
    return folder, run_study(study, Cache(folder))


def figures(found: Result) -> dict[str, float]:
    return dict(found.metrics)


def test_a_study_measures_all_of_its_cells_and_leaves_nothing_behind(whole: tuple[Path, Outcome]) -> None:
    folder, outcome = whole
    assert [one.cell.method for one in outcome.results] == ["popularity", "federated", "prior_only", "local_only"]
    assert outcome.cells == 4
    assert outcome.canary.hit_rates
    assert (outcome.sizes["shop"].users, outcome.sizes["shop"].items) == (36, 24)
    users = outcome.results[0].users
    assert all(np.array_equal(one.users, users) for one in outcome.results)
    federated_, prior = outcome.results[1:3]
    assert not np.array_equal(federated_.ranks, prior.ranks)
    assert federated_.settings["training"]["rounds"] == 2
    assert not [entry for entry in (folder / "running").iterdir() if entry.is_dir()]


def test_partners_alone_are_not_the_federation(whole: tuple[Path, Outcome]) -> None:
    ours, alone = whole[1].results[1], whole[1].results[3]
    assert not np.array_equal(ours.ranks, alone.ranks)


def test_a_run_that_was_killed_goes_on_and_ends_as_if_nothing_had_been(
    shop: Path, whole: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_canary: None
) -> None:
    study = tiny_study(shop, ["federated", "prior_only"])
    with monkeypatch.context() as killing:
        killing.setattr(federated, "load_release", _killed)
        with pytest.raises(Killed):
            run_study(study, Cache(tmp_path))
    told: list[str] = []
    with monkeypatch.context() as watched:
        watched.setattr(federated, "prepare", _killed)  # the partners are there
        outcome = run_study(study, Cache(tmp_path), tell=told.append)
    assert told[0] == "1 of 2: shop, iid, federated, no privacy, seed=0"
    for again, first in zip(outcome.results, whole[1].results[1:3], strict=True):
        assert again.cell == first.cell
        assert figures(again) == figures(first)
        assert np.array_equal(again.ranks, first.ranks)


def _killed(*given: object, **named: object) -> Any:
    raise Killed


def test_half_a_federation_is_made_anew(tmp_path: Path, shop: Path, quiet_canary: None) -> None:
    study = tiny_study(shop, ["federated"], settings={"training": {"rounds": 0}, "prior": {"kind": "popularity"}})
    cache = Cache(tmp_path)
    bench = runner._Bench(runner.open_dataset(str(shop), users=0, items=0, partners=PARTNERS), study, cache)
    (cell,) = study.cells(str(shop), {})
    with cache.workplace(bench._key(cell)) as folder:
        (folder / "partners").mkdir()
        (folder / "partners" / "held_out.parquet").touch()
    (found,) = run_study(study, cache).results
    assert 0 < found.metrics["hr@10"] < 1


def test_cells_that_are_done_are_not_done_again(
    whole: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, quiet_canary: None
) -> None:
    folder, first = whole
    for module, name in ((federated, "run_federation"), (central, "measure")):
        monkeypatch.setattr(module, name, _killed)
    told: list[str] = []
    again = run_study(first.study, Cache(folder), tell=told.append)
    assert not told
    assert [figures(one) for one in again.results] == [figures(one) for one in first.results]


def test_with_only_cached_nothing_is_measured(shop: Path, tmp_path: Path, quiet_canary: None) -> None:
    outcome = run_study(tiny_study(shop, ["popularity"], seeds=3), Cache(tmp_path), only_cached=True)
    assert (outcome.results, outcome.cells) == ((), 3)


def test_another_setting_is_another_cell(whole: tuple[Path, Outcome], shop: Path, quiet_canary: None) -> None:
    study = tiny_study(shop, ["federated"], settings={"training": {"rounds": 3}})
    assert not run_study(study, Cache(whole[0]), only_cached=True).results


def test_a_baseline_is_tuned_once_a_data_set_on_the_last_but_one(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_canary: None
) -> None:
    events: list[int] = []

    def spied(method: Method, problem: Problem, targets: Any, budget: Any, seed: int) -> Any:
        events.append(sum(len(part.items) for part in problem.histories))
        return method.grid[1]

    monkeypatch.setattr(central, "tune", spied)
    outcome = run_study(tiny_study(shop, ["ease"], seeds=2), Cache(tmp_path))
    assert len(outcome.results) == 2
    assert len(events) == 1
    assert events[0] <= 36 * 5, "neither of the last two items may be there"
    assert outcome.results[0].settings == dict(METHODS["ease"].grid[1])


def test_a_private_baseline_gets_its_budget_and_a_text_baseline_its_vectors(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_canary: None
) -> None:
    seen: list[tuple[Problem, Any, int]] = []

    def fit(problem: Problem, settings: Any, budget: Any, seed: int) -> Scorer:
        seen.append((problem, budget, seed))
        return lambda histories, users: np.zeros((len(users), problem.items))

    reading = Method("frozen_bert", fit, ({},), private=True, reads_text=True)
    monkeypatch.setattr(central, "METHODS", {"frozen_bert": reading})
    run_study(tiny_study(shop, ["frozen_bert"], epsilons=(3.0,)), Cache(tmp_path))
    ((problem, budget, seed),) = seen
    assert (budget.epsilon, budget.delta, seed) == (3.0, 1e-6, 0)
    assert problem.vectors is not None
    assert problem.vectors.shape == (24, 2, 384)
    assert len(problem.histories) == PARTNERS


def test_an_unknown_method_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got magic"):
        run_study(tiny_study(tmp_path / "absent", ["magic"]), Cache(tmp_path))


def test_nothing_is_measured_with_an_evaluator_that_leaks(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudging(score: Callable[..., Any], targets: Any) -> Scorer:
        def nudged(histories: Histories, users: Any) -> Any:
            scores = np.array(score(histories, users), dtype=np.float64)
            scores[np.arange(len(users)), targets[users]] += 1e-9
            return scores

        return nudged

    def generous(scorer: Scorer, histories: Histories, targets: Any) -> Evaluation:
        return evaluate(nudging(scorer, targets), histories, targets)

    monkeypatch.setattr(runner, "evaluate", generous)
    with pytest.raises(RankingError, match="leak=ties"):
        run_study(tiny_study(shop, ["popularity"]), Cache(tmp_path))
    assert not (tmp_path / "cells").exists()
