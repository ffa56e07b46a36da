"""Full-ranking evaluation: each user's last item is held out and ranked among all that the user has not seen.

::

    interactions -> hold_out -> training frame -> build_histories -> Histories --\\
                             -> held-out frame -> targets_of ------> targets ----+-> evaluate -> Evaluation
                                                               scorer -----------/

A scorer only ever gets histories, and `hold_out` takes every event with the target out of them: nothing that
is evaluated can see what it is asked for. All of this is utility; it runs in simulations, where the truth is
at hand, and none of its numbers is a message of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.histories import in_time_order
from client.data.pseudonyms import PseudonymKey
from shared import metrics
from shared.errors import ConfigError, DataError, EmptyHistoryError, RankingError
from shared.schema import Catalogue, Histories

Scores = NDArray[np.floating[Any]]
Scorer = Callable[[Histories, NDArray[np.int64]], Scores]
"""(histories, user indices (n,)) -> scores of the whole catalogue (n, items); higher is better."""

NO_TARGET = -1
COLD_THRESHOLD = 5
"""An item is cold with at most this many training interactions in the whole federation."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Where a scorer ranked the held-out item of each evaluated user.

    Parameters
    ----------
    users : array of int64, shape (n,)
        Index of each evaluated user in the histories; of each part's own histories after `merge`.
    targets : array of int32, shape (n,)
        Catalogue rows of the held-out items.
    ranks : array of float64, shape (n,)
        0-based, fractional: see `shared.metrics`.
    candidates : array of int64, shape (n,)
        How many items each target was ranked among, itself included.
    top : array of int32, shape (n, k)
        Catalogue rows by falling score, equal scores by row; -1 where there are fewer than k candidates.
    """

    users: NDArray[np.int64]
    targets: NDArray[np.int32]
    ranks: NDArray[np.float64]
    candidates: NDArray[np.int64]
    top: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ranks)

    def metrics(self, item_counts: NDArray[np.int64]) -> dict[str, float]:
        """The figures of a run and the number of users behind them.

        `item_counts`, shape (items,): see `simulations.baselines.item_counts`, over the whole federation.

        Raises
        ------
        EmptyHistoryError
            If no user was evaluated.
        """
        k = self.top.shape[1]
        return {
            f"ndcg@{k}": metrics.ndcg(self.ranks, k),
            f"hr@{k}": metrics.hit_rate(self.ranks, k),
            "mrr": metrics.mean_reciprocal_rank(self.ranks),
            f"coverage@{k}": metrics.coverage(self.top, len(item_counts)),
            f"novelty@{k}": metrics.novelty(self.top, item_counts),
            f"long_tail@{k}": metrics.long_tail_share(self.top, item_counts),
            "users": len(self),
        }


@dataclass(frozen=True, slots=True)
class ColdEvaluation:
    """The users whose held-out item is cold, ranked among all candidates and among the cold ones only."""

    threshold: int
    overall: Evaluation
    among_cold: Evaluation

    def metrics(self, item_counts: NDArray[np.int64]) -> dict[str, float]:
        """`Evaluation.metrics`, ``among_cold_ndcg@k``, ``among_cold_auc`` (0.5 is chance) and ``threshold``.

        Without any such user only ``users`` (0) and ``threshold`` are there: no evidence, no figure.
        """
        summary: dict[str, float] = {"users": len(self.overall), "threshold": self.threshold}
        if not len(self.overall):
            return summary
        ranks, k = self.among_cold.ranks, self.among_cold.top.shape[1]
        return {
            **self.overall.metrics(item_counts),
            f"among_cold_ndcg@{k}": metrics.ndcg(ranks, k),
            "among_cold_auc": metrics.auc(ranks, self.among_cold.candidates),
            **summary,
        }


def hold_out(
    interactions: pl.DataFrame,
    *,
    tie_seed: int,
    min_events: int = 5,
    which: Literal["last", "last_but_one"] = "last",
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the item of every user's last event.

    All events of the user with that item leave the training frame: a view cannot give the purchase away, and
    the target is always unseen. Users with fewer than `min_events` events, or with events of one item only
    (nothing would be left to rank from), keep everything and have no target.

    Parameters
    ----------
    interactions : polars.DataFrame
        Of the whole federation: a user of several partners has one last event.
    tie_seed : int
        Orders events of equal time (`client.data.histories.in_time_order`).
    min_events : int, default 5
    which : {"last", "last_but_one"}
        For tuning, "last_but_one" splits once more: the last item is in neither frame.

    Returns
    -------
    train : polars.DataFrame
        Rows of `interactions`, in no promised order.
    held_out : polars.DataFrame
        user_id, item_id, sorted by user_id; ``partner``, which saw the event, where `interactions` has it.

    Raises
    ------
    ConfigError
        For another `which`, or `min_events` below 2.
    """
    if which not in ("last", "last_but_one"):
        raise ConfigError(f"Expected which=last or which=last_but_one, got which={which}.")
    if min_events < 2:
        raise ConfigError(f"Expected min_events of at least 2, got min_events={min_events}.")
    ordered = in_time_order(interactions, tie_seed)
    enough = ordered.group_by("user_id").len().filter(pl.col("len") >= min_events)
    train, held_out = _split_last(ordered, enough)
    return (train, held_out) if which == "last" else _split_last(train, held_out)


