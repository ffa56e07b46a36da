"""Canaries: what is drawn, and that the insider's directions tell one canary from the others."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.schema import Catalogue
from simulations.audit.canaries import Candidates, GradientCanaries, TextCanaries, at_partners
from simulations.audit.text_probe import directions
from simulations.audit.watching import clipped


def catalogue(n: int) -> Catalogue:
    ids = tuple(f"item-{k:04d}" for k in range(n))
    return Catalogue(ids, ids, ("",) * n, ("",) * n)


@given(n=st.integers(2, 40), m=st.integers(1, 400), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_two_gradient_canaries_share_a_pair_or_a_coordinate(n: int, m: int, seed: int) -> None:
    drawn = GradientCanaries.draw(m, catalogue(n), 300, disjoint=False, seed=seed)
    assert len(drawn) == min(m, 300, n * (n - 1) // 2)
    assert len({tuple(sorted(pair)) for pair in drawn.pairs.tolist()}) == len(drawn)
    assert (drawn.pairs[:, 0] != drawn.pairs[:, 1]).all()
    assert drawn.pairs.min() >= 0
    assert drawn.pairs.max() < n
    assert len(set(drawn.coordinates.tolist())) == len(drawn)


@given(n=st.integers(2, 40), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_disjoint_canaries_share_no_item(n: int, seed: int) -> None:
    drawn = GradientCanaries.draw(1000, catalogue(n), 5000, disjoint=True, seed=seed)
    assert len(drawn) == n // 2
    assert len(set(drawn.pairs.ravel().tolist())) == 2 * len(drawn)


def test_a_catalogue_without_a_pair_has_no_canaries() -> None:
    with pytest.raises(ConfigError, match="catalogue of at least 2 items"):
        GradientCanaries.draw(10, catalogue(1), 100, disjoint=False, seed=0)


def test_coins_are_fair_and_belong_to_the_seed() -> None:
    coins = GradientCanaries.draw(5000, catalogue(200), 9000, disjoint=False, seed=3).inside
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / 5000**0.5  # 4 standard errors: false alarm 6e-5
    again = GradientCanaries.draw(5000, catalogue(200), 9000, disjoint=False, seed=3).inside
    other = GradientCanaries.draw(5000, catalogue(200), 9000, disjoint=False, seed=4).inside
    assert (coins == again).all()
    assert (coins != other).any()


def test_a_canary_is_at_as_many_partners_as_the_plan_allows() -> None:
    drawn = TextCanaries.draw(7, catalogue(30), seed=1)
    placed = at_partners(drawn.events, drawn.names, 4, 2)
    homes = placed.group_by("user_id").agg(pl.col("partner").n_unique().alias("n"))
    assert homes.get_column("n").to_list() == [2] * 7
    assert placed.height == 2 * drawn.events.height


def test_later_events_of_a_candidate_are_never_among_the_earlier() -> None:
    events = pl.DataFrame(
        {
            "user_id": ["a"] * 10 + ["b"] * 10 + ["c"] * 3 + ["d"] * 12,
            "item_id": [f"item-{k:04d}" for k in range(35)],
            "timestamp": list(range(35)),
            "partner": [0] * 10 + [0] * 5 + [1] * 5 + [0] * 3 + [2] * 12,
        }
    )
    drawn = Candidates.draw(9, events, least=10, share=0.4, seed=0)
    assert drawn.names == ("a", "d")  # b is at two partners, c has too few
    for name in drawn.names:
        earlier, later = (part.filter(pl.col("user_id") == name) for part in (drawn.earlier, drawn.later))
        assert earlier.get_column("timestamp").max() < later.get_column("timestamp").min()  # type: ignore[operator]
        assert later.height == int(0.4 * (earlier.height + later.height))


def test_a_direction_sees_its_own_canary_and_no_other() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((12, 400)) + 3 * rng.standard_normal(400)  # much in common
    seen = directions(own) @ own.T
    np.testing.assert_allclose(seen - np.diag(np.diag(seen)), 0, atol=1e-6)
    assert (np.diag(seen) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(directions(own), axis=1), 1)


def test_the_auditors_own_clip_bounds_every_row_and_drops_what_is_no_number() -> None:
    rows = np.array([[3.0, 4.0], [0.1, 0.0], [np.nan, 1.0], [1e30, 0.0]])
    held = clipped(rows, 1.0)
    assert np.linalg.norm(held, axis=1).max() <= 1.0
    np.testing.assert_allclose(held[1], rows[1])
    assert not held[2:].any()
