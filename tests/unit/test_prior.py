"""The collaborative prior: closed forms against direct solutions, and scores against plain loops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import load, save

from client.statistics import clipped_statistics, cooccurrences, next_item_moments
from shared.config import PriorConfig, RunConfig
from shared.errors import AdapterMismatchError
from shared.model import prior as prior_module
from shared.model.prior import (
    CollaborativePrior,
    effective_kind,
    pack_symmetric,
    sketch_signs,
    solve,
    statistics_size,
    uninformed,
    unpack_symmetric,
)
from shared.privacy.accounting import build_plan
from shared.schema import Histories

if TYPE_CHECKING:
    from conftest import HistoriesOf

N = 12
TEXTS = torch.eye(N)
"""Of items that are all alike to each other."""
CONFIG = PriorConfig()


@pytest.fixture(scope="module")
def crowd(histories_of: HistoriesOf) -> Histories:
    """80 users who walk round a ring of items."""
    rng = np.random.default_rng(0)
    users = [[int((start + s) % N) for s in np.cumsum(rng.integers(1, 3, 5))] for start in rng.integers(0, N, 80)]
    return histories_of(users)


@pytest.fixture(scope="module")
def total(crowd: Histories) -> NDArray[np.float64]:
    return clipped_statistics(crowd, N, CONFIG, "hybrid", clip_norm=1.0).values


def weights(prior: CollaborativePrior) -> NDArray[np.float32]:
    assert prior.item_to_item is not None
    return prior.item_to_item


def scaled(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = matrix / math.sqrt(float((matrix**2).mean()))
    return result


# --- packing


squares = st.integers(1, 7).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(-1e6, 1e6, allow_subnormal=False))
)


@given(squares)
def test_packing_keeps_the_norm_and_unpacking_undoes_it(matrix: NDArray[np.float64]) -> None:
    symmetric = matrix + matrix.T
    packed = pack_symmetric(symmetric)
    n = len(matrix)
    assert packed.shape == (n * (n + 1) // 2,)
    # Below about 1e-154 the squares in a norm are subnormal, and their digits lost.
    np.testing.assert_allclose(np.linalg.norm(packed), np.linalg.norm(symmetric), rtol=1e-12, atol=1e-150)
    np.testing.assert_allclose(unpack_symmetric(packed, n), symmetric, rtol=1e-12, atol=1e-300)


def test_packing_quiets_the_noise_off_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    noise = unpack_symmetric(rng.normal(size=200 * 201 // 2), 200)
    off = noise[np.triu_indices(200, k=1)]
    assert abs(off.std() * math.sqrt(2) - 1) < 5 / math.sqrt(2 * len(off))  # p < 6e-7
    assert abs(np.diag(noise).std() - 1) < 5 / math.sqrt(2 * 200)
    # The edge of the spectrum that the ridge is made from: sqrt(2) sigma sqrt(I), met within a tenth.
    assert np.abs(np.linalg.eigvalsh(noise)).max() == pytest.approx(math.sqrt(2 * 200), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("none", 0),
        ("popularity", 5),
        ("ease", 15),
        ("hybrid", 15 + 25),
        ("sketch", 5 * 257),
        ("hybrid_sketch", 5 * 513),
    ],
)
def test_the_size_of_the_sum_is_public(kind: str, size: int) -> None:
    assert statistics_size(kind, 5) == size


def kind_of(items: int, **settings: Any) -> str:
    """What 10 partners with 5,000 declared users sum."""
    tree = {"privacy": {"population": 5000, **settings}, "federation": {"partners": 10}, "prior": {"max_items": 100}}
    config = RunConfig.model_validate(tree)
    return effective_kind(config.prior, build_plan(config), items)


def test_a_large_catalogue_is_sketched() -> None:
    assert kind_of(100, mode="none") == "hybrid"
    assert kind_of(101, mode="none") == "hybrid_sketch"
    assert kind_of(101, epsilon=8) == kind_of(50_000, mode="none") == "sketch"
    assert kind_of(2**16, mode="none") == "popularity"  # what no sum has room for
    assert effective_kind(PriorConfig(kind="none"), build_plan(RunConfig(privacy={"population": 9})), 5) == "none"


def test_noise_is_for_the_cooccurrences_alone(crowd: Histories, total: NDArray[np.float64]) -> None:
    assert kind_of(100, epsilon=8) == "ease"
    alone = clipped_statistics(crowd, N, CONFIG, "ease", clip_norm=1.0).values
    np.testing.assert_allclose(alone * math.sqrt(0.5), total[: len(alone)], atol=1e-12)
    without_next = solve("hybrid", total, N, 0.0, config=PriorConfig(next_weight=0.0))
    np.testing.assert_allclose(weights(solve("ease", alone, N, 0.0)), weights(without_next), rtol=1e-4, atol=1e-6)


def test_few_users_for_the_noise_sum_popularity_alone() -> None:
    assert kind_of(100, epsilon=1) == "ease"
    assert kind_of(100, epsilon=1, population=100) == "popularity"
    assert kind_of(100, epsilon=1, population=100, mode="none") == "hybrid"
    assert kind_of(10_000, epsilon=1, population=1000) == "popularity"


# --- closed forms


def check_item_to_item(prior: CollaborativePrior, G: NDArray[np.float64], B: NDArray[np.float64]) -> None:
    """Without noise: EASE by its Lagrangian, column by column, plus ridge regression, both scaled to RMS 1."""
    n = len(G)
    ease = np.zeros((n, n))
    for column in range(n):
        # argmin of the ridge objective with the entry on the diagonal fixed at 0 (Steck 2019, eq. 4).
        rest = [row for row in range(n) if row != column]
        A = G[np.ix_(rest, rest)] + CONFIG.ease_ridge * np.eye(n - 1)
        ease[rest, column] = np.linalg.solve(A, G[rest, column])
    following = np.linalg.solve(G + CONFIG.next_ridge * np.eye(n), B)
    np.testing.assert_allclose(weights(prior), scaled(ease) + scaled(following), rtol=1e-4, atol=1e-5)


def test_without_noise_the_prior_is_ease_and_next_item_ridge(crowd: Histories, total: NDArray[np.float64]) -> None:
    prior = solve("hybrid", total, N, 0.0)
    check_item_to_item(prior, cooccurrences(crowd, N), next_item_moments(crowd, N, CONFIG))
    assert weights(prior).dtype == prior.popularity.dtype == np.float32


def test_a_prior_that_is_not_the_closed_form_is_caught(crowd: Histories, total: NDArray[np.float64]) -> None:
    G, B = cooccurrences(crowd, N), next_item_moments(crowd, N, CONFIG)
    for wrong in (solve("hybrid", 1.05 * total, N, 0.0), solve("hybrid", total, N, 0.05)):
        with pytest.raises(AssertionError):
            check_item_to_item(wrong, G, B)


def test_it_predicts_the_ring_it_was_made_from(total: NDArray[np.float64]) -> None:
    best = weights(solve("hybrid", total, N, 0.0)).argmax(axis=1)
    assert ((best - np.arange(N)) % N <= 2).mean() > 0.9


def test_popularity_is_the_centred_log_of_the_votes() -> None:
    votes = np.array([1.0, 10.0, 100.0, 0.0])
    popularity = solve("popularity", votes, 4, 0.0).popularity
    logs = np.log(votes + 0.05 * votes.mean())
    np.testing.assert_allclose(popularity, logs - logs.mean(), rtol=1e-6)


def test_the_diagonal_of_the_hybrid_sum_is_a_popularity(crowd: Histories, total: NDArray[np.float64]) -> None:
    votes = np.diag(cooccurrences(crowd, N))
    np.testing.assert_allclose(
        solve("hybrid", total, N, 0.0).popularity, 0.06 * solve("popularity", votes, N, 0.0).popularity, atol=1e-6
    )


def test_popularity_counts_for_more_where_noise_hides_the_rest(total: NDArray[np.float64]) -> None:
    heights = [float(np.ptp(solve("hybrid", total, N, 0.1, population=n).popularity)) for n in (1e9, 60, 40, 1, 0.1)]
    edge = math.sqrt(2 * N) * 0.1 / math.sqrt(0.5)
    shares = np.array([0.06, 15.0 * edge / 60, 15.0 * edge / 40, 1.33, 1.33])
    np.testing.assert_allclose(heights, shares * heights[0] / 0.06, rtol=1e-5)


def test_a_sketch_of_few_users_gives_the_weights_of_ease(crowd: Histories) -> None:
    """Fewer users than signs: Nystroem loses nothing, and off the diagonal the factors are EASE."""
    check_sketch(crowd, clipped_statistics(crowd, N, CONFIG, "sketch", clip_norm=1.0).values)


def check_sketch(crowd: Histories, total: NDArray[np.float64]) -> None:
    prior = solve("sketch", total, N, 0.0, config=PriorConfig(ease_ridge=0.5))
    assert prior.widen is not None
    inverse = np.linalg.inv(cooccurrences(crowd, N) + 0.5 * np.eye(N))
    ease = -inverse / np.diag(inverse)
    off = ~np.eye(N, dtype=bool)
    made = weights(prior) @ prior.widen
    # The clip of |y S| takes a little from the users whose signs agree.
    assert np.corrcoef(made[off], ease[off])[0, 1] > 0.99
    votes = clipped_statistics(crowd, N, CONFIG, "popularity", clip_norm=1.0).values
    np.testing.assert_allclose(prior.popularity, 0.06 * solve("popularity", votes, N, 0.0).popularity, atol=1e-6)


def check_next_items(crowd: Histories, total: NDArray[np.float64]) -> None:
    """A catalogue with fewer items than directions: what the sketch adds is next-item ridge."""
    config = PriorConfig(ease_ridge=0.5, next_ridge=0.5)
    prior, without = (
        solve("hybrid_sketch", total, N, 0.0, config=config.model_copy(update={"next_weight": w})) for w in (1.0, 0.0)
    )
    assert prior.widen is not None and without.widen is not None
    added = weights(prior) @ prior.widen - weights(without) @ without.widen
    exact = np.linalg.solve(cooccurrences(crowd, N) + 0.5 * np.eye(N), next_item_moments(crowd, N, config))
    assert np.corrcoef(added.ravel(), exact.ravel())[0, 1] > 0.99
    ease, both = (np.sqrt(np.mean(np.square(matrix))) for matrix in (weights(without) @ without.widen, added))
    assert both == pytest.approx(ease, rel=1e-4)


def test_a_sketch_without_noise_tells_next_items_too(crowd: Histories) -> None:
    total = clipped_statistics(crowd, N, CONFIG, "hybrid_sketch", clip_norm=1.0).values
    check_next_items(crowd, total)
    alone = clipped_statistics(crowd, N, CONFIG, "sketch", clip_norm=1.0).values
    without = solve("hybrid_sketch", total, N, 0.0, config=PriorConfig(next_weight=0.0))
    for name, array in solve("sketch", alone, N, 0.0).arrays().items():
        np.testing.assert_allclose(without.arrays()[name], array, rtol=1e-4, atol=1e-6)


def test_a_sketch_with_the_wrong_signs_is_caught(crowd: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    total, joint = (
        clipped_statistics(crowd, N, CONFIG, kind, clip_norm=1.0).values for kind in ("sketch", "hybrid_sketch")
    )
    monkeypatch.setattr(prior_module, "sketch_signs", lambda n: sketch_signs(n)[::-1])
    with pytest.raises(AssertionError):
        check_sketch(crowd, total)
    with pytest.raises(AssertionError):
        check_next_items(crowd, joint)


@pytest.mark.parametrize(
    "wrong",
    [
        CollaborativePrior(np.zeros(3, np.float32), widen=np.zeros((2, 3), np.float32)),
        CollaborativePrior(np.zeros(3, np.float32), np.zeros((3, 2), np.float32)),
        CollaborativePrior(np.zeros(3, np.float32), np.zeros((3, 2), np.float32), np.zeros((2, 4), np.float32)),
        CollaborativePrior(np.full(3, np.nan, np.float32)),
        CollaborativePrior(np.zeros(3, np.float32), text_weights=np.zeros(3, np.float32)),
        CollaborativePrior(np.zeros(3, np.float32), text_weights=np.array([1, np.inf], np.float32)),
    ],
)
def test_a_prior_whose_parts_do_not_fit_is_refused(wrong: CollaborativePrior) -> None:
    with pytest.raises(AdapterMismatchError, match="Expected"):
        wrong.check(3)


@pytest.mark.parametrize("kind", ["hybrid", "ease", "hybrid_sketch", "sketch", "popularity"])
def test_noise_below_zero_gives_priors_that_can_be_released(kind: str) -> None:
    noise = np.random.default_rng(0).normal(size=statistics_size(kind, N)) * 5
    for prior in (solve(kind, noise, N, 5.0), solve(kind, noise, N, 500.0), solve(kind, np.zeros_like(noise), N, 0.0)):
        assert all(array.size and np.isfinite(array).all() for array in prior.arrays().values())


def test_a_sketch_in_which_nothing_stands_out_of_the_noise_leaves_popularity_as_it_is_alone() -> None:
    votes = np.linspace(1.0, 9.0, N)
    total = np.concatenate([votes * math.sqrt(0.1), np.zeros(statistics_size("sketch", N) - N)])
    prior = solve("sketch", total, N, 1.0)
    assert prior.item_to_item is None and prior.widen is None
    np.testing.assert_allclose(prior.popularity, solve("popularity", votes, N, 1.0 / math.sqrt(0.1)).popularity)


def test_more_noise_means_more_ridge(monkeypatch: pytest.MonkeyPatch, total: NDArray[np.float64]) -> None:
    ridges: list[float] = []
    invert = np.linalg.inv

    def watched(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        ridges.append(float(np.trace(matrix)))
        result: NDArray[np.float64] = invert(matrix)
        return result

    monkeypatch.setattr(np.linalg, "inv", watched)
    for noise in (0.0, 0.1, 1.0, 10.0):
        solve("ease", total[: statistics_size("ease", N)], N, noise)
    assert ridges == sorted(ridges) and len(set(ridges)) == 4
    # With users without number the ridge grows by one and a half times the edge of the noise's spectrum, with few by
    # eight times, and between the two with the doubt.
    edge = math.sqrt(2 * N) * 10.0
    assert (ridges[3] - ridges[0]) / N == pytest.approx(1.5 * edge)
    for population, times in ((edge, 8.0), (100 * edge, 5.0), (1000 * edge, 1.5)):
        solve("ease", total[: statistics_size("ease", N)], N, 10.0, population=population)
        assert (ridges[-1] - ridges[0]) / N == pytest.approx(times * edge)


@pytest.mark.parametrize("kind", ["hybrid", "ease", "sketch"])
def test_a_mass_that_cannot_be_told_from_noise_is_no_evidence(crowd: Histories, kind: str) -> None:
    """The ring's items have as much mass each; beside them stand two that nobody met, one with noise for mass."""
    total = clipped_statistics(crowd, N + 2, CONFIG, kind, clip_norm=1.0).values
    exact = solve(kind, total, N + 2, 0.0)
    assert exact.unseen is not None and exact.unseen.tolist() == [0] * N + [1, 1]
    place = (
        N if kind == "sketch" else (N + 2) * (N + 3) // 2 - 3
    )  # of item N among the votes, or in the packed triangle
    noisy = total.copy()
    noisy[place] = 0.05
    for stddev, expected in ((0.1, 1), (0.001, 0)):
        prior = solve(kind, noisy, N + 2, stddev, population=1e9)
        assert prior.unseen is not None and prior.unseen.tolist() == [0] * N + [expected, 1]


