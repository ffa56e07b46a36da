"""``veilrec bench softmax``: what it compares is comparable."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from client import workbench
from shared.model import candidates
from simulations.benchmarks import softmax
from simulations.benchmarks.commands import bench_app
from simulations.benchmarks.softmax import ALL, SAMPLED, turns


def test_sampled_gradients_are_held_against_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "MOST_EXACT", 0)
    told = []
    for way, count in ((ALL, 8), (SAMPLED, 8), (SAMPLED, 20_000)):
        monkeypatch.setattr(candidates.draw_candidates, "__defaults__", (count,))
        turn = turns(400, 8, way)
        told.append([turn() for _ in range(2)])
    (exact, _), few, many = told
    assert exact["cosine"] == pytest.approx(1.0, abs=1e-3) and exact["users_per_s"] > 0
    assert many[0]["cosine"] > 0.99 > max(one["cosine"] for one in few)
    assert few[0]["cosine"] != few[1]["cosine"]  # another sample every turn


def test_a_row_tells_how_much_faster_a_sample_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulations.benchmarks.turns import Measured

    def measured(*_: object) -> dict[str, Measured]:
        return {
            way: Measured(({"users_per_s": speed, "cosine": 0.9},), 7.0) for way, speed in ((ALL, 2.0), (SAMPLED, 6.0))
        }

    monkeypatch.setattr(softmax, "take_turns", measured)
    rows = softmax.benchmark([10, 20], 1, 1)
    assert [(row["items"], row["softmax"], row["speed_up"]) for row in rows] == [
        (10, ALL, 1.0),
        (10, SAMPLED, 3.0),
        (20, ALL, 1.0),
        (20, SAMPLED, 3.0),
    ]


@pytest.mark.parametrize("items", ["many", "60000,", "50000"])
def test_sizes_that_are_no_numbers_or_need_no_sample_are_refused(items: str) -> None:
    found = CliRunner().invoke(bench_app, ["softmax", "--items", items])
    assert found.exit_code != 0 and "--items as numbers from 50,001 on" in str(found.exception)
