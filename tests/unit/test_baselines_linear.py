"""Next-item ridge, and the closed forms from one noisy sum, against naive loops and their own sensitivity."""

from __future__ import annotations

import numpy as np
import pytest
from baseline_setting import ITEMS, histories_of, problem_of, walk

from shared.errors import ConfigError
from shared.schema import Histories
from simulations.baselines import Budget, closed_forms, ease, item_knn, noise
from simulations.baselines.linear import recent_items
from simulations.baselines.methods import METHODS
from simulations.baselines.next_item import moments, next_item_ridge, solve_ridge

USERS = ([0, 1, 1, 2, 0, 3], [1, 2], [2, 3, 2, 6], [5], [])
WHOLE = histories_of(*USERS)
BUDGET = Budget(epsilon=2.0, delta=1e-5)
PRIVATE_SUMS = ("popularity", "item_knn", "ease", "ease_recency", "next_item_ridge")


def naive_moments(decay: float, window: int, targets: int) -> tuple[np.ndarray, np.ndarray]:
    A, B = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for user in USERS:
        places = [p for p in range(1, len(user)) if user[p] not in user[:p]][-targets:]
        for p in places:
            phi = np.zeros(ITEMS)
            for age, item in enumerate(user[max(0, p - window) : p][::-1]):
                phi[item] += decay**age
            phi /= np.linalg.norm(phi)
            A += np.outer(phi, phi) / len(places)
            B[:, user[p]] += phi / len(places)
    return A, B


@pytest.mark.parametrize(("decay", "window", "targets"), [(0.9, 50, 100), (0.5, 2, 1), (1.0, 3, 2)])
def test_next_item_moments_are_those_of_a_naive_loop(decay: float, window: int, targets: int) -> None:
    got = moments([WHOLE], ITEMS, decay=decay, window=window, targets=targets)
    for matrix, expected in zip(got, naive_moments(decay, window, targets), strict=True):
        np.testing.assert_allclose(matrix, expected, atol=1e-6)


def test_moments_do_not_depend_on_how_users_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moments([WHOLE], ITEMS, decay=0.9, window=50, targets=100)
    monkeypatch.setattr("client.statistics.CHUNK", 2)
    for once, blocks in zip(whole, moments([WHOLE], ITEMS, decay=0.9, window=50, targets=100), strict=True):
        np.testing.assert_allclose(once, blocks, atol=1e-6)


def test_next_item_ridge_solves_its_normal_equations_and_weighs_by_recency() -> None:
    A, B = naive_moments(0.8, 50, 1000)
    scorer = next_item_ridge([WHOLE], ITEMS, ridge=0.3, decay=0.8)
    bag = np.zeros(ITEMS)
    for age, item in enumerate(USERS[0][::-1]):
        bag[item] += 0.8**age
    expected = bag @ np.linalg.solve(A + 0.3 * np.eye(ITEMS), B)
    np.testing.assert_allclose(scorer(WHOLE, np.array([3, 0]))[1], expected, atol=1e-5)


def test_next_item_ridge_knows_the_order_and_ease_does_not() -> None:
    there, back = histories_of([0, 1, 2], [0, 1, 2]), histories_of([2, 1, 0], [2, 1, 0])
    newcomer = histories_of([0, 1])
    one = np.array([0])
    scores = [next_item_ridge([part], 3, ridge=0.1)(newcomer, one)[0] for part in (there, back)]
    assert scores[0].argmax() == 2
    assert scores[1][2] == 0, "nobody met 2 after 0 or 1"
    np.testing.assert_allclose(ease([there], 3)(newcomer, one), ease([back], 3)(newcomer, one))


