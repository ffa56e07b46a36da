"""Intervals, differences, the page with its plots, and the command that makes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from quality_setting import result, shop_folder
from typer.testing import CliRunner

from shared.errors import ConfigError, DataError
from simulations.benchmarks.commands import bench_app
from simulations.benchmarks.quality.cache import Result
from simulations.benchmarks.quality.canary import Canary
from simulations.benchmarks.quality.document import write_document
from simulations.benchmarks.quality.runner import Outcome, Sizes
from simulations.benchmarks.quality.study import Study
from simulations.benchmarks.quality.summary import comparisons_of, rows_of, t_interval

USERS = 40
GOOD, BAD = [0.0] * USERS, [20.0] * USERS


def results() -> list[Result]:
    """Three seeds of the federated model on two partitions and two promises, and of two baselines."""
    found = []
    for seed in range(3):
        found.append(result("popularity", BAD, seed=seed, **{"ndcg@10": 0.1}))
        found.append(result("ease", GOOD, seed=seed, **{"ndcg@10": 0.25 + 0.01 * seed}))
        found.append(result("federated", GOOD, seed=seed, partition="iid", **{"ndcg@10": 0.2 + 0.01 * seed}))
        found.append(result("federated", GOOD, seed=seed, partition="taste", **{"ndcg@10": 0.19 + 0.01 * seed}))
        private = {"ndcg@10": 0.15 + 0.01 * seed, "cold_ndcg@10": 0.01}
        found.append(result("federated", GOOD, seed=seed, partition="iid", epsilon=3.0, **private))
    return found


def outcome(found: list[Result], cells: int = 15) -> Outcome:
    study = Study(("/home/mallory/shop",), ("federated", "ease", "popularity"), ("iid", "taste"), (None, 3.0))
    canary = Canary(0.033, 0.12, {"file order": 0.02})
    return Outcome(study, canary, {"shop": Sizes(36, 24, 252)}, tuple(found), cells)


# Summaries


def test_the_interval_over_seeds_is_students() -> None:
    # Mean 2, s = 1, t(0.975; 2) = 4.3027: half of it is 4.3027 / sqrt(3).
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert t_interval([0.5] * 4) == (0.5, 0.5)
    assert t_interval([1.0, 2.0]) is None


def test_a_row_is_the_mean_over_its_seeds_and_of_the_figures_that_all_of_them_have() -> None:
    some = [result("ease", GOOD, seed=0, tail=1.0), result("ease", GOOD, seed=1, **{"ndcg@10": 0.3})]
    (row,) = rows_of(some)
    assert row.seeds == (0, 1)
    assert row.means["ndcg@10"] == pytest.approx(0.2)
    assert "tail" not in row.means
    document = row.document()
    assert document["ci95"] is None
    assert (document["seeds"], document["method"], document["epsilon"]) == (2, "ease", None)


def test_three_seeds_give_an_interval() -> None:
    row = next(row for row in rows_of(results()) if row.group.method == "ease")
    assert row.document()["ci95"] == pytest.approx([0.26 - 0.02484, 0.26 + 0.02484], abs=1e-4)


def test_the_federated_model_is_compared_under_its_promise_and_without_privacy_on_its_partition() -> None:
    compared = comparisons_of(results())
    pairs = {
        ((one.ours.partition, one.ours.epsilon), (one.other.method, one.other.partition, one.other.epsilon))
        for one in compared
    }
    plain = [("popularity", "pooled", None), ("ease", "pooled", None)]
    assert pairs == {
        *((("iid", None), other) for other in plain),
        *((("taste", None), other) for other in plain),
        *((("iid", 3.0), other) for other in [*plain, ("federated", "iid", None)]),
    }
    against = {one.other.method: one for one in compared if one.ours.partition == "taste"}
    assert (against["popularity"].difference, against["popularity"].low) == (1.0, 1.0)
    assert (against["ease"].low, against["ease"].high) == (0.0, 0.0)


def test_more_seeds_of_the_same_users_do_not_make_a_difference_surer() -> None:
    rng = np.random.default_rng(0)
    ours, other = rng.integers(30, size=(2, 200))
    widths = []
    for seeds in (1, 9):
        found = [
            one
            for seed in range(seeds)
            for one in (result("federated", ours, seed=seed, partition="iid"), result("ease", other, seed=seed))
        ]
        (compared,) = comparisons_of(found)
        assert compared.seeds == seeds
        widths.append(compared.high - compared.low)
    assert widths[0] == pytest.approx(widths[1])


def test_only_seeds_that_both_have_are_compared() -> None:
    found = [result("federated", GOOD, seed=seed, partition="iid") for seed in (0, 1)]
    assert comparisons_of([*found, result("ease", BAD, seed=2)]) == []
    (compared,) = comparisons_of([*found, result("ease", BAD, seed=1)])
    assert compared.seeds == 1


def test_methods_that_ranked_other_users_are_not_compared() -> None:
    found = [result("federated", GOOD, partition="iid"), result("ease", GOOD, users=range(1, USERS + 1))]
    with pytest.raises(DataError, match="measured on the same users"):
        comparisons_of(found)


# The page


def test_the_page_has_the_command_before_the_tables_and_every_figure_in_them(tmp_path: Path) -> None:
    write_document(outcome(results()), tmp_path / "quality.md")
    page = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert "mallory" not in page
    assert 0 < page.index("veilrec bench quality --data PATH/shop --partitions iid,taste") < page.index("| NDCG@10 |")
    assert "| EASE | **0.2600** ± 0.0248 | - |" in page
    assert "| **federated (iid)** | 0.2100 ± 0.0248 | **0.1600** ± 0.0248 |" in page
    assert "| federated (iid), epsilon 3 | 76.2 % | 100.0 % |" in page
    assert "| federated (taste), no privacy | 100.0 % | 95.2 % |" in page
    assert "| federated (taste), no privacy | popularity, no privacy | **+1.0000 [+1.0000, +1.0000]** |" in page
    assert "cells" not in page, "all are done, by one state of the code"
    for name in ("methods", "frontier"):
        assert f"(figures/quality-shop-{name}.svg)" in page
        assert (tmp_path / "figures" / f"quality-shop-{name}.svg").read_bytes().startswith(b"<?xml")


def test_the_page_tells_what_is_missing_and_that_the_code_has_changed(tmp_path: Path) -> None:
    write_document(outcome([result("ease", GOOD), result("popularity", BAD, code="two")]), tmp_path / "quality.md")
    page = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert "Of 15 cells 2 are done" in page
    assert "2 states of the code" in page
    assert not (tmp_path / "figures" / "quality-shop-frontier.svg").exists()


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_document(outcome(results()), tmp_path / folder / "quality.md")
    made = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*"))
    assert len(made) == 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in made)


def test_without_matplotlib_the_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"veilrec\[bench\]"):
        write_document(outcome(results()), tmp_path / "quality.md")


def test_a_study_of_which_nothing_is_done_has_a_page_without_tables(tmp_path: Path) -> None:
    write_document(outcome([]), tmp_path / "quality.md")
    assert "| NDCG@10 |" not in (tmp_path / "quality.md").read_text(encoding="utf-8")


# The command


def test_the_command_prints_json_and_writes_the_page(tmp_path: Path) -> None:
    asked = ["quality", "--data", str(shop_folder(tmp_path)), "--methods", "popularity", "--seeds", "3"]
    asked += ["--partners", "3", "--cache", str(tmp_path / "cache")]
    shown = CliRunner().invoke(bench_app, [*asked, "--json", "--write", str(tmp_path / "page.md")])
    document = json.loads(shown.stdout)
    assert document["benchmark"] == "quality"
    assert document["cells"] == {"wanted": 3, "done": 3}
    (row,) = document["results"]
    assert (row["data"], row["partition"], row["method"], row["seeds"]) == ("shop", "pooled", "popularity", 3)
    low, high = row["ci95"]
    assert low <= row["ndcg@10"] <= high
    assert max(document["canary"]["hit_rates"].values()) < document["canary"]["alarm"]
    assert "3 of 3: done in" in shown.stderr
    assert "popularity" in (tmp_path / "page.md").read_text(encoding="utf-8")
    table = CliRunner().invoke(bench_app, [*asked, "--only-cached"])
    assert "3 of 3 cells" in table.stdout
    assert table.stderr == ""


def test_the_command_explains_itself() -> None:
    shown = CliRunner().invoke(bench_app, ["quality", "--help"])
    assert shown.exit_code == 0
    assert "--only-cached" in shown.stdout
