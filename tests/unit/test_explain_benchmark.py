"""The deletion test passes what is true of the model, and fails what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from partner_setting import CONFIG, ITEMS, SIMULATED, TINY, changed, simulated_premises

from client.batches import BatchMaker
from client.learner import Learner
from client.ranking.explain import Effects, Read, ScoreParts, missed
from shared.adapter import save_release
from shared.config import ModelConfig, PriorConfig
from shared.errors import EmptyHistoryError
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import PriorScorer
from simulations.benchmarks.explain import METHODS, Asked, deletion_test, falls

if TYPE_CHECKING:
    from conftest import HistoriesOf, World

PRIVACY = {"mode": "distributed", "epsilon": 7.5, "delta": 1e-5}
USERS = 16
Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture
def asked(world: World, tiny_model: ModelConfig, histories_of: HistoriesOf) -> Asked:
    rng = np.random.default_rng(0)
    n = world.n_items
    prior = CollaborativePrior(np.zeros(n, dtype=np.float32), rng.normal(size=(n, n)).astype(np.float32))
    parts = ScoreParts(world.model, PriorScorer(prior, PriorConfig(decay=0.9), world.catalogue.items), world.catalogue)
    histories = histories_of([rng.permutation(n)[:8].tolist() for _ in range(USERS)])
    maker = BatchMaker(histories, np.zeros((0, 384), dtype=np.float16), tiny_model)
    return Asked(parts, maker, histories, np.arange(USERS))


def by_name(rows: list[dict[str, Any]]) -> Rows:
    return {(row["method"], row["deleted"]): row for row in rows}


def test_what_is_named_counts_for_twice_what_chance_finds_and_shuffled_effects_do_not(asked: Asked) -> None:
    rows = by_name(falls(asked, 1, 10, (1, 2), 0, METHODS))
    for size in ("1", "2"):
        for method in ("leave one out", "mean of both", "integrated gradients"):
            assert rows[method, size]["true"], rows[method, size]
            assert rows[method, size]["ratio"] > 2
        assert not rows["shuffled", size]["true"], rows["shuffled", size]
        assert rows["shuffled", size]["users"] == USERS
    # No one thing can count for more than the one without which the score falls most.
    best = rows["leave one out", "1"]["named"]
    assert best >= max(rows[method, "1"]["named"] for method in METHODS)


def upside_down(parts: ScoreParts, read: Read, rows: Any, rng: Any) -> Effects:
    return -missed(parts, read, rows)


def of_the_next_item(parts: ScoreParts, read: Read, rows: Any, rng: Any) -> Effects:
    return np.roll(missed(parts, read, rows), 1, axis=0)


def test_planted_bugs_fail(asked: Asked) -> None:
    """A sign, an index off by one: neither may pass for an explanation."""
    rows = falls(asked, 1, 10, (1, 0.25), 0, {"sign": upside_down, "off by one": of_the_next_item})
    assert len(rows) == 4 and {row["deleted"] for row in rows} == {"1", "25%"}
    assert not any(row["true"] for row in rows)
    assert all(row["named"] < 0 for row in rows if row["method"] == "sign")


QUICK = {name: METHODS[name] for name in ("leave one out", "shuffled")}


def test_the_same_seed_gives_the_same_table(asked: Asked) -> None:
    few = replace(asked, places=asked.places[:4])
    rows = falls(few, 1, 3, (1,), 5, QUICK)
    assert rows == falls(few, 1, 3, (1,), 5, QUICK)
    assert rows != falls(few, 1, 3, (1,), 6, QUICK)


def test_histories_that_a_set_would_empty_are_not_asked(asked: Asked) -> None:
    with pytest.raises(EmptyHistoryError, match="at least 5 different things"):
        falls(replace(asked, places=asked.places[:4]), 1, 3, (8,), 0, QUICK)


def test_a_run_is_tested_with_the_data_that_it_is_given(tmp_path: Path) -> None:
    learner = Learner(simulated_premises(tmp_path / "partner", tmp_path / "vectors.sqlite"), "cpu")
    model, rng = learner.workbench(TINY, 0).model, np.random.default_rng(0)
    prior = CollaborativePrior(np.zeros(ITEMS, dtype=np.float32), rng.normal(size=(ITEMS, ITEMS)).astype(np.float32))
    digest = learner.catalogue.digest
    config = changed(CONFIG, SIMULATED)
    save_release(tmp_path / "adapter", model, prior, config, catalogue_digest=digest, privacy=PRIVACY, version=1)
    (row,) = deletion_test(
        tmp_path,
        str(tmp_path / "partner"),
        users=4,
        sets=4,
        sizes=(1,),
        device="cpu",
        methods={"leave one out": METHODS["leave one out"]},
    )
    assert (row["method"], row["deleted"], row["users"]) == ("leave one out", "1", 4)
    assert row["named"] > row["random"]