def test_recency_counts_an_event_by_its_age() -> None:
    bags = recent_items(WHOLE, np.array([1, 0]), ITEMS, 0.5).toarray()
    np.testing.assert_allclose(bags[0], [0, 0.5, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(bags[1], [2**-5 + 0.5, 2**-4 + 2**-3, 0.25, 1, 0, 0, 0])


def test_recency_changes_how_ease_ranks_and_not_what_it_learns() -> None:
    plain, recent = ease([WHOLE], ITEMS, ridge=2.0), ease([WHOLE], ITEMS, ridge=2.0, decay=0.5)
    np.testing.assert_array_equal(plain.weights, recent.weights)  # type: ignore[attr-defined]
    one_event = np.array([3])
    np.testing.assert_allclose(plain(WHOLE, one_event), recent(WHOLE, one_event))
    assert not np.allclose(plain(WHOLE, np.array([0])), recent(WHOLE, np.array([0])))


@pytest.mark.parametrize("users", [2, 8])
def test_ease_of_few_users_is_that_of_many(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = walk(20, users, 5)
    few = ease([crowd], 20, ridge=3.0).weights  # type: ignore[attr-defined]
    monkeypatch.setattr("simulations.baselines.classical._inverse_of_few_users", None)
    filler = histories_of(*[[]] * 20, first=users)
    np.testing.assert_allclose(ease([crowd, filler], 20, ridge=3.0).weights, few, atol=1e-5)  # type: ignore[attr-defined]


def test_only_the_nearest_neighbours_of_an_item_count_and_shrinkage_is_for_rare_pairs() -> None:
    whole = item_knn([WHOLE], ITEMS).weights  # type: ignore[attr-defined]
    nearest = item_knn([WHOLE], ITEMS, neighbours=1).weights  # type: ignore[attr-defined]
    np.testing.assert_allclose(nearest.max(1), whole.max(1))
    assert (nearest[2] > 0).sum() < (whole[2] > 0).sum()
    shrunk = item_knn([WHOLE], ITEMS, shrink=1.0).weights  # type: ignore[attr-defined]
    assert shrunk[2, 3] == pytest.approx(2 / (np.sqrt(3 * 2) + 1))


@pytest.mark.parametrize(
    "wrong", [{"ridge": 0.0}, {"decay": 0.0}, {"decay": 1.1}, {"window": 0}, {"targets": 0}], ids=str
)
def test_next_item_settings_out_of_range_raise(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Expected ridge > 0, 0 < decay <= 1"):
        next_item_ridge([WHOLE], ITEMS, **wrong)  # type: ignore[arg-type]


def test_a_ridge_that_cannot_hold_the_moments_raises() -> None:
    with pytest.raises(ConfigError, match="larger ridge"):
        solve_ridge(np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.float32), 1e-30)
    with pytest.raises(ConfigError, match="neighbours and shrink >= 0"):
        item_knn([WHOLE], ITEMS, neighbours=-1)


# --- from one noisy sum ---------------------------------------------------------------------------


def sums_of(name: str, monkeypatch: pytest.MonkeyPatch, histories: Histories) -> np.ndarray:
    """What a method hands to the noise, without it."""
    caught: list[np.ndarray] = []

    def caught_noise(total: np.ndarray, stddev: float, seed: int) -> np.ndarray:
        caught.append(total.copy())
        return total + 1e-3  # keeps what follows solvable

    monkeypatch.setattr(closed_forms, "add_noise", caught_noise)
    method = METHODS[name]
    method.fit(problem_of(histories), method.private_grid[0] if method.private_grid else {}, BUDGET, 0)
    return caught[0]


@pytest.mark.parametrize("name", PRIVATE_SUMS)
@pytest.mark.parametrize(
    "user", [[3], [1, 2], [0, 0, 0, 1], [6, 5, 4, 3, 2, 1, 0] * 20, list(range(7))], ids=lambda u: f"{len(u)} events"
)
def test_one_user_moves_a_noisy_sum_by_at_most_one(name: str, user: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    others = [[0, 1, 2], [4, 5]]
    with_user, without = (
        sums_of(name, monkeypatch, histories_of(*all_users)) for all_users in ([*others, user], others)
    )
    moved = np.linalg.norm(with_user - without)
    assert moved <= 1 + 1e-9
    assert moved > 0.7, "and uses what it may: a user of one event has no next item, and the others' half remains"


@pytest.mark.parametrize("name", PRIVATE_SUMS)
def test_a_user_of_two_partners_counts_half_at_each_beside_the_same_noise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In users, that is twice the noise."""
    asked: list[float] = []

    def asked_noise(total: np.ndarray, stddev: float, seed: int) -> np.ndarray:
        asked.append(stddev)
        return noise.add_noise(total, stddev, seed)

    monkeypatch.setattr(closed_forms, "add_noise", asked_noise)
    problems = [problem_of(WHOLE, partners_per_user=k) for k in (1, 2)]
    for problem in problems:
        METHODS[name].fit(problem, METHODS[name].settings(BUDGET)[0], BUDGET, 0)
    assert asked == [k * noise.sum_noise(problem, BUDGET) for k, problem in zip((1, 2), problems, strict=True)]
    assert asked[1] >= 1.9 * asked[0] > 0


@pytest.mark.parametrize("name", PRIVATE_SUMS)
def test_with_enough_users_the_private_form_ranks_like_the_plain_one(name: str) -> None:
    """20,000 users, epsilon 8: noise is a thousandth of the signal. EASE and cosines weigh users otherwise: ranks."""
    crowd = walk(ITEMS, 20_000, 3)
    method, asked = METHODS[name], histories_of([0, 1])
    settings = {**method.settings(BUDGET)[0], "decay": 0.5}
    scores = [
        method.fit(problem_of(crowd, population=20_000), own, budget, 0)(asked, np.array([0]))[0]
        for own, budget in ((settings, Budget(8.0, 1e-5)), ({**method.grid[0], "decay": 0.5}, None))
    ]
    if name != "popularity":  # all items are as popular
        unseen = [score[2:] for score in scores]
        assert unseen[0].argmax() == unseen[1].argmax()
    else:
        np.testing.assert_allclose(scores[0] / scores[0].mean(), scores[1] / scores[1].mean(), atol=0.02)


def test_the_noise_is_what_the_accountant_asks_for_and_more_for_less_epsilon() -> None:
    problem = problem_of(WHOLE, population=1000)
    levels = [noise.sum_noise(problem, Budget(epsilon, 1e-6)) for epsilon in (1.0, 3.0, 8.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(4.2, rel=0.02), "of the Gaussian mechanism at epsilon 1, delta 1e-6"
    assert noise.sum_noise(problem, None) == 0
    one, ten = (noise.step_noise(problem, BUDGET, sampling_rate=1.0, steps=steps) for steps in (1, 10))
    assert ten == pytest.approx(np.sqrt(10) * one, rel=0.03), "full-participation Gaussians compose like that"
    assert noise.step_noise(problem, BUDGET, sampling_rate=0.1, steps=10) < ten / 3
    assert noise.step_noise(problem, None, sampling_rate=0.1, steps=10) == 0


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    drawn = noise.add_noise(np.zeros(100_000), 3.0, seed=5)
    assert drawn.std() == pytest.approx(3.0, rel=0.02)  # false failure below 1e-15
    np.testing.assert_array_equal(noise.add_noise(np.ones(3), 0.0, seed=5), np.ones(3))


@pytest.mark.parametrize("name", ["ease", "next_item_ridge"])
def test_noise_beyond_the_ridge_spoils_a_ranking_and_not_a_study(name: str) -> None:
    """At an edge of 1 the ridge ends where the noise's spectrum does in expectation: some draws go beyond."""
    problem, loud = problem_of(WHOLE), Budget(epsilon=0.01, delta=1e-5)
    settings = METHODS[name].settings(loud)[0] | {"edge": 0.1}
    for seed in range(5):
        scores = METHODS[name].fit(problem, settings, loud, seed)(WHOLE, np.arange(len(WHOLE)))
        assert np.isfinite(scores).all()


def test_a_matrix_that_the_ridge_holds_is_left_as_it_is() -> None:
    G = np.diag([3.0, -0.5])
    assert closed_forms._definite(G, 1.0) is G
    np.testing.assert_allclose(closed_forms._definite(G, 0.4), np.diag([3.0, 0.0]), atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_is_finite(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="finite epsilon"):
        Budget(epsilon, 1e-5)
