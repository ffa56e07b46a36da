"""The statistics of the prior's sum: what they are, and that one user moves them by at most the clip norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from client import statistics
from client.statistics import WINDOW, clipped_statistics, cooccurrences, next_item_moments
from shared.config import PriorConfig
from shared.model.prior import COOCCURRENCE_WEIGHT, sketch_signs, statistics_size, unpack_symmetric
from shared.schema import Histories

if TYPE_CHECKING:
    from conftest import HistoriesOf

N = 6
CONFIG = PriorConfig(decay=0.5, max_targets=2)
Statistics = Callable[[Histories], NDArray[np.float64]]

HOSTILE: dict[str, list[int]] = {
    "one event": [0],
    "two items": [0, 1],
    "one item 500 times": [3] * 500,
    "two items, 600 times each": [1, 2] * 600,
    "one item, then a new one": [1] * 1000 + [2],
    "everything, 100 times": list(range(N)) * 100,
    "everything once": list(range(N)),
    "a late burst of new items": [0] * 200 + [1, 2, 3, 4, 5],
    "new items between repeats": [0, 0, 0, 1, 1, 1, 2, 2, 3, 0, 4, 1, 5],
}
"""Histories that try to count for more than one user."""


@pytest.mark.parametrize("kind", ["hybrid", "ease", "hybrid_sketch", "sketch", "popularity"])
def test_the_sum_has_the_declared_size(histories_of: HistoriesOf, kind: str) -> None:
    clipped = clipped_statistics(histories_of([[0, 1]]), N, CONFIG, kind, clip_norm=1.0)
    assert clipped.values.shape == (statistics_size(kind, N),)
    assert clipped.clip_norm == 1.0 and clipped.private_loss is None


def test_a_partner_without_users_sends_zeros(histories_of: HistoriesOf) -> None:
    for kind in ("hybrid", "ease", "hybrid_sketch", "sketch", "popularity"):
        assert not clipped_statistics(histories_of([]), N, CONFIG, kind, clip_norm=1.0).values.any()


def test_popularity_gives_each_user_votes_of_norm_one(histories_of: HistoriesOf) -> None:
    values = clipped_statistics(histories_of([[0, 1, 0, 0], [0], [4, 5, 3, 4]]), N, CONFIG, "popularity", clip_norm=1.0)
    np.testing.assert_allclose(values.values, [1 + 0.5**0.5, 0.5**0.5, 0, 3**-0.5, 3**-0.5, 3**-0.5])


def test_a_sketch_is_popularity_and_the_cooccurrences_times_signs(histories_of: HistoriesOf) -> None:
    histories = histories_of([[0], [3, 4, 3], [5, 1]])
    values = clipped_statistics(histories, N, CONFIG, "sketch", clip_norm=1.0).values
    expected = np.zeros((N, 256))
    for user in histories:
        y = np.zeros(N)
        y[np.unique(user.items)] = 1
        y /= np.linalg.norm(y)
        seen = y @ sketch_signs(N)
        expected += np.outer(y, seen / max(1.0, float(np.linalg.norm(seen))))
    np.testing.assert_allclose(values[N:], math.sqrt(0.9) * expected.ravel(), atol=1e-12)
    votes = clipped_statistics(histories, N, CONFIG, "popularity", clip_norm=1.0).values
    np.testing.assert_allclose(values[:N], math.sqrt(0.1) * votes, atol=1e-12)


def test_cooccurrences_are_the_sum_of_outer_products(histories_of: HistoriesOf) -> None:
    G = cooccurrences(histories_of([[0, 1, 0], [1, 2, 3, 1]]), N)
    expected = np.zeros((N, N))
    expected[:2, :2] += 1 / 2
    expected[1:4, 1:4] += 1 / 3
    np.testing.assert_allclose(G, expected, atol=1e-15)


def test_cooccurrences_weigh_an_item_by_its_newest_event(histories_of: HistoriesOf) -> None:
    y = np.array([1.0, 0.5, 0.125, 0, 0, 0])[:N] / math.sqrt(1 + 0.25 + 0.125**2)  # ages 0, 1 and 3
    np.testing.assert_allclose(cooccurrences(histories_of([[0, 2, 0, 1, 0]]), N, 0.5), np.outer(y, y), atol=1e-15)
    # Whatever underflows: the newest event has weight 1.
    assert np.trace(cooccurrences(histories_of([[0] * 900 + [1], [2]]), N, 0.1)) == pytest.approx(2.0)


def test_next_item_moments_of_a_history_worked_by_hand(histories_of: HistoriesOf) -> None:
    # Targets: the two newest first meetings, 2 (after 0 1) and 3 (after 0 1 2 1: item 1 at ages 0 and 2).
    B = next_item_moments(histories_of([[0, 1, 2, 1, 3]]), N, CONFIG)
    expected = np.zeros((N, N))
    for target, phi in ((2, {0: 0.5, 1: 1.0}), (3, {1: 1.0 + 0.25, 2: 0.5, 0: 0.125})):
        norm = math.sqrt(sum(v * v for v in phi.values()))
        for item, value in phi.items():
            expected[item, target] = value / norm / math.sqrt(2)
    np.testing.assert_allclose(B, expected, atol=1e-15)


def test_events_beyond_the_window_are_not_read(histories_of: HistoriesOf) -> None:
    long = histories_of([[5, *[0, 1] * (WINDOW // 2), 2]])
    assert next_item_moments(long, N, PriorConfig(max_targets=1))[5].max() == 0


def test_the_parts_are_laid_out_as_the_solver_reads_them(histories_of: HistoriesOf) -> None:
    histories = histories_of(list(HOSTILE.values()))
    values = clipped_statistics(histories, N, CONFIG, "hybrid", clip_norm=0.25).values / 0.25
    packed = N * (N + 1) // 2
    G, B = values[:packed] / COOCCURRENCE_WEIGHT, values[packed:] / math.sqrt(1 - COOCCURRENCE_WEIGHT**2)
    np.testing.assert_allclose(unpack_symmetric(G, N), cooccurrences(histories, N), atol=1e-12)
    np.testing.assert_allclose(B.reshape(N, N), next_item_moments(histories, N, CONFIG), atol=1e-12)


# --- sensitivity


def check_sensitivity(values_of: Statistics, histories_of: HistoriesOf, clip_norm: float) -> None:
    """Adding a user to any others moves the sum by at most `clip_norm` (1 + 1e-9); the bound is nearly met."""
    others: list[Sequence[int]] = [[0, 1, 2], [3, 2, 3, 5], [4]]
    before = values_of(histories_of(others))
    moves = {
        name: float(np.linalg.norm(values_of(histories_of([*others, user])) - before)) for name, user in HOSTILE.items()
    }
    assert max(moves.values()) <= clip_norm * (1 + 1e-9), moves
    assert max(moves.values()) >= clip_norm * 0.99


@pytest.mark.parametrize("clip_norm", [1.0, 0.5, 1 / 3])
@pytest.mark.parametrize("kind", ["hybrid", "ease", "hybrid_sketch", "sketch", "popularity"])
def test_no_user_moves_the_sum_by_more_than_the_clip_norm(
    histories_of: HistoriesOf, kind: str, clip_norm: float
) -> None:
    def values_of(histories: Histories) -> NDArray[np.float64]:
        return clipped_statistics(histories, N, PriorConfig(), kind, clip_norm=clip_norm).values

    check_sensitivity(values_of, histories_of, clip_norm)


def without_scaling(histories: Histories, n_items: int, config: PriorConfig) -> NDArray[np.float64]:
    """A planted bug: targets are summed without 1 / sqrt(m)."""
    total = np.zeros((n_items, n_items))
    for k in range(len(histories)):
        user = histories[k]
        one = Histories(
            (user.user,),
            np.array([0, len(user)]),
            user.items,
            user.timestamps,
            user.events,
            user.ratings,
            user.reviews,
        )
        m = min(config.max_targets, max(1, len(np.unique(user.items)) - 1))
        total += math.sqrt(m) * next_item_moments(one, n_items, config)
    return total


def every_event_counts(histories: Histories, n_items: int, decay: float) -> NDArray[np.float64]:
    """A planted bug: co-occurrences of events instead of distinct items."""
    total = np.zeros((n_items, n_items))
    for user in histories:
        y = np.bincount(user.items, minlength=n_items) / math.sqrt(len(np.unique(user.items)))
        total += np.outer(y, y)
    return total


def repeats_are_targets(
    items: NDArray[np.int32], user: NDArray[np.int64], position: NDArray[np.int64], n_items: int, most: int
) -> NDArray[np.int64]:
    """A planted bug: an item that is met again is a target again, so that columns of one user overlap."""
    return np.flatnonzero(position > 0)


def off_diagonal_twice(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A planted bug: both halves of the symmetric matrix are packed into one without the root."""
    rows, columns = np.triu_indices(len(matrix))
    packed: NDArray[np.float64] = matrix[rows, columns] * np.where(rows == columns, 1.0, 2.0)
    return packed


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("next_item_moments", without_scaling),
        ("cooccurrences", every_event_counts),
        ("_targets", repeats_are_targets),
        ("pack_symmetric", off_diagonal_twice),
    ],
)
def test_a_planted_flaw_in_the_sensitivity_is_caught(
    histories_of: HistoriesOf, monkeypatch: pytest.MonkeyPatch, name: str, bug: object
) -> None:
    monkeypatch.setattr(statistics, name, bug)
    with pytest.raises(AssertionError):
        check_sensitivity(
            lambda histories: clipped_statistics(histories, N, PriorConfig(), "hybrid", clip_norm=1.0).values,
            histories_of,
            1.0,
        )