@pytest.mark.parametrize("kind", ["ease", "sketch"])
def test_texts_weigh_the_more_the_less_the_noise_has_left(kind: str) -> None:
    total = np.random.default_rng(0).normal(size=statistics_size(kind, N)) + 5.0
    weights = [solve(kind, total, N, 1.0, population=users).text_weights for users in (1e9, 1e5, 1e4, 1e3, 1e2)]
    told = np.array([one for one in weights if one is not None])
    assert told.shape == (5, 2) and (np.diff(told, axis=0) >= 0).all()
    assert told[0, 0] < 1e-3 and told[-1].tolist() == [7.0, 0.5 if kind == "ease" else 0.0]
    alone = solve("popularity", total[:N], N, 1.0).text_weights
    assert alone is not None and alone.tolist() == [7.0, 0.0]  # there are no weights to smooth


@pytest.mark.parametrize("kind", ["hybrid", "hybrid_sketch"])
def test_without_noise_texts_weigh_by_how_many_items_there_are_for_a_user(kind: str) -> None:
    total = np.random.default_rng(0).normal(size=statistics_size(kind, N)) + 5.0
    shares = []
    for users, expected in ((math.inf, 0.0), (100 * N, 0.1), (N, 1.0), (N / 4, 2.0), (N / 100, 4.0)):
        told = solve(kind, total, N, 0.0, population=users).text_weights
        assert told is not None and told[0] == pytest.approx(expected)
        shares.append(float(told[1]))
    assert shares == pytest.approx([0.3 if kind == "hybrid" else 0.0] * 5)


