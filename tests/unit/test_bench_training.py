"""``veilrec bench training``: contenders take turns in processes of their own, and what is compared is comparable."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench_setting import failing, noted
from typer.testing import CliRunner

from shared.errors import ConfigError, IntegrityError
from simulations.benchmarks import memory, training
from simulations.benchmarks.commands import bench_app
from simulations.benchmarks.training import BUCKETED, ONE_GRADIENT, SHIPPED, USUAL, WAYS, Way
from simulations.benchmarks.turns import Measured, take_turns

USERS = 5

# --- turns ----------------------------------------------------------------------------------------


def test_contenders_take_turns_each_in_a_process_of_its_own(tmp_path: Path) -> None:
    notes, told = tmp_path / "notes", []
    contenders = {name: partial(noted, name, notes, megabytes) for name, megabytes in (("A", 0), ("B", 300))}
    measured = take_turns(contenders, 2, told.append)
    assert notes.read_text() == "ABABAB"  # the first of each warms up
    assert [len(one.turns) for one in measured.values()] == [2, 2]
    pids = {name: {turn["pid"] for turn in one.turns} for name, one in measured.items()}
    assert len(pids["A"]) == len(pids["B"]) == 1 and len({os.getpid()} | pids["A"] | pids["B"]) == 3
    assert measured["B"].peak_rss_mb - measured["A"].peak_rss_mb == pytest.approx(300, abs=40)
    assert told == ["setting up: A", "setting up: B", "turn 0 of 2", "turn 1 of 2", "turn 2 of 2"]


def test_what_a_contender_raises_on_purpose_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected x=1"):
        take_turns({"A": partial(failing, ConfigError("Expected x=1, got 2."))}, 1)


def test_of_any_other_error_only_the_name_is_told() -> None:
    with pytest.raises(IntegrityError, match="contender=A, it raised ValueError") as raised:
        take_turns({"A": partial(failing, ValueError("user-0000001"))}, 1)
    assert "user-0000001" not in str(raised.value)


def test_a_contender_whose_process_ends_is_missed() -> None:
    with pytest.raises(IntegrityError, match="contender=A, its process ended"):
        take_turns({"A": partial(failing, None)}, 1)


def test_a_median_is_over_the_turns() -> None:
    assert Measured(({"x": 1.0}, {"x": 5.0}, {"x": 2.0}), 1.0).median("x") == 2.0


@pytest.mark.parametrize(("platform", "factor"), [("linux", 2**10), ("darwin", 2**20)])
def test_where_the_kernel_tells_no_high_water_mark_resource_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, factor: int
) -> None:
    class Usage:
        ru_maxrss = 7 * factor

    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(memory.resource, "getrusage", lambda _: Usage)
    assert memory.peak_rss_mb() == 7


# --- contenders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.prepare_shop(USERS, 136, tmp_path_factory.mktemp("shop") / "partners")


def way(privacy: str, variant: str, method: str = "veilrec") -> Way:
    return next(one for one in WAYS if (one.method, one.privacy, one.variant) == (method, privacy, variant))


@pytest.fixture(scope="module")
def figures(shop: Path) -> dict[str, dict[str, float]]:
    """Of one turn of some ways."""
    some = [way("distributed", SHIPPED), way("none", ONE_GRADIENT)]
    return {one.name: training.veilrec_turns(one, shop)() for one in some}


def test_ways_that_are_compared_learn_from_the_same_events(figures: dict[str, dict[str, float]]) -> None:
    a_user = {name: one["targets_per_s"] / one["users_per_s"] for name, one in figures.items()}
    assert len({round(targets, 9) for targets in a_user.values()}) == 1
    assert next(iter(a_user.values())) > 1
    assert all(one["load_s"] == 0 and one["users_per_s"] > 0 for one in figures.values())


def test_ways_that_are_compared_have_models_of_one_size() -> None:
    equal = {one.name: training.run_config(one) for one in WAYS if one.recipe == "distributed"}
    assert len(equal) == 5
    assert len({config.model.model_dump_json() for config in equal.values()}) == 1
    told = {(config.privacy.mode, config.training.precision) for config in equal.values()}
    assert told == {(mode, precision) for mode in ("none", "distributed") for precision in ("auto", "float32")}


@pytest.mark.parametrize(("privacy", "variant"), [("none", USUAL), ("dp", BUCKETED)])
def test_a_client_of_the_usual_way_loads_its_model_in_every_turn(shop: Path, privacy: str, variant: str) -> None:
    turn = training.usual_turns(way(privacy, variant, "concatenated-text"), shop, 3)()
    assert turn["load_s"] > 0
    assert 0 < turn["users_per_s"] < turn["users_per_s_without_load"]
    assert turn["targets_per_s"] <= turn["users_per_s"]


# --- rows -----------------------------------------------------------------------------------------

SPEEDS = {
    ("veilrec", "none", SHIPPED): 300.0,
    ("veilrec", "none", ONE_GRADIENT): 220.0,
    ("veilrec", "distributed", SHIPPED): 200.0,
    ("concatenated-text", "none", USUAL): 10.0,
    ("concatenated-text", "none", BUCKETED): 30.0,
    ("concatenated-text", "dp", USUAL): 8.0,
    ("concatenated-text", "dp", BUCKETED): 16.0,
}


def measured() -> dict[Way, Measured]:
    def at(speed: float) -> Measured:
        return Measured(({"users_per_s": speed, "load_s": 0.0},) * 3, 100.0)

    return {one: at(SPEEDS.get((one.method, one.privacy, one.variant), 1.0)) for one in WAYS}


def test_ratios_are_of_time_to_the_same_without_privacy_and_of_speed_to_the_usual_way() -> None:
    rows = {(row["method"], row["privacy"], row["variant"]): row for row in reversed(training.rows_of(measured()))}
    private = rows["veilrec", "distributed", SHIPPED]
    assert (private["times_non_private"], private["times_shipped_none"]) == pytest.approx((1.1, 1.5))
    assert (private["speed_up"], private["speed_up_bucketed"]) == (25.0, 12.5)
    plain = rows["veilrec", "none", SHIPPED]
    assert (plain["speed_up"], plain["speed_up_bucketed"]) == (30.0, 10.0)
    assert "times_non_private" not in plain  # a model of another size
    assert "speed_up" not in rows["concatenated-text", "dp", USUAL]
    assert len({one.name for one in WAYS}) == len(training.rows_of(measured())) == len(WAYS)


def test_the_command_prints_rows_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def turns(contenders: dict[str, Any], repeat: int, told: object) -> dict[str, Measured]:
        asked.update({"contenders": list(contenders), "repeat": repeat})
        return {one.name: figures for one, figures in measured().items()}

    monkeypatch.setattr(training, "take_turns", turns)
    options = ["training", "--users", "3", "--usual-users", "2", "--repeat", "4"]
    shown = CliRunner().invoke(bench_app, [*options, "--json"])
    document = json.loads(shown.stdout)
    assert document["benchmark"] == "training" and document["machine"]["cpus"] >= 1
    assert {"method", "privacy", "users_per_s", "peak_rss_mb"} <= set.intersection(*map(set, document["results"]))
    assert asked == {"contenders": [one.name for one in WAYS], "repeat": 4}
    table = CliRunner().invoke(bench_app, options)
    assert table.exit_code == 0
    assert all(word in table.stdout for word in ("users/s", "× usual", "veilrec", "1.1"))
