"""Rows of a table: means and intervals over seeds, and differences between methods over the same users."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shared import metrics
from shared.errors import DataError
from simulations.benchmarks.quality.cache import Result
from simulations.benchmarks.quality.study import FEDERATED, POOLED
from simulations.evaluation import bootstrap

HEADLINE = "ndcg@10"
LEVEL = 0.95
FEWEST_SEEDS = 3
"""With fewer there is no interval."""


@dataclass(frozen=True, slots=True)
class Group:
    """What is the same in the cells of one row."""

    data: str
    partition: str
    method: str
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A method under one promise, over all seeds that are done.

    Attributes
    ----------
    group : Group
    partners : int
    delta : float or None
    seeds : tuple of int
    means : mapping of str to float
        Of the figures that all seeds have.
    intervals : mapping of str to (float, float)
        95 % Student-t intervals of the means over seeds; empty with fewer than `FEWEST_SEEDS`. They tell how much the
        order of ties, the start, the sampling, the noise and the partition move a figure, not how much other users
        would.
    seconds : float
        Mean of a cell.
    """

    group: Group
    partners: int
    delta: float | None
    seeds: tuple[int, ...]
    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    seconds: float

    def document(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        bounds = {f"{name}_ci95": list(bound) for name, bound in self.intervals.items() if name != HEADLINE}
        headline = self.intervals.get(HEADLINE)
        return {
            **asdict(self.group),
            "delta": self.delta,
            "partners": self.partners,
            "seeds": len(self.seeds),
            **self.means,
            "ci95": None if headline is None else list(headline),
            **bounds,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """NDCG@10 of the federated model minus that of another row, over the same users.

    Attributes
    ----------
    ours, other : Group
    seeds : int
        That both have.
    difference, low, high : float
        With a 95 % bootstrap interval over users, each drawn with all seeds.
    """

    ours: Group
    other: Group
    seeds: int
    difference: float
    low: float
    high: float

    def document(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        against = {"against": self.other.method, "against_epsilon": self.other.epsilon}
        found = {"seeds": self.seeds, "difference": self.difference, "ci95": [self.low, self.high]}
        return {**asdict(self.ours), **against, **found}


def rows_of(results: Iterable[Result]) -> list[Row]:
    """One row a group, in the order in which they come first."""
    return [_row(group, found) for group, found in _grouped(results).items()]


def comparisons_of(results: Iterable[Result], *, seed: int = 0) -> list[Comparison]:
    """Each federated row against all others of the same promise or without privacy.

    Rows of another partition are no counterparts, those of methods that pool all data are.

    Raises
    ------
    DataError
        If two methods were not measured on the same users.
    """
    grouped = _grouped(results)
    return [
        compared
        for ours, found in grouped.items()
        if ours.method == FEDERATED
        for other in _counterparts(ours, grouped)
        if (compared := _compared(ours, found, other, grouped[other], seed)) is not None
    ]


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of a mean, ``m -+ t(n - 1) s / sqrt(n)``; None with fewer than `FEWEST_SEEDS` values.

    Source: Student, "The probable error of a mean", Biometrika 6(1), 1908.
    """
    if len(values) < FEWEST_SEEDS:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def _grouped(results: Iterable[Result]) -> dict[Group, list[Result]]:
    grouped: dict[Group, list[Result]] = {}
    for result in results:
        cell = result.cell
        grouped.setdefault(Group(cell.data, cell.partition, cell.method, cell.epsilon), []).append(result)
    return grouped


def _row(group: Group, found: list[Result]) -> Row:
    shared = [name for name in found[0].metrics if all(name in one.metrics for one in found)]
    values = {name: [one.metrics[name] for one in found] for name in shared}
    bounds = {name: t_interval(values[name]) for name in (HEADLINE, "hr@10")}
    return Row(
        group=group,
        partners=found[0].cell.partners,
        delta=found[0].cell.delta,
        seeds=tuple(one.cell.seed for one in found),
        means={name: statistics.fmean(of) for name, of in values.items()},
        intervals={name: bound for name, bound in bounds.items() if bound is not None},
        seconds=statistics.fmean(one.seconds for one in found),
    )


def _counterparts(ours: Group, groups: Iterable[Group]) -> Iterator[Group]:
    for other in groups:
        comparable = other.partition in (ours.partition, POOLED) and other.epsilon in (ours.epsilon, None)
        if other.data == ours.data and other != ours and comparable:
            yield other


def _compared(ours: Group, found: list[Result], other: Group, against: list[Result], seed: int) -> Comparison | None:
    theirs = {one.cell.seed: one for one in against}
    pairs = [(one, theirs[one.cell.seed]) for one in found if one.cell.seed in theirs]
    if not pairs:
        return None
    users = pairs[0][0].users
    if not all(np.array_equal(one.users, users) for pair in pairs for one in pair):
        raise DataError(f"{ours.data}: Expected {ours.method} and {other.method} measured on the same users.")
    # A mean over seeds for each user: the same user under another seed is no new user to draw.
    gains = [metrics.ndcg_per_user(one.ranks) - metrics.ndcg_per_user(against_it.ranks) for one, against_it in pairs]
    difference, low, high = bootstrap(np.mean(gains, axis=0), seed, level=LEVEL)
    return Comparison(ours, other, len(pairs), difference, low, high)