def test_popularity_flattens_under_noise() -> None:
    votes = np.array([1.0, 10.0, 100.0, 0.0])
    spreads = [float(np.ptp(solve("popularity", votes, 4, noise).popularity)) for noise in (0.0, 1.0, 10.0, 1000.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < 0.2


def test_renaming_the_items_renames_the_prior(
    histories_of: HistoriesOf, crowd: Histories, total: NDArray[np.float64]
) -> None:
    new_name = np.random.default_rng(1).permutation(N)
    renamed = histories_of([new_name[user.items].tolist() for user in crowd])
    there = solve("hybrid", clipped_statistics(renamed, N, CONFIG, "hybrid", clip_norm=1.0).values, N, 0.0)
    here = solve("hybrid", total, N, 0.0)
    np.testing.assert_allclose(there.popularity[new_name], here.popularity, atol=1e-5)
    np.testing.assert_allclose(weights(there)[np.ix_(new_name, new_name)], weights(here), atol=1e-4)


def test_a_prior_that_knows_nothing_is_zero() -> None:
    for prior in (uninformed(3), solve("none", np.zeros(0), 3, 0.0)):
        assert prior.arrays().keys() == {"popularity"}
        assert prior.popularity.tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", ["hybrid", "ease", "hybrid_sketch", "sketch", "popularity"])
def test_a_prior_survives_safetensors(crowd: Histories, kind: str) -> None:
    """A matrix in Fortran's order comes back from it with its entries out of place, and nobody says so."""
    prior = solve(kind, clipped_statistics(crowd, N, CONFIG, kind, clip_norm=1.0).values, N, 0.0)
    assert all(array.flags.c_contiguous for array in prior.arrays().values())
    back = load(save(prior.arrays()))
    for name in back:
        np.testing.assert_array_equal(back[name], getattr(prior, name), err_msg=name)
