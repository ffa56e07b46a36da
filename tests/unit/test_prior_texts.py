"""What texts tell of item-to-item weights: against plain formulas, and against what was planted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from client.statistics import clipped_statistics
from shared.config import PriorConfig
from shared.model.prior import CollaborativePrior, solve, uninformed
from shared.model.prior_texts import TEXT_RIDGE, completed

if TYPE_CHECKING:
    from conftest import HistoriesOf

N, WIDTH = 60, 8
CONFIG = PriorConfig()
Floats = NDArray[np.float32]


def unit(rows: NDArray[np.float64]) -> Floats:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def texts() -> Floats:
    return unit(np.random.default_rng(0).normal(size=(N, WIDTH)))


def weights(prior: CollaborativePrior) -> Floats:
    assert prior.item_to_item is not None
    return prior.item_to_item if prior.widen is None else prior.item_to_item @ prior.widen


def prior_of(matrix: NDArray[np.float64], share: float = 0.5, unseen: Floats | None = None) -> CollaborativePrior:
    text_weights = np.array([3.0, share], dtype=np.float32)
    return CollaborativePrior(np.zeros(len(matrix), np.float32), matrix.astype(np.float32), None, unseen, text_weights)


def root_mean_square(matrix: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(matrix))))


def test_smoothing_is_two_ridge_regressions_on_texts(texts: Floats) -> None:
    """Column by column on the texts of the rows, then row by row on those of the columns, with scikit-learn."""
    from sklearn.linear_model import Ridge

    W = np.random.default_rng(1).normal(size=(N, N))
    X = texts - texts.mean(axis=0)

    def fitted(columns: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = Ridge(alpha=TEXT_RIDGE, fit_intercept=False).fit(X, columns).predict(X)
        return found

    smooth = fitted(fitted(W).T).T
    expected = W + 0.5 * root_mean_square(W) / root_mean_square(smooth) * smooth
    after = completed(prior_of(W), texts)
    np.testing.assert_allclose(weights(after), expected, atol=2e-3)
    assert after.text_weights is not None and after.text_weights.tolist() == [3.0, 0.0]
    np.testing.assert_array_equal(weights(completed(after, texts)), weights(after))  # once is all


def test_two_factors_stay_as_narrow_as_they_are(texts: Floats) -> None:
    rng = np.random.default_rng(2)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((N, 5), (5, N)))
    factors = replace(prior_of(np.eye(N)), item_to_item=left, widen=right)
    assert completed(factors, texts) is factors


def test_weights_that_hang_on_texts_come_back_from_noise(texts: Floats) -> None:
    rng = np.random.default_rng(3)
    truth = texts @ rng.normal(size=(WIDTH, WIDTH)) @ texts.T
    noisy = truth + rng.normal(scale=3 * truth.std(), size=truth.shape)

    def likeness(matrix: NDArray[np.floating], to: NDArray[np.floating] = truth) -> float:
        return float(np.corrcoef(matrix.ravel(), to.ravel())[0, 1])

    after = weights(completed(prior_of(noisy), texts))
    assert likeness(after) > 1.3 * likeness(noisy)
    mixed_up = weights(completed(prior_of(noisy), texts[rng.permutation(N)]))
    assert likeness(mixed_up) < 1.02 * likeness(noisy), "texts of other items tell nothing"


def test_the_noise_of_items_without_evidence_reaches_nobody(texts: Floats) -> None:
    rng = np.random.default_rng(4)
    W = rng.normal(size=(N, N))
    unseen = (np.arange(N) % 3 == 0).astype(np.float32)
    loud = W * np.where(np.add.outer(unseen, unseen) > 0, 100.0, 1.0)
    one, other = (weights(completed(prior_of(matrix, unseen=unseen), texts)) for matrix in (W, loud))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text_weights", [None, np.array([3.0, 0.0], dtype=np.float32)])
def test_without_a_share_the_weights_stay(texts: Floats, text_weights: Floats | None) -> None:
    prior = replace(prior_of(np.random.default_rng(5).normal(size=(N, N))), text_weights=text_weights)
    np.testing.assert_array_equal(weights(completed(prior, texts)), weights(prior))
    popularity = CollaborativePrior(prior.popularity, text_weights=np.array([7.0, 0.5], dtype=np.float32))
    assert completed(popularity, texts).item_to_item is None


def test_weights_of_nothing_stay_finite(texts: Floats) -> None:
    for unseen in (None, np.ones(N, dtype=np.float32)):
        assert not weights(completed(prior_of(np.zeros((N, N)), unseen=unseen), texts)).any()


def test_an_item_that_nobody_met_is_scored_as_its_neighbours_by_text_are(histories_of: HistoriesOf) -> None:
    rng = np.random.default_rng(3)
    texts = rng.normal(size=(4, 8)).astype(np.float32)
    texts = np.vstack([texts, texts[1] + 0.01]).astype(np.float32)  # item 4 reads as item 1 does
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    crowd = histories_of([[0, 1], [0, 1, 2], [2, 3], [3, 2], [0, 1]])
    for kind in ("hybrid", "sketch"):
        total = clipped_statistics(crowd, 5, CONFIG, kind, clip_norm=1.0).values
        prior = replace(solve(kind, total, 5, 0.0), text_weights=None)  # nothing is smoothed
        assert prior.unseen is not None and prior.unseen.tolist() == [0, 0, 0, 0, 1]
        whole = completed(prior, texts)
        before, after = weights(prior), weights(whole)
        np.testing.assert_allclose(after[:4, :4], before[:4, :4], atol=1e-6)
        assert after[0, 4] > 0.3 * before[0, 1] and before[0, 4] <= 0.05 * before[0, 1]
        assert np.argmax(after[4, :4]) == np.argmax(before[1, :4])
        assert whole.popularity is prior.popularity


def test_a_prior_that_has_met_all_or_none_stays_as_it_is(texts: Floats) -> None:
    prior = replace(prior_of(np.random.default_rng(6).normal(size=(N, N))), text_weights=None)
    for same in (prior, uninformed(N), replace(prior, unseen=np.ones(N, np.float32)), replace(prior, unseen=None)):
        assert completed(same, texts) is same
