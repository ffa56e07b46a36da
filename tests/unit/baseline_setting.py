"""A small federation for the tests of baselines: two partners, seven items, tastes that can be learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.schema import Catalogue, Histories
from simulations.baselines import Problem

ITEMS = 7


def histories_of(*users: Sequence[int], first: int = 0) -> Histories:
    """One list of item rows a user; users are named u000 and so on, from `first`."""
    items = np.array([item for user in users for item in user], dtype=np.int32)
    n = len(items)
    return Histories(
        users=tuple(f"u{first + k:03d}" for k in range(len(users))),
        offsets=np.cumsum([0, *map(len, users)]),
        items=items,
        timestamps=np.arange(n),
        events=np.zeros(n, dtype=np.int8),
        ratings=np.full(n, np.nan, dtype=np.float32),
        reviews=np.full(n, -1, dtype=np.int32),
    )


def problem_of(*histories: Histories, items: int = ITEMS, population: int = 10, partners_per_user: int = 1) -> Problem:
    """A problem with random vectors of width 4 in place of BERT's."""
    names = tuple(f"i{k:04d}" for k in range(items))
    vectors = np.random.default_rng(0).normal(size=(items, 2, 4)).astype(np.float32)
    return Problem(histories, items, Catalogue(names, names, names, names), vectors, population, partners_per_user)


def walk(items: int, users: int, length: int, seed: int = 0) -> Histories:
    """Users that walk round all items, each from another place: what comes next follows from what came last."""
    rng = np.random.default_rng(seed)
    return histories_of(*(((int(rng.integers(items)) + np.arange(length)) % items).tolist() for _ in range(users)))
