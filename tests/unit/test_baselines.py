"""Baselines against naive loops, closed forms, and the reference figures of real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from baseline_setting import histories_of

from client.data.histories import build_histories
from client.data.pseudonyms import PseudonymKey
from shared.catalogue import build_catalogue
from shared.errors import ConfigError, EmptyHistoryError
from simulations.baselines import BASELINES, ease, item_counts, item_knn, popularity
from simulations.evaluation import evaluate, hold_out, targets_of

USERS = ([0, 1, 1, 2], [1, 2], [2, 3, 2], [0, 3], [1])
X = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=float)
ITEMS = 5  # nobody has item 4


WHOLE = histories_of(*USERS)
PARTS = (histories_of(*USERS[:2]), histories_of(*USERS[2:]))
EVERYBODY = np.arange(len(USERS))


def test_popularity_counts_a_user_once_however_many_events() -> None:
    assert item_counts([WHOLE], ITEMS).tolist() == [2, 3, 3, 2, 0]
    scores = popularity([WHOLE], ITEMS)(WHOLE, np.array([4, 0]))
    assert scores.tolist() == [[2, 3, 3, 2, 0]] * 2


def test_item_cosine_is_that_of_a_naive_loop() -> None:
    expected = np.zeros((len(USERS), ITEMS))
    for user in range(len(USERS)):
        for item in range(ITEMS):
            for own in np.flatnonzero(X[user]):
                norm = np.linalg.norm(X[:, item]) * np.linalg.norm(X[:, own])
                if item != own and norm:
                    expected[user, item] += X[:, item] @ X[:, own] / norm
    np.testing.assert_allclose(item_knn([WHOLE], ITEMS)(WHOLE, EVERYBODY), expected, rtol=1e-5)


def test_ease_solves_each_item_s_ridge_regression_without_itself() -> None:
    ridge = 0.5
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = [j for j in range(ITEMS) if j != item]
        A = X[:, others]
        expected[others, item] = np.linalg.solve(A.T @ A + ridge * np.eye(ITEMS - 1), A.T @ X[:, item])
    scores = ease([WHOLE], ITEMS, ridge=ridge)(WHOLE, EVERYBODY)
    np.testing.assert_allclose(scores, X @ expected, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_fitting_on_the_partners_is_fitting_on_the_pool(name: str) -> None:
    pooled, parted = BASELINES[name]([WHOLE], ITEMS), BASELINES[name](PARTS, ITEMS)
    np.testing.assert_allclose(pooled(WHOLE, EVERYBODY), parted(WHOLE, EVERYBODY), rtol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_scores_are_finite_for_items_that_nobody_has_and_users_with_no_event(name: str) -> None:
    scores = BASELINES[name]([WHOLE], ITEMS)(histories_of([], [4]), np.array([0, 1]))
    assert scores.shape == (2, ITEMS)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", BASELINES)
def test_nothing_to_fit_on_raises(name: str) -> None:
    with pytest.raises(EmptyHistoryError, match="at least one interaction"):
        BASELINES[name]([histories_of([])], ITEMS)


def test_a_ridge_with_which_nothing_can_be_solved_raises() -> None:
    with pytest.raises(ConfigError, match="ridge above 0"):
        ease([WHOLE], ITEMS, ridge=0)
    with pytest.raises(ConfigError, match="larger ridge"):
        ease([histories_of([0, 1])], 2, ridge=1e-30)


def _figures(interactions: pl.DataFrame, items: pl.DataFrame, seed: int) -> list[float]:
    """NDCG@10 of popularity, item cosine, EASE; then their HR@10."""
    catalogue, key = build_catalogue(items), PseudonymKey.derive(0)
    train, held_out = hold_out(interactions, tie_seed=seed)
    histories = build_histories(train, catalogue, key, max_events=10_000, tie_seed=seed)
    targets, counts = (
        targets_of(held_out, histories, catalogue, key),
        item_counts([histories], len(catalogue)),
    )
    found = [
        evaluate(fit([histories], len(catalogue)), histories, targets).metrics(counts) for fit in BASELINES.values()
    ]
    return [summary["ndcg@10"] for summary in found] + [summary["hr@10"] for summary in found]


def _read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    interactions = pl.read_parquet(folder / "interactions.parquet")
    return interactions.with_columns(event=pl.lit("rating")), pl.read_parquet(folder / "items.parquet")


def test_movielens_in_file_order_has_the_reference_figures(real_data: Path) -> None:
    """The reference run took ties in file order: with its targets the figures agree to the last digit."""
    interactions, items = _read(real_data / "ml_100k")
    in_file_order = interactions.with_row_index("row").with_columns(
        timestamp=pl.struct("timestamp", "row").rank("ordinal").cast(pl.Int64)
    )
    reference = [0.044, 0.056, 0.074, 0.086, 0.109, 0.145]
    np.testing.assert_allclose(_figures(in_file_order.drop("row"), items, 0), reference, atol=0.0006)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("ml_100k", [0.044, 0.056, 0.074]), ("amazon_gift_cards", [0.139, 0.220, 0.232])],
)
def test_the_reference_is_one_of_the_ways_to_break_ties(real_data: Path, name: str, reference: list[float]) -> None:
    interactions, items = _read(real_data / name)
    drawn = np.array([_figures(interactions, items, seed)[:3] for seed in range(8)])  # (seeds, baselines)
    assert (np.abs(drawn.mean(0) - reference) < 3 * drawn.std(0, ddof=1)).all()
    assert (drawn.mean(0)[:2] < drawn.mean(0)[2]).all(), "EASE is the best of them"


def test_shuffled_rows_change_no_metric(real_data: Path) -> None:
    interactions, items = _read(real_data / "amazon_gift_cards")
    shuffled = (
        interactions.sample(fraction=1, shuffle=True, seed=1),
        items.sample(fraction=1, shuffle=True, seed=2),
    )
    assert _figures(interactions, items, 0) == _figures(*shuffled, 0)
