"""A canary for the evaluator: data on which a leak shows as HR@10 near 1, and an honest evaluator shows chance.

`USERS` people share `ITEMS` items in blocks: the items are shuffled and dealt out, so that every item is held
by equally many people and what a person holds tells nothing about any one item of it. Everyone views all their
items at one moment and buys all of them at a later one: the last event is a tie of `HELD` purchases. The rows
of a tie stand in the order of the item ids, as they do in many files. The held-out item of an honest evaluator
is any of the purchases, and no scorer that sees the rest can do better on average than pick among the
``C = ITEMS - HELD + 1`` candidates: HR@10 = 10 / C.

Each probe is a scorer that knows how one leak would give the target away, and chooses at random otherwise:

- *file order*: puts the items whose ids follow the highest id of the history first. Where ties keep the order of
  the file, the target has the highest id of all that a person holds, and fewer than ten items lie between it and
  the next: HR@10 = 0.95. Honest ties hold it out for 1 person in `HELD`, which is less than chance.
- *seen items*: puts the last item of the history first, then those that were viewed and never bought. Where the
  target's rows stay in the training frame, all or all but the purchase, and what was seen stays a candidate, that
  is the target: HR@10 = 1. An honest evaluator masks both, and what is left is chance.
- *shared negatives*: first asks, through a person an item, whether the item is ranked against at all: a candidate
  that is raised above the rest moves the target by half a place. Then it puts the items that never were first.
  Where everybody is ranked against one sample of k negatives, a target outside the sample comes first:
  HR@10 = 1 - k / ITEMS, or a little more. Against the whole catalogue there is no such item, and what is left is
  chance.
- *ties*: gives all items one score. Where an equal score counts as won, HR@10 = 1; ties that count half give 0.

A probe whose HR@10 is above `ALARM` has found a leak. An honest evaluator reaches that with probability below 1e-10
a probe: the binomial tail of `USERS` draws with chance 10 / C + 1 / HELD, over seeds; with one seed it is always
the same. Last, the scorer with one score tells how many items each target is ranked among, as its rank is
(C - 1) / 2: negatives drawn for each user, or seen items among the candidates, are found by that, and it has no
false alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.histories import build_histories
from client.data.pseudonyms import PseudonymKey
from shared import metrics
from shared.catalogue import build_catalogue
from shared.errors import RankingError
from shared.schema import EVENT_KINDS, Histories
from simulations import evaluation
from simulations.evaluation import Evaluation, Scorer, Scores, targets_of

HELD = 100
"""Items of a person."""
ITEMS = 4 * HELD
USERS = 400
TURNS = 4
"""Of asking: nothing is learned from a user who holds the item, a quarter of all."""
ALARM = 0.12
"""HR@10 above which a probe has found a leak; chance is 0.033."""
CHANCE = 10 / (ITEMS - HELD + 1)
_VIEW, _PURCHASE = EVENT_KINDS.index("view"), EVENT_KINDS.index("purchase")

HoldOut = Callable[..., tuple[pl.DataFrame, pl.DataFrame]]
"""(interactions, tie_seed=...) -> training frame, held-out frame: as `simulations.evaluation.hold_out`."""
Evaluate = Callable[[Scorer, Histories, NDArray[np.int32]], Evaluation]
"""As `simulations.evaluation.evaluate`."""


@dataclass(frozen=True, slots=True)
class Canary:
    """What the probes of an evaluator without a leak came to.

    Attributes
    ----------
    chance : float
        HR@10 of a choice at random.
    alarm : float
        The bound that no probe reached.
    hit_rates : mapping of str to float
        HR@10 of each probe.
    """

    chance: float
    alarm: float
    hit_rates: Mapping[str, float]


def check_evaluator(
    hold_out: HoldOut = evaluation.hold_out, evaluate: Evaluate = evaluation.evaluate, *, seed: int = 0
) -> Canary:
    """Let every probe seek its leak in the functions given.

    Parameters
    ----------
    hold_out, evaluate : callable
        The functions that the benchmark is going to use.
    seed : int
        Of the data and of all random choices.

    Raises
    ------
    RankingError
        If a probe is above `ALARM`, or targets are not ranked among all unseen items; or whatever the evaluator
        itself refuses.
    """
    rng = np.random.default_rng(seed)
    histories, targets = _prepared(hold_out, rng, seed)
    filler = rng.random((len(histories), ITEMS))  # below 1: decides where a probe has no opinion
    probes: dict[str, Scorer] = {
        "file order": _with(filler, _following),
        "seen items": _with(filler, _last_or_viewed),
        "ties": _constant,
    }
    probes["shared negatives"] = _with(filler, _never_ranked(evaluate, histories, targets))
    rates = {name: metrics.hit_rate(evaluate(probe, histories, targets).ranks) for name, probe in probes.items()}
    leak, rate = max(rates.items(), key=lambda found: found[1])
    if rate > ALARM:
        raise RankingError(
            f"Expected an evaluator at chance on the canary, HR@10 up to {ALARM}; got {rate:.3f} by leak={leak}."
        )
    _check_candidates(evaluate(_constant, histories, targets), histories)
    return Canary(CHANCE, ALARM, rates)


def canary_interactions(rng: np.random.Generator) -> pl.DataFrame:
    """The canary's data: every person views their `HELD` items at time 0 and buys them at time 1, in order of ids."""
    dealt = np.concatenate([rng.permutation(ITEMS) for _ in range(USERS * HELD // ITEMS)]).reshape(USERS, HELD)
    rows = np.sort(dealt, axis=1).ravel()
    once = pl.DataFrame(
        {
            "user_id": [f"user-{user:04d}" for user in np.repeat(np.arange(USERS), HELD)],
            "item_id": [f"item-{row:04d}" for row in rows],
        }
    ).with_columns(rating=pl.lit(None, dtype=pl.Float64), review=pl.lit(""))
    both = [
        once.with_columns(timestamp=pl.lit(time, dtype=pl.Int64), event=pl.lit(event))
        for time, event in enumerate(("view", "purchase"))
    ]
    return pl.concat(both)


def _prepared(hold_out: HoldOut, rng: np.random.Generator, seed: int) -> tuple[Histories, NDArray[np.int32]]:
    names = [f"item-{row:04d}" for row in range(ITEMS)]
    empty = [""] * ITEMS
    catalogue = build_catalogue(pl.DataFrame({"item_id": names, "title": names, "text": empty, "categories": empty}))
    key = PseudonymKey.derive(seed)
    train, held_out = hold_out(canary_interactions(rng), tie_seed=seed)
    histories = build_histories(train, catalogue, key, max_events=2 * HELD, tie_seed=seed)
    return histories, targets_of(held_out, histories, catalogue, key)


def _with(filler: NDArray[np.float64], favours: Callable[[Histories, int], NDArray[np.float64]]) -> Scorer:
    """A scorer of what a probe favours for a user, shape (items,), and of chance where it has no opinion."""

    def scores(histories: Histories, users: NDArray[np.int64]) -> Scores:
        return filler[users] + np.stack([favours(histories, int(user)) for user in users])

    return scores


def _constant(histories: Histories, users: NDArray[np.int64]) -> Scores:
    return np.zeros((len(users), ITEMS))


def _following(histories: Histories, user: int) -> NDArray[np.float64]:
    behind = np.arange(ITEMS) - int(histories[user].items.max())
    return np.where(behind > 0, 2.0 * ITEMS - behind, 0.0)


def _last_or_viewed(histories: Histories, user: int) -> NDArray[np.float64]:
    own, favoured = histories[user], np.zeros(ITEMS)
    favoured[own.items[own.events == _VIEW]] = 2
    favoured[own.items[own.events == _PURCHASE]] = 0
    favoured[own.items[-1]] = 4
    return favoured


def _never_ranked(
    evaluate: Evaluate, histories: Histories, targets: NDArray[np.int32]
) -> Callable[[Histories, int], NDArray[np.float64]]:
    """Favours the items that were found not to be ranked against; in a turn one user asks for one item."""
    flat, favoured = evaluate(_constant, histories, targets), np.zeros(ITEMS)
    for turn in range(TURNS):
        asked = (np.arange(len(histories)) + turn * USERS // TURNS) % ITEMS  # (users,)
        raised = evaluate(_one_above(asked), histories, targets)
        item = asked[flat.users]
        held = [one in histories[int(user)].items for user, one in zip(flat.users, item, strict=True)]
        told = ~np.array(held) & (item != flat.targets)
        favoured[item[told & (raised.ranks == flat.ranks)]] = 2
    return lambda histories, user: favoured


def _one_above(asked: NDArray[np.int64]) -> Scorer:
    """A scorer that puts one item above all others for each user, who stand level."""

    def scores(histories: Histories, users: NDArray[np.int64]) -> Scores:
        raised = np.zeros((len(users), ITEMS))
        raised[np.arange(len(users)), asked[users]] = 1
        return raised

    return scores


def _check_candidates(flat: Evaluation, histories: Histories) -> None:
    unseen = np.array([ITEMS - len(np.unique(histories[int(user)].items)) for user in flat.users])
    wrong = int(np.count_nonzero(flat.ranks != (unseen - 1) / 2))
    if wrong or len(flat) != USERS:
        raise RankingError(
            f"Expected all users={USERS} of the canary ranked among all their unseen items, got users={len(flat)}, "
            f"of which {wrong} among others."
        )
