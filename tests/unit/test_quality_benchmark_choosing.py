"""The federated model is tuned without privacy: on the last but one, within eight settings, and never what is fixed."""

from __future__ import annotations

from pathlib import Path

import pytest
from quality_setting import TINY, shop_folder, tiny_study

from shared.config import RunConfig
from simulations.benchmarks.quality import choosing, runner
from simulations.benchmarks.quality.cache import Cache
from simulations.benchmarks.quality.canary import CHANCE, Canary
from simulations.benchmarks.quality.choosing import PRIORS, ROUNDS, choose, tuning_cell
from simulations.benchmarks.quality.dataset import open_dataset
from simulations.benchmarks.quality.runner import run_study
from simulations.benchmarks.quality.study import Cell
from simulations.evaluation import hold_out
from simulations.presets import merged
from simulations.workspace import HELD_OUT, prepare

CELL = Cell("shop", "taste", 3, "prior_only", None, None, 2)


def test_the_grid_is_no_larger_than_a_baselines() -> None:
    assert len(ROUNDS) + len(PRIORS) <= 8
    assert all(RunConfig.model_validate({**dict(one), "privacy": {"mode": "none"}}) for one in (*ROUNDS, *PRIORS))


def test_tuning_is_done_once_a_data_set() -> None:
    other = Cell("shop", "iid", 3, "federated", None, None, 0)
    assert tuning_cell(CELL) == tuning_cell(other) == other


def test_what_is_fixed_is_not_chosen() -> None:
    fixed = {"training": {"rounds": 2}, "prior": {"decay": 0.5}}
    assert list(choosing._free(ROUNDS, fixed)) == [{}]
    assert all("decay" not in one["prior"] for one in choosing._free(PRIORS, fixed))


def test_the_best_rounds_then_the_best_prior_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked by a made-up figure, so that the choice is known; all that is chosen from is really made."""
    seen: list[RunConfig] = []

    def figure(release: object, workspace: object) -> float:
        config = release.config  # type: ignore[attr-defined]
        seen.append(config)
        return 2.0 * (config.training.rounds == 2) + (config.prior.next_weight == 0.0)

    monkeypatch.setattr(choosing, "_ndcg", figure)
    monkeypatch.setattr(choosing, "ROUNDS", ({"training": {"rounds": 1}}, {"training": {"rounds": 2}}))
    data = open_dataset(str(shop_folder(tmp_path)), users=1, items=1, partners=3)
    settings = {**TINY, "training": {"sampling_rate": 0.5}}
    chosen = choose(tuning_cell(CELL), data, merged(settings, {"model": {"item_rank": 2}}), tmp_path / "work")
    assert chosen == {"training": {"rounds": 2}, "prior": {"next_weight": 0.0, "ease_ridge": 100.0}}
    assert len(seen) == 2 + len(PRIORS)


def test_of_equals_the_first_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def figure(release: object, workspace: object) -> float:
        seen.append(release.config.training.rounds)  # type: ignore[attr-defined]
        return 0.5

    monkeypatch.setattr(choosing, "_ndcg", figure)
    monkeypatch.setattr(choosing, "ROUNDS", ({"training": {"rounds": 1}}, {"training": {"rounds": 2}}))
    data = open_dataset(str(shop_folder(tmp_path)), users=1, items=1, partners=3)
    chosen = choose(tuning_cell(CELL), data, {**TINY, "training": {"sampling_rate": 0.5}}, tmp_path / "work")
    assert chosen == {"training": {"rounds": 1}}
    assert seen == [1, 2] + [1] * len(PRIORS)  # the prior is chosen beside the run that was


def test_the_last_item_is_in_no_part_of_the_tuning(tmp_path: Path) -> None:
    import polars as pl

    data = open_dataset(str(shop_folder(tmp_path)), users=1, items=1, partners=3)
    spread = data.spread("iid", 3, 0)
    _, last = hold_out(spread, tie_seed=0)
    workspace = prepare(data.raw, spread, tmp_path / "partners", seed=0, which="last_but_one")
    held = pl.read_parquet(workspace.root / HELD_OUT)
    both = held.join(last, on="user_id", suffix="_last")
    assert len(both) and (both["item_id"] != both["item_id_last"]).all()
    kept = pl.concat([pl.read_parquet(f) for f in workspace.root.glob("partner-*/interactions.parquet")])
    assert kept.join(last, on=["user_id", "item_id"], how="semi").is_empty()


def test_a_study_uses_what_was_chosen_and_chooses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "check_evaluator", lambda hold_out, evaluate: Canary(CHANCE, 0.12, {}))
    calls: list[Cell] = []

    def made_up(cell: Cell, *_: object) -> dict[str, dict[str, float]]:
        calls.append(cell)
        return {"prior": {"weight": 0.7}}

    monkeypatch.setattr(runner, "choose", made_up)
    study = tiny_study(shop_folder(tmp_path), ["federated", "prior_only"], tuned=True)
    results = run_study(study, Cache(tmp_path / "cache")).results
    assert [one.settings["prior"]["weight"] for one in results] == [0.7, 0.7]
    assert len(calls) == 1
    run_study(study, Cache(tmp_path / "cache"))
    assert len(calls) == 1
    shown = run_study(study, Cache(tmp_path / "cache"), only_cached=True)
    assert len(shown.results) == 2


def test_what_was_not_tuned_is_not_shown_as_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "check_evaluator", lambda hold_out, evaluate: Canary(CHANCE, 0.12, {}))
    folder, cache = shop_folder(tmp_path), Cache(tmp_path / "cache")
    assert run_study(tiny_study(folder, ["prior_only"]), cache).results
    assert not run_study(tiny_study(folder, ["prior_only"], tuned=True), cache, only_cached=True).results