def _split_last(ordered: pl.DataFrame, users: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the last item of each of `users` off `ordered`, a frame in time order."""
    item, time = pl.col("item_id"), pl.col("timestamp")
    columns = [item.last(), item.n_unique().alias("_distinct")]
    if "partner" in ordered.columns:  # of partners that saw the same event at the same time, the first
        same = (item == item.last()) & (time == time.last())
        columns.append(pl.col("partner").filter(same).min())
    held_out = (
        ordered.join(users.select("user_id"), on="user_id", how="semi", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg(columns)
        .filter(pl.col("_distinct") > 1)
        .drop("_distinct")
        .sort("user_id")
    )
    train = ordered.join(held_out, on=["user_id", "item_id"], how="anti", maintain_order="left")
    return train, held_out


def targets_of(
    held_out: pl.DataFrame, histories: Histories, catalogue: Catalogue, key: PseudonymKey
) -> NDArray[np.int32]:
    """Catalogue row of each user's held-out item, shape ``(users,)``; -1 for users without one.

    Users of `held_out` that are not in `histories` (another partner's) are passed over. A held-out item that
    is not in the catalogue raises a `DataError`.
    """
    rows = [catalogue.rows.get(item_id, NO_TARGET) for item_id in held_out.get_column("item_id").to_list()]
    if NO_TARGET in rows:
        raise DataError("Expected every held-out item in the catalogue.")
    target_of = dict(zip(key.pseudonyms(held_out.get_column("user_id").to_list()), rows, strict=True))
    return np.array([target_of.get(user, NO_TARGET) for user in histories.users], dtype=np.int32)


def evaluate(
    scorer: Scorer,
    histories: Histories,
    targets: NDArray[np.int32],
    *,
    batch: int = 512,
    k: int = 10,
    among: NDArray[np.bool_] | None = None,
) -> Evaluation:
    """Rank each user's target among all items that are not in the user's history.

    Parameters
    ----------
    scorer : Scorer
    histories : Histories
        Whole ones: an event that a cap cut off would come back as a candidate. A model that reads the last T
        events cuts for itself.
    targets : array of int32, shape (users,)
        -1: the user is not evaluated.
    batch : int, default 512
        Users scored at once; changes memory, not results.
    k : int, default 10
        Length of the top lists.
    among : array of bool, shape (items,), optional
        Only these items are candidates. Default: the whole catalogue.

    Raises
    ------
    RankingError
        If scores have the wrong shape or are not finite, or a target is no candidate (seen before, or outside
        `among`).
    DataError
        If there is not one target for every user.
    ConfigError
        If `k` or `batch` is below 1.
    """
    if k < 1 or batch < 1:
        raise ConfigError(f"Expected k and batch of at least 1, got k={k}, batch={batch}.")
    if targets.shape != (len(histories),):
        raise DataError(f"Expected one target for each user, users={len(histories)}, got {targets.shape}.")
    users = np.flatnonzero(targets != NO_TARGET)
    parts = [
        _evaluate_batch(scorer, histories, users[start : start + batch], targets, k=k, among=among)
        for start in range(0, len(users), batch)
    ]
    return merge(parts or [_nobody(k)])


def _evaluate_batch(
    scorer: Scorer,
    histories: Histories,
    users: NDArray[np.int64],
    targets: NDArray[np.int32],
    *,
    k: int,
    among: NDArray[np.bool_] | None,
) -> Evaluation:
    scores, wanted = scorer(histories, users), targets[users]
    rows, seen = seen_pairs(histories, users)
    items = max(wanted.max(), seen.max(initial=0)) + 1 if among is None else len(among)  # known to exist
    if scores.ndim != 2 or len(scores) != len(users) or scores.shape[1] < items:
        raise RankingError(f"Expected scores of users={len(users)}, items={items} or more; got shape={scores.shape}.")
    candidates = np.ones(scores.shape, dtype=bool) if among is None else np.tile(among, (len(users), 1))
    candidates[rows, seen] = False  # (n, items)
    return Evaluation(
        users=users,
        targets=wanted,
        ranks=metrics.fractional_ranks(scores, wanted, candidates),
        candidates=np.count_nonzero(candidates, axis=1),
        top=_top(scores, candidates, k),
    )


def seen_pairs(histories: Histories, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each event of the users as a pair (place of the user in `users`, catalogue row of the item)."""
    lengths = histories.lengths[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    first = np.cumsum(lengths) - lengths  # of each user in the flat result
    events = np.arange(len(rows)) + np.repeat(histories.offsets[users] - first, lengths)
    return rows, histories.items[events]


def _top(scores: Scores, candidates: NDArray[np.bool_], k: int) -> NDArray[np.int32]:
    """The k best candidates of each row by falling score, equal ones by column; -1 where there are fewer."""
    masked = np.where(candidates, scores, -np.inf)
    width = min(k, masked.shape[1])
    # argpartition would leave it to chance which of the equals at the k-th place gets in.
    bar = -np.partition(-masked, width - 1, axis=1)[:, width - 1 : width]  # (n, 1): the k-th best score
    above, level = masked > bar, masked == bar
    room = width - np.count_nonzero(above, axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
    columns = np.nonzero(chosen)[1].reshape(len(masked), width)  # ascending within a row
    best = np.take_along_axis(masked, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    listed = np.where(np.isneginf(best), NO_TARGET, columns)
    top = np.full((len(masked), k), NO_TARGET, dtype=np.int32)
    top[:, :width] = np.take_along_axis(listed, order, axis=1)
    return top


def merge(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Pool the users of several partners, in the order given; every user weighs the same.

    Raises
    ------
    EmptyHistoryError
        If there is no evaluation.
    ConfigError
        If their top lists differ in length.
    """
    if not evaluations:
        raise EmptyHistoryError("Expected at least one evaluation to merge.")
    lengths = sorted({part.top.shape[1] for part in evaluations})
    if len(lengths) > 1:
        raise ConfigError(f"Expected top lists of one length, got k={lengths}.")
    return Evaluation(
        users=np.concatenate([part.users for part in evaluations]),
        targets=np.concatenate([part.targets for part in evaluations]),
        ranks=np.concatenate([part.ranks for part in evaluations]),
        candidates=np.concatenate([part.candidates for part in evaluations]),
        top=np.concatenate([part.top for part in evaluations]),
    )


def _nobody(k: int) -> Evaluation:
    users, rows = np.zeros(0, dtype=np.int64), np.zeros((0, k), dtype=np.int32)
    return Evaluation(users, rows[:, 0], users.astype(np.float64), users, rows)


def evaluate_cold(
    scorer: Scorer,
    histories: Histories,
    targets: NDArray[np.int32],
    item_counts: NDArray[np.int64],
    *,
    threshold: int = COLD_THRESHOLD,
    batch: int = 512,
    k: int = 10,
) -> ColdEvaluation:
    """`evaluate` over the users whose held-out item has at most `threshold` training interactions.

    `item_counts`, shape (items,), are those of the whole federation, not of one partner alone.
    """
    cold = item_counts <= threshold
    # The last entry of `cold` answers for NO_TARGET, and is overruled by the first condition.
    wanted = np.where((targets != NO_TARGET) & cold[targets], targets, NO_TARGET).astype(np.int32)
    overall = evaluate(scorer, histories, wanted, batch=batch, k=k)
    among_cold = evaluate(scorer, histories, wanted, batch=batch, k=k, among=cold)
    return ColdEvaluation(threshold, overall, among_cold)


def merge_cold(evaluations: Sequence[ColdEvaluation]) -> ColdEvaluation:
    """Pool the cold users of several partners.

    Raises what `merge` raises, and a `ConfigError` where the thresholds differ.
    """
    thresholds = sorted({part.threshold for part in evaluations})
    if len(thresholds) > 1:
        raise ConfigError(f"Expected one cold threshold, got thresholds={thresholds}.")
    overall = merge([part.overall for part in evaluations])
    among_cold = merge([part.among_cold for part in evaluations])
    return ColdEvaluation(thresholds[0], overall, among_cold)


def paired_bootstrap(
    ranks_a: NDArray[np.float64],
    ranks_b: NDArray[np.float64],
    seed: int,
    *,
    k: int = 10,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """NDCG@k of A minus that of B over the same users, with a percentile bootstrap interval over users.

    It covers the choice of users alone, not seeds of training: vary those outside.

    Returns
    -------
    difference, low, high : float

    Raises
    ------
    DataError
        If the two do not hold the same number of users.
    """
    if ranks_a.shape != ranks_b.shape:
        raise DataError(f"Expected ranks of the same users, got {ranks_a.shape} and {ranks_b.shape}.")
    gain = metrics.ndcg_per_user(ranks_a, k) - metrics.ndcg_per_user(ranks_b, k)  # (n,)
    return bootstrap(gain, seed, resamples=resamples, level=level)


def bootstrap(
    values: NDArray[np.float64], seed: int, *, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of one value a user, shape ``(n,)``, and the ends of a percentile bootstrap interval over users.

    Raises an `EmptyHistoryError` if there is no user.

    Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    if not len(values):
        raise EmptyHistoryError("Expected at least one user to draw from.")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
