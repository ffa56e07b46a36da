"""What is read of a user in a training pass: the window, its targets, and nothing of anybody else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client import batches
from client.batches import BatchMaker, next_new_items
from shared.config import ModelConfig, TrainingConfig
from shared.model.behaviour import RATING_STEPS, EventBatch
from shared.schema import Histories

if TYPE_CHECKING:
    from conftest import HistoriesOf

T = 4
MODEL = ModelConfig(max_events=T)
ALL = TrainingConfig(drop_events=0.0, microbatch=100)
NOTHING = np.zeros((0, 8), dtype=np.float16)


def array(items: list[int]) -> NDArray[np.int32]:
    return np.array(items, dtype=np.int32)


def windows(histories: Histories, key: bytes = b"k", training: TrainingConfig = ALL) -> list[EventBatch]:
    """One batch of one user each, in the order of the users, without what they are padded with."""
    maker = BatchMaker(histories, NOTHING, MODEL)
    return [bare(next(maker.training(np.array([k]), training, key))) for k in range(len(histories))]


def bare(batch: EventBatch) -> EventBatch:
    n = int(batch.lengths.max())
    cut = {name: getattr(batch, name)[:, :n] for name in ("items", "events", "ratings", "targets")}
    return replace(batch, **cut, texts=None if batch.texts is None else batch.texts[:, :n])


# --- targets


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([5], [-1]),
        ([5, 5, 5], [-1, -1, -1]),
        ([1, 2, 3], [2, 3, -1]),
        ([1, 1, 2, 2, 1, 3], [2, 2, 3, 3, 3, -1]),  # view, cart and purchase of one item predict what comes next
        ([1, 2, 1, 2], [2, -1, -1, -1]),
    ],
)
def test_the_target_is_the_next_item_never_met_before(items: list[int], expected: list[int]) -> None:
    assert next_new_items(array(items)).tolist() == expected


def check_targets_are_new(targets: NDArray[np.int64], items: list[int]) -> None:
    """By a plain loop: the first later item that is not among those met by then."""
    for t, target in enumerate(targets.tolist()):
        met = set(items[: t + 1])
        later = [item for item in items[t + 1 :] if item not in met]
        assert target == (later[0] if later else -1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_targets_equal_a_plain_loop(items: list[int]) -> None:
    check_targets_are_new(next_new_items(array(items)), items)


def test_targets_that_were_met_before_are_caught() -> None:
    items = [1, 2, 1, 3]
    with pytest.raises(AssertionError):
        check_targets_are_new(np.array([*items[1:], -1]), items)  # the next event, met or not


@given(
    users=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=25), min_size=1, max_size=4),
    key=st.binary(min_size=1, max_size=8),
    dropped=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_a_target_is_never_among_the_items_already_met(
    histories_of: HistoriesOf, users: list[list[int]], key: bytes, dropped: float
) -> None:
    training = ALL.model_copy(update={"drop_events": dropped})
    for items, batch in zip(users, windows(histories_of(users), key, training), strict=True):
        read, targets = batch.items[0].tolist(), batch.targets[0].tolist()
        assert 1 <= len(read) <= T
        for t, target in enumerate(targets):
            assert target not in read[: t + 1]
            assert target == -1 or target in items


# --- windows


def test_the_last_event_is_only_ever_a_target(histories_of: HistoriesOf) -> None:
    (batch,) = windows(histories_of([[1, 2, 3]]))
    assert batch.items.tolist() == [[1, 2]]
    assert batch.targets.tolist() == [[2, 3]]


def test_a_user_of_one_event_is_read_without_a_target(histories_of: HistoriesOf) -> None:
    (batch,) = windows(histories_of([[4]]))
    assert (batch.items.tolist(), batch.targets.tolist(), batch.lengths.tolist()) == ([[4]], [[-1]], [1])


def test_windows_of_a_long_history_are_whole_and_reach_back(histories_of: HistoriesOf) -> None:
    histories = histories_of([list(range(20))])
    ends = set()
    for k in range(200):
        (batch,) = windows(histories, key=bytes([k]))
        read = batch.items[0].tolist()
        assert read == list(range(read[0], read[0] + T))
        assert batch.targets[0].tolist() == [row + 1 for row in read]
        ends.add(read[-1] + 1)
    # Half of the passes read the newest events, the others any window before. Missing more than 4 of 16: p < 1e-3.
    assert max(ends) == 19 and min(ends) < 8 and len(ends) >= 12


def test_a_window_follows_from_the_user_and_the_key_alone(histories_of: HistoriesOf) -> None:
    users = [list(range(k, 30 + k)) for k in range(3)]
    training = ALL.model_copy(update={"drop_events": 0.3})
    alone = windows(histories_of(users), b"key", training)
    maker = BatchMaker(histories_of(users), NOTHING, MODEL)
    (together,) = maker.training(np.array([2, 0, 1]), training, b"key")
    rows = {tuple(row[row >= 0].tolist()) for row in together.items}
    assert rows == {tuple(batch.items[0].tolist()) for batch in alone}
    assert {tuple(b.items[0].tolist()) for b in windows(histories_of(users), b"other", training)} != rows


def test_left_out_events_are_left_out_at_the_given_rate_but_never_the_last(histories_of: HistoriesOf) -> None:
    training = ALL.model_copy(update={"drop_events": 0.5})
    kept = [len(windows(histories_of([[0, 1, 2, 3, 4]]), bytes([k]), training)[0].items[0]) for k in range(250)]
    # 1 + Binomial(3, 1/2): mean 2.5, five standard errors 0.27; p < 6e-7.
    assert abs(np.mean(kept) - 2.5) < 0.27
    assert min(kept) >= 1
    for k in range(50):
        (batch,) = windows(histories_of([[0, 1, 2, 3, 4]]), bytes([k]), training)
        assert batch.items[0, -1] == 3 and batch.targets[0, -1] == 4


def test_a_short_history_is_never_thinned(histories_of: HistoriesOf) -> None:
    training = ALL.model_copy(update={"drop_events": 0.9})
    for k in range(30):
        assert windows(histories_of([[0, 1, 2]]), bytes([k]), training)[0].items.tolist() == [[0, 1]]


# --- collation


def rich(histories_of: HistoriesOf) -> Histories:
    histories = histories_of([[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]])
    n = len(histories.items)
    ratings = np.array([np.nan, 0.0, 5.0, 2.5, 0.5, 1.0, 4.9, np.nan, 3.0, 10.0], dtype=np.float32)
    reviews = np.array([-1, 1, 0, -1, 0, -1, -1, 1, -1, 0], dtype=np.int32)
    events = np.arange(n, dtype=np.int8) % 9
    return replace(histories, ratings=ratings, reviews=reviews, events=events, review_texts=("a", "b"))


def test_padding_is_behind_the_events_and_empty(histories_of: HistoriesOf) -> None:
    vectors = np.ones((2, 8), dtype=np.float16) * np.array([[1], [2]], dtype=np.float16)
    maker = BatchMaker(rich(histories_of), vectors, MODEL)
    ((places, batch),) = maker.latest(np.array([0, 1, 2]), 10)
    assert places.tolist() == [1, 0, 2]  # by length
    assert batch.lengths.tolist() == [1, 3, 4]
    assert batch.items.tolist() == [[3, -1, -1, -1], [0, 1, 2, -1], [6, 7, 8, 9]]
    padding = batch.items < 0
    for field in (batch.events, batch.ratings):
        assert not field[padding].any()
    assert batch.texts is not None and not batch.texts[padding].any()
    assert batch.texts[..., 0].tolist() == [[0, 0, 0, 0], [0, 2, 1, 0], [0, 2, 0, 1]]
    assert (batch.targets == -1).all()


@pytest.mark.parametrize(
    ("rating", "step"),
    [(np.nan, 0), (-3.0, 1), (0.0, 1), (0.5, 1), (1.0, 1), (1.01, 2), (4.0, 4), (4.5, 5), (5.0, 5), (99.0, 5)],
)
def test_ratings_become_steps_of_the_scale(histories_of: HistoriesOf, rating: float, step: int) -> None:
    histories = replace(histories_of([[0]]), ratings=np.array([rating], dtype=np.float32))
    ((_, batch),) = BatchMaker(histories, NOTHING, MODEL).latest(np.array([0]), 1)
    assert batch.ratings.tolist() == [[step]]
    assert 0 <= step <= RATING_STEPS


def test_ratings_follow_the_declared_scale(histories_of: HistoriesOf) -> None:
    histories = replace(histories_of([[0, 1]]), ratings=np.array([10.0, 3.0], dtype=np.float32))
    maker = BatchMaker(histories, NOTHING, MODEL.model_copy(update={"rating_max": 10.0}))
    ((_, batch),) = maker.latest(np.array([0]), 1)
    assert batch.ratings.tolist() == [[5, 2]]


def test_a_batch_without_reviews_has_no_texts(histories_of: HistoriesOf) -> None:
    vectors = np.ones((2, 8), dtype=np.float16)
    maker = BatchMaker(rich(histories_of), vectors, MODEL)
    ((_, batch),) = maker.latest(np.array([1]), 1)
    assert batch.texts is None
    assert windows(histories_of([[0, 1]]))[0].texts is None


def test_every_user_is_in_exactly_one_batch(histories_of: HistoriesOf) -> None:
    rng = np.random.default_rng(0)
    histories = histories_of([[k, *rng.integers(40, 50, rng.integers(1, 9))] for k in range(40)])
    maker = BatchMaker(histories, NOTHING, ModelConfig(max_events=20))
    made = list(maker.training(np.arange(40), ALL.model_copy(update={"microbatch": 7}), b"k"))
    assert all(len(batch.items) <= 7 for batch in made)
    assert sorted(row[0].item() for batch in made for row in batch.items) == list(range(40))
    chosen = np.array([9, 3, 30, 4])
    found = [(chosen[place], batch.items[row, 0].item()) for places, batch in maker.latest(chosen, 3)
             for row, place in enumerate(places)]  # fmt: skip
    assert len(found) == 4 and all(user == first for user, first in found)


@pytest.mark.parametrize("most", [8, 20, 30])
def test_the_length_to_which_a_user_is_padded_is_that_user_s_own(histories_of: HistoriesOf, most: int) -> None:
    rng = np.random.default_rng(1)
    histories = histories_of([[*range(rng.integers(2, 40))] for _ in range(30)])
    maker = BatchMaker(histories, NOTHING, ModelConfig(max_events=most))
    alone = [next(maker.training(np.array([k]), ALL, b"k")).items.shape[1] for k in range(30)]
    rows = [
        (int((row >= 0).sum()), len(row)) for batch in maker.training(np.arange(30), ALL, b"k") for row in batch.items
    ]
    assert sorted(width for _, width in rows) == sorted(alone)
    assert all(width == min(-(-length // 8) * 8, most) for length, width in rows)


def test_no_users_make_no_batch(histories_of: HistoriesOf) -> None:
    maker = BatchMaker(histories_of([[0, 1]]), NOTHING, MODEL)
    nobody = np.zeros(0, dtype=np.int64)
    assert list(maker.training(nobody, ALL, b"k")) == []
    assert list(maker.latest(nobody, 5)) == []


def test_one_history_is_a_batch_of_its_newest_events(histories_of: HistoriesOf) -> None:
    histories = histories_of([[0, 1, 2, 3, 4, 5], [1]])
    maker = BatchMaker(histories, NOTHING, MODEL)
    assert maker.one(histories[0]).items.tolist() == [[2, 3, 4, 5]]
    assert maker.one(histories[1]).items.tolist() == [[1]]


def test_a_batch_moves_whole_to_a_device(histories_of: HistoriesOf) -> None:
    vectors = np.ones((2, 8), dtype=np.float16)
    ((_, batch),) = BatchMaker(rich(histories_of), vectors, MODEL).latest(np.array([0, 2]), 5)
    moved = batch.to(torch.device("meta"))
    fields = (moved.items, moved.events, moved.ratings, moved.lengths, moved.texts, moved.targets)
    assert all(field is not None and field.device.type == "meta" for field in fields)
    assert moved.items.shape == batch.items.shape
    ((_, plain),) = BatchMaker(rich(histories_of), NOTHING, MODEL).latest(np.array([1]), 5)
    assert plain.to(torch.device("meta")).texts is None


def test_the_key_and_the_user_choose_the_window() -> None:
    draws = {batches._rng(key, user).random() for key in (b"a", b"b") for user in ("u", "v")}
    assert len(draws) == 4
    assert batches._rng(b"a", "u").random() == batches._rng(b"a", "u").random()
