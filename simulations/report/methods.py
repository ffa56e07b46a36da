"""The methods that a run compares, what each is, and which of them a federated model has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulations.report.source import Fields

HEADLINE = "ndcg@10"
"""The metric by which methods are compared."""

METRICS = {
    "ndcg@10": "NDCG@10",
    "hr@10": "HR@10",
    "mrr": "MRR",
    "coverage@10": "Coverage@10",
    "novelty@10": "Novelty@10",
    "long_tail@10": "Long tail@10",
    "users": "Users",
}

METHODS = {
    "federated": ("Federated", "this run's model"),
    "pooled": ("Pooled", "the same model trained on the data of all partners in one place"),
    "local_only": ("Local only", "each partner trains alone"),
    "untrained": ("Before training", "this run's collaborative prior beside the frozen BERT"),
    "prior_only": ("Prior only", "this run's collaborative prior without BERT"),
    "ease": ("EASE", "linear item-to-item model"),
    "next_item_ridge": ("Next-item ridge", "linear model of which item follows which"),
    "item_knn": ("Item cosine", "items of the same users"),
    "frozen_bert": ("Frozen BERT", "text alone, nothing trained"),
    "category_popularity": ("Category popularity", "the most popular items of the category that is asked for"),
    "popularity": ("Popularity", "the same list for everybody"),
}

NON_NEURAL = ("prior_only", "ease", "next_item_ridge", "item_knn", "popularity")
NOT_BASELINES = ("federated", "pooled")
COLD = "cold_items"
SEGMENTS = "segments"
SEGMENT_NAMES = {
    "long_tail": "Long tail: the held-out item is among the least popular 80 % of the catalogue.",
    "few_events": "New users: only the newest one to four events are read, for a seeded sample of at most 1,000 users.",
    "query_only": "No history: one category of the held-out item in words, for a seeded sample of at most 1,000 users.",
}


@dataclass(frozen=True, slots=True)
class Method:
    """One method and its metrics, by the names of `METRICS` (a metric that was not measured is absent)."""

    key: str
    label: str
    what: str
    values: Mapping[str, float]

    @property
    def headline(self) -> float | None:
        """NDCG@10, or None."""
        return self.values.get(HEADLINE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods of a run that were measured, in the order of `METHODS`, unknown ones last."""

    methods: tuple[Method, ...]

    def get(self, key: str) -> Method | None:
        """The method of that key, or None."""
        return next((method for method in self.methods if method.key == key), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of `METRICS` that at least one method has."""
        return tuple(key for key in METRICS if any(key in method.values for method in self.methods))

    @property
    def best_baseline(self) -> Method | None:
        """The strongest of all that is neither this run's model nor trained on pooled data."""
        return _best([method for method in self.methods if method.key not in NOT_BASELINES])

    @property
    def best_non_neural(self) -> Method | None:
        """The strongest method without a neural network."""
        return _best([method for method in self.methods if method.key in NON_NEURAL])

    def best_value(self, metric: str) -> float | None:
        """The highest value of a metric over all methods."""
        return max((method.values[metric] for method in self.methods if metric in method.values), default=None)


def compare(run: Fields) -> Comparison:
    """Read the section ``metrics`` of a ``run.json``.

    Raises
    ------
    SchemaError
        A method is not an object, or a metric not a number.
    """
    return _comparison(run.section("metrics"))


def compare_segments(run: Fields) -> dict[str, Comparison]:
    """The methods of each segment that was measured, in the order of `SEGMENT_NAMES`, unknown ones last.

    Raises what `compare` raises.
    """
    found = run.section("metrics").section(SEGMENTS)
    known = [name for name in SEGMENT_NAMES if name in found.values]
    names = [*known, *sorted(set(found.values) - set(known))]
    compared = {name: _comparison(found.section(name)) for name in names}
    return {name: comparison for name, comparison in compared.items() if comparison.methods}


def _comparison(metrics: Fields) -> Comparison:
    order = list(METHODS)
    keys = sorted(
        (key for key in metrics.values if key not in (COLD, SEGMENTS)),
        key=lambda k: (k not in METHODS, order.index(k) if k in METHODS else 0, k),
    )
    methods = (_method(key, metrics.section(key)) for key in keys)
    return Comparison(tuple(method for method in methods if method.values))


def ratio(value: float | None, base: Method | None) -> float | None:
    """NDCG@10 relative to that of `base`; None where either is missing or the base is zero."""
    if value is None or base is None or not base.headline:
        return None
    return value / base.headline


def _method(key: str, fields: Fields) -> Method:
    label, what = METHODS.get(key, (key.replace("_", " "), ""))
    measured = {name: fields.number(name) for name in METRICS}
    return Method(key, label, what, {name: value for name, value in measured.items() if value is not None})


def _best(methods: list[Method]) -> Method | None:
    return max((m for m in methods if m.headline is not None), key=lambda m: m.headline or 0.0, default=None)