@pytest.mark.parametrize("kind", ["sketch", "hybrid_sketch"])
def test_a_sketch_that_is_not_clipped_is_caught(
    histories_of: HistoriesOf, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def one_sided(n_items: int) -> NDArray[np.float64]:  # rows that agree add up: |y S| = sqrt(n)
        return np.abs(sketch_signs(n_items))

    def values_of(histories: Histories) -> NDArray[np.float64]:
        return clipped_statistics(histories, N, PriorConfig(), kind, clip_norm=1.0).values

    monkeypatch.setattr(statistics, "sketch_signs", one_sided)
    check_sensitivity(values_of, histories_of, 1.0)
    monkeypatch.setattr(statistics, "_clipped", lambda rows: rows)
    with pytest.raises(AssertionError):
        check_sensitivity(values_of, histories_of, 1.0)


def test_the_order_of_users_leaves_no_trace(histories_of: HistoriesOf) -> None:
    users = list(HOSTILE.values())
    for kind in ("hybrid", "ease", "hybrid_sketch", "sketch", "popularity"):
        there, back = (
            clipped_statistics(histories_of(some), N, CONFIG, kind, clip_norm=1.0).values
            for some in (users, users[::-1])
        )
        np.testing.assert_allclose(there, back, atol=1e-12)


def test_renaming_the_items_renames_the_statistics(histories_of: HistoriesOf) -> None:
    new_name = np.array([3, 0, 5, 1, 4, 2])
    users = list(HOSTILE.values())
    renamed = histories_of([new_name[user].tolist() for user in users])
    for moments in (lambda h: cooccurrences(h, N), lambda h: next_item_moments(h, N, CONFIG)):
        np.testing.assert_allclose(
            moments(renamed)[np.ix_(new_name, new_name)], moments(histories_of(users)), atol=1e-12
        )
