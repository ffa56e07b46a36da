"""Items that nobody has met yet: a share of the catalogue is withheld from training, whole, and then asked for.

The usual hold-out has next to no such items: a catalogue's rare items are met by somebody. Here every event with a
withheld item is taken out of all partners' data before anything is trained or counted, and the withheld item that a
user met last is what the user's events before it have to lead to. Any model of ids alone gives withheld items equal
scores, so that among them it is chance; what is above chance was read from their texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.histories import build_histories, in_time_order
from client.data.ingest import RawData
from shared import metrics
from shared.adapter import load_release
from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Catalogue, Histories
from simulations.evaluation import Evaluation, evaluate, merge, targets_of
from simulations.results import scorers_of
from simulations.segments import ScorerOver, reading
from simulations.simulate import Request, run, spread, start
from simulations.workspace import Workspace, prepare, simulated_key

WHOLE = 2**31
"""No cap on a history: an event that was cut off would come back as a candidate."""


@dataclass(frozen=True, slots=True)
class ColdSplit:
    """Interactions without the withheld items, and what is asked of whom.

    Parameters
    ----------
    train : polars.DataFrame
        All rows whose item is not withheld.
    targets : polars.DataFrame
        user_id, item_id, partner; sorted by user_id. The withheld item that the user met last, at the partner that
        saw it.
    before : polars.DataFrame
        What that partner had seen of the user by then. Its withheld items are no candidates, and no input.
    withheld : tuple of str
        Item ids, sorted.
    """

    train: pl.DataFrame
    targets: pl.DataFrame
    before: pl.DataFrame
    withheld: tuple[str, ...]

    @property
    def inputs(self) -> pl.DataFrame:
        """Of `before`, what may be ranked from."""
        return self.before.filter(~pl.col("item_id").is_in(self.withheld))


def hold_out_cold(interactions: pl.DataFrame, share: float, seed: int) -> ColdSplit:
    """Withhold a share of the items that have events.

    Parameters
    ----------
    interactions : polars.DataFrame
        Of the whole federation; without ``partner`` all is at partner 0.
    share : float
        Between 0 and 1. Which items is a matter of a seeded hash of their ids alone.
    seed : int
        Of that hash, and of the order of events of equal time.

    Raises
    ------
    ConfigError
        If `share` is not between 0 and 1, or would withhold no item or all of them.
    EmptyHistoryError
        If no user met a withheld item after another one.
    """
    withheld = _withheld(interactions.get_column("item_id").unique().to_list(), share, seed)
    if "partner" not in interactions.columns:
        interactions = interactions.with_columns(partner=pl.lit(0, dtype=pl.Int32))
    ordered = in_time_order(interactions, seed).with_row_index("_place")
    cold = pl.col("item_id").is_in(withheld)
    now = pl.col("timestamp") == pl.col("timestamp").first()
    met = ordered.filter(cold).group_by("user_id", "item_id", maintain_order=True)
    # Of partners that saw the same event at the same time, the first.
    targets = (
        met.agg(pl.col("_place").first(), pl.col("partner").filter(now).min())
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("item_id", "_place", "partner").sort_by("_place").last())
    )
    when = targets.select("user_id", "partner", _asked="_place")
    before = ordered.join(when, on=["user_id", "partner"]).filter(pl.col("_place") < pl.col("_asked"))
    asked = before.filter(~cold).select("user_id").unique()
    if asked.is_empty():
        raise EmptyHistoryError("Expected users who met a withheld item after another one, got users=0.")
    return ColdSplit(
        train=ordered.filter(~cold).drop("_place"),
        targets=targets.join(asked, on="user_id", how="semi").select("user_id", "item_id", "partner").sort("user_id"),
        before=before.join(asked, on="user_id", how="semi").drop("_place", "_asked"),
        withheld=withheld,
    )


def _withheld(item_ids: list[str], share: float, seed: int) -> tuple[str, ...]:
    if not 0 < share < 1 or not 0 < round(share * len(item_ids)) < len(item_ids):
        raise ConfigError(f"Expected a share that withholds some of items={len(item_ids)}, got share={share}.")
    key = f"{seed}|cold".encode()
    ordered = sorted(item_ids, key=lambda item: hashlib.blake2b(item.encode(), key=key, digest_size=16).digest())
    return tuple(sorted(ordered[: round(share * len(item_ids))]))


@dataclass(frozen=True, slots=True)
class ColdPart:
    """What is asked at one partner: `inputs` are read, what is in `met` is no candidate; the same users in both.

    Parameters
    ----------
    partner : int
    inputs, met : Histories
    targets : array of int32, shape (users,)
        Catalogue rows of withheld items.
    """

    partner: int
    inputs: Histories
    met: Histories
    targets: NDArray[np.int32]


def cold_parts(split: ColdSplit, catalogue: Catalogue, *, seed: int, max_history: int) -> list[ColdPart]:
    """The question by partner; partners of whose users none is asked are left out."""
    parts, key = [], simulated_key()
    for k in split.targets.get_column("partner").unique().sort().to_list():
        here = pl.col("partner") == k
        inputs, met = (
            build_histories(frame.filter(here), catalogue, key, max_events=most, tie_seed=seed)
            for frame, most in ((split.inputs, max_history), (split.before, WHOLE))
        )
        parts.append(ColdPart(k, inputs, met, targets_of(split.targets.filter(here), met, catalogue, key)))
    return parts


def rank_cold(
    scorer_over: ScorerOver, parts: Sequence[ColdPart], withheld: NDArray[np.bool_]
) -> tuple[Evaluation, Evaluation]:
    """The withheld targets among all items and among the withheld ones; `withheld` has shape ``(items,)``."""
    overall, among_cold = [], []
    for part in parts:
        scorer = reading(scorer_over(part.partner, part.inputs), part.inputs)
        overall.append(evaluate(scorer, part.met, part.targets))
        among_cold.append(evaluate(scorer, part.met, part.targets, among=withheld))
    return merge(overall), merge(among_cold)


def chance(candidates: NDArray[np.int64], k: int = 10) -> float:
    """HR@k of equal scores whose ties are broken at random: the mean of ``min(1, k / candidates)``.

    This is what popularity has among items that nobody has met. (Fractional ranks, which evaluation uses, give all
    of them the middle place: no hit at all where there are more than 2 k.)
    """
    return float(np.minimum(1.0, k / candidates).mean())


def cold_row(overall: Evaluation, among_cold: Evaluation, items: int) -> dict[str, float]:
    """The figures of one method; ``to_chance`` is the ratio of its HR@10 among withheld items to `chance`."""
    k, by_chance = among_cold.top.shape[1], chance(among_cold.candidates)
    hits = metrics.hit_rate(among_cold.ranks, k)
    return {
        "users": len(overall),
        f"hr@{k}": metrics.hit_rate(overall.ranks, k),
        f"ndcg@{k}": metrics.ndcg(overall.ranks, k),
        f"coverage@{k}": metrics.coverage(overall.top, items),
        f"among_cold_hr@{k}": hits,
        f"among_cold_ndcg@{k}": metrics.ndcg(among_cold.ranks, k),
        "among_cold_auc": metrics.auc(among_cold.ranks, among_cold.candidates),
        f"chance_hr@{k}": by_chance,
        "to_chance": hits / by_chance,
    }


def cold_study(request: Request, out: Path, *, share: float) -> list[dict[str, Any]]:
    """Withhold items, train on the rest as any simulation does, and rank what was withheld.

    Parameters
    ----------
    request : Request
        As for a simulation; its partners are made here.
    out : Path
        Run folder: that of an ordinary run over the other items, whose ``run.json`` tells what it is worth there.
    share : float
        Of the items with events; see `hold_out_cold`.

    Returns
    -------
    list of dict
        One row a method: ``data``, ``method``, ``privacy``, ``epsilon``, ``withheld`` (items), what `cold_row` has,
        and ``warm_ndcg@10``, its NDCG@10 on the ordinary hold-out of the same run.

    Raises
    ------
    ConfigError, EmptyHistoryError
        See `hold_out_cold` and `simulations.simulate.start`.
    """
    data, partitioned = spread(request)
    split = hold_out_cold(partitioned, share, request.seed)
    left = RawData(data.name, split.train, data.items)
    root = out / f"{data.name}-without-cold"
    workspace = prepare(left, split.train, root, seed=request.seed)
    document = run(start(replace(request, federation=str(root)), out))
    return [
        {
            "data": data.name,
            "method": name,
            "privacy": document["privacy"]["mode"],
            "epsilon": None if document["privacy"]["mode"] == "none" else document["privacy"]["epsilon"],
            "withheld": len(split.withheld),
            **row,
            "warm_ndcg@10": document["metrics"][name]["ndcg@10"],
        }
        for name, row in evaluate_withheld(out / "adapter", workspace, split, seed=request.seed).items()
    ]


def evaluate_withheld(
    adapter: Path, workspace: Workspace, split: ColdSplit, *, seed: int
) -> dict[str, dict[str, float]]:
    """`cold_row` of the federated model, its parts and the classical baselines, none of which has met a target."""
    release, catalogue = load_release(adapter), workspace.catalogue
    parts = cold_parts(split, catalogue, seed=seed, max_history=release.config.model.max_history)
    withheld = np.zeros(len(catalogue), dtype=bool)
    withheld[[catalogue.rows[item] for item in split.withheld]] = True
    return {
        name: cold_row(*rank_cold(scorer_over, parts, withheld), len(catalogue))
        for name, scorer_over in scorers_of(release, workspace).items()
    }
