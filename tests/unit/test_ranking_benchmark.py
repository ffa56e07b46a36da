"""The ranking benchmark, small: every contender makes its lists, and the engine's are those of a whole search."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from client.ranking.engine import Engine
from simulations.benchmarks import load, ranking
from simulations.benchmarks.ranking import implicit_als, library, mean_and_faiss, served
from simulations.benchmarks.ranking_world import make_world
from simulations.benchmarks.turns import Turn

Veilrec = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), 1000, ranking.USERS)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "ASKED", 4)


def check_figures(turn: Turn, batch: int) -> dict[str, float]:
    figures = turn()
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["users_per_s"] == pytest.approx(batch * 1000 / figures["p50_ms"], rel=3)
    return figures


def test_the_engine_finds_what_a_whole_search_finds(world: Path) -> None:
    assert check_figures(library(world, 1), 1)["recall"] > 0.98
    check_figures(library(world, ranking.USERS), ranking.USERS)


def test_an_engine_that_misses_items_has_a_low_recall(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = Engine._scored

    def misses(self: Engine, batch: object, wishes: object, depth: int, barred: object) -> object:
        values, rows = scored(self, batch, wishes, 2 * depth, barred)  # type: ignore[arg-type]
        return values[:, ::2], rows[:, ::2]

    monkeypatch.setattr(Engine, "_scored", misses)
    assert library(world, 1)()["recall"] < 0.8


def test_the_service_is_asked_over_http(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda end, *of: ends.append(partial(end, *of)))
    monkeypatch.setattr(ranking.signal, "signal", lambda *_: None)
    try:
        figures = check_figures(served(world, 1), 1)
        assert figures["server_rss_mb"] > 100
    finally:
        for end in ends:
            end()


def test_a_service_at_saturation_answers_everybody(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda end, *of: ends.append(partial(end, *of)))
    monkeypatch.setattr(ranking.signal, "signal", lambda *_: None)
    monkeypatch.setattr(load, "SAMPLES", 10)
    (world.parent / "1000").symlink_to(world)
    try:
        row = load.benchmark(1000, 10, 0.05, world.parent)
    finally:
        for end in ends:
            end()
    assert row["requests"] > 20 and row["failures"] == 0
    assert row["rss_end_mb"] > 100 and row["p99_ms"] >= row["p50_ms"] > 0


def test_the_usual_ways_make_lists(world: Path) -> None:
    pytest.importorskip("implicit")
    check_figures(mean_and_faiss(world, 1), 1)
    check_figures(implicit_als(world, 1), 1)


def test_sizes_that_are_none_are_refused(veilrec: Veilrec) -> None:
    for items in ("", "10", "20000,many"):
        code, out, err = veilrec("bench", "ranking", "--items", items, "--json")
        assert (code, out) == (10, "") and "Expected --items" in err
