"""What each stage of reranking gives and costs, on the held-out items of a run.

Every evaluated user has the candidates that retrieval would give, the best 200 of the whole catalogue. A pipeline puts
them in another order; what was no candidate follows in the order of the model, so that a rank is still one among all
items. Settings are chosen on a *tuning run*: the run's own training data with the last item of every user held out once
more, and the same training over it. What is then told of the run's held-out items was not looked at for the choice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.ingest import RawData, read
from client.ranking.rerank import DAY, pipeline, read_settings, rerank
from client.ranking.rerank_stages import Candidates, Groups, ItemFacts, Stage
from shared import metrics
from shared.adapter import Release, load_release
from shared.errors import DataError
from shared.schema import Catalogue, Histories
from simulations.baselines import item_counts
from simulations.benchmarks.quality.federated import scored_by, trained
from simulations.evaluation import NO_TARGET, Evaluation, Scorer, Scores, evaluate, merge, paired_bootstrap
from simulations.results import parts_of
from simulations.segments import Part, ScorerOver, tail_items, with_target_in
from simulations.simulate import resume
from simulations.workspace import Workspace, prepare

Settings = Mapping[str, Any]
Row = dict[str, Any]
RETRIEVED = 200
USERS_AT_ONCE = 512
NONE, LONG_TAIL, MIX = "none", "long_tail", "mix"
STRENGTHS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
MIX_STRENGTH, MIX_TRADE_OFF = 0.2, 0.9
"""Of the default mix; the strength where none was chosen."""
AT_LEAST, AT_MOST = 2.0, 0.05
"""What the long tail is to gain, as a factor of its share of places, and NDCG@10 may lose, as a part of it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings of one stage, or of several, under a short name and the one value that varies.

    Parameters
    ----------
    stage : str
    value : float or None
        Its strength, trade-off or cap.
    settings : mapping
        As `client.ranking.rerank.read_settings` takes them.
    """

    stage: str
    value: float | None
    settings: Settings


def grid() -> list[Trial]:
    """Each stage alone, over a few strengths."""
    return [
        Trial(NONE, None, {}),
        *(Trial(LONG_TAIL, x, {"long_tail": {"strength": x}}) for x in STRENGTHS),
        *(Trial("freshen", x, {"freshen": {"strength": x, "half_life_days": 30}}) for x in (0.1, 0.2, 0.5, 1.0)),
        *(Trial("diversify", x, {"diversify": {"trade_off": x}}) for x in (0.9, 0.8, 0.7, 0.5, 0.3)),
        *(Trial("cap", x, {"cap": [{"kind": "category", "most": x}]}) for x in (5, 3, 2)),
    ]


def mix(strength: float = MIX_STRENGTH) -> Trial:
    """The default: some long tail, and a little diversity."""
    return Trial(MIX, strength, {"long_tail": {"strength": strength}, "diversify": {"trade_off": MIX_TRADE_OFF}})


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """The candidates of every evaluated user, and what is known of items.

    Parameters
    ----------
    before : Evaluation
        The model's own order; its lists are the candidates.
    candidates : tuple of Candidates
        One a user.
    facts : ItemFacts
    catalogue : Catalogue
    counts : array of int64, shape (items,)
        Training interactions of the whole federation.
    now : float
        Seconds; the last event of training.
    """

    before: Evaluation
    candidates: tuple[Candidates, ...]
    facts: ItemFacts
    catalogue: Catalogue
    counts: NDArray[np.int64]
    now: float


class _Keeping:
    """A scorer that keeps the scores of its last batch."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.scores: Scores = np.zeros((0, 0), dtype=np.float32)

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> Scores:
        self.scores = self._scorer(histories, users)
        return self.scores


def retrieve(
    scorer_over: ScorerOver, parts: Sequence[Part], n: int = RETRIEVED
) -> tuple[Evaluation, tuple[Candidates, ...]]:
    """Rank all items for all evaluated users, and keep the best `n` of each with their scores."""
    found, candidates = [], []
    for k, part in enumerate(parts):
        keeping = _Keeping(scorer_over(k, part.histories))
        for targets in _batches(part.targets):
            found.append(evaluate(keeping, part.histories, targets, batch=USERS_AT_ONCE, k=n))
            for scores, top in zip(keeping.scores, found[-1].top, strict=True):
                rows = top[top != NO_TARGET]
                candidates.append(Candidates(rows, scores[rows].astype(np.float32)))
    return merge(found), tuple(candidates)


def _batches(targets: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """The targets of `USERS_AT_ONCE` users at a time; all others have none."""
    asked = np.flatnonzero(targets != NO_TARGET)
    for start in range(0, len(asked), USERS_AT_ONCE):
        users, some = asked[start : start + USERS_AT_ONCE], np.full_like(targets, NO_TARGET)
        some[users] = targets[users]
        yield some


def question_of(release: Release, workspace: Workspace) -> Question:
    """What a release retrieves for the users of a federation; an item is as old as its first event in training."""
    parts, catalogue = parts_of(workspace, release.config), workspace.catalogue
    histories = [part.histories for part in parts]
    before, candidates = retrieve(scored_by(release, workspace), parts)
    bench = workspace.learner(0).workbench(release.config.model, release.config.seed or 0)
    added, now = _first_met(histories, len(catalogue))
    facts = ItemFacts(
        vectors=bench.catalogue.items.cpu().numpy(),
        popularity=release.prior.popularity,
        added=added,
        groups={"category": Groups.of(catalogue.categories, split=True)},
    )
    return Question(before, candidates, facts, catalogue, item_counts(histories, len(catalogue)), now)


def _first_met(histories: Sequence[Histories], items: int) -> tuple[NDArray[np.float64], float]:
    """First event of each item, NaN for none, and the last event of all."""
    first = np.full(items, np.inf)
    for part in histories:
        np.minimum.at(first, part.items, part.timestamps.astype(np.float64))
    latest = max(float(part.timestamps.max(initial=0)) for part in histories)
    return np.where(np.isfinite(first), first, np.nan), latest


# --- what a pipeline makes of it ------------------------------------------------------------------


def reranked(question: Question, stages: Sequence[Stage], k: int = 10) -> Evaluation:
    """Where the held-out items stand after reranking.

    An item within the list has its place there; one that was no candidate stays where the model had it, and one that a
    stage took away comes last of all.
    """
    before, facts = question.before, question.facts
    ranks, top = before.ranks.copy(), np.full((len(before), k), NO_TARGET, dtype=np.int32)
    for user, candidates in enumerate(question.candidates):
        rows, target = rerank(candidates, facts, stages).rows, before.targets[user]
        top[user, : min(k, len(rows))] = rows[:k]
        if len(place := np.flatnonzero(rows == target)):
            ranks[user] = place[0]
        elif (candidates.rows == target).any():
            ranks[user] = before.candidates[user] - 1
    return Evaluation(before.users, before.targets, ranks, before.candidates, top)


def measured(question: Question, trial: Trial, base: Evaluation, *, seed: int = 0) -> Row:
    """The figures of one trial.

    Returns
    -------
    dict
        ``stage``, ``value``, ``settings``, ``retrieved``; what `Evaluation.metrics` has; ``tail_users_ndcg@10``, of
        the users whose held-out item is among the least popular 80 % of the catalogue; ``diversity@10`` and
        ``age_days@10`` of what is listed; ``exposure``, by fifths of the catalogue from the most popular on;
        ``ndcg_change``, to `base`, with the ends of a 95 % interval (paired bootstrap over users); ``ms_per_user``.
    """
    stages = pipeline(read_settings(trial.settings), question.catalogue, question.facts, now=question.now)
    began = time.perf_counter()
    after = reranked(question, stages)
    elapsed = time.perf_counter() - began
    change, low, high = paired_bootstrap(after.ranks, base.ranks, seed)
    tail, facts = with_target_in(after, tail_items(question.counts)), question.facts
    fifths = metrics.popularity_quantiles(question.counts)
    return {
        "stage": trial.stage,
        "value": trial.value,
        "retrieved": max(map(len, question.candidates)),
        "settings": dict(trial.settings),
        **after.metrics(question.counts),
        "tail_users_ndcg@10": metrics.ndcg(tail.ranks) if len(tail) else None,
        "tail_users": len(tail),
        "diversity@10": metrics.intra_list_diversity(after.top, facts.vectors),
        "age_days@10": (
            None if facts.added is None else metrics.mean_listed(after.top, (question.now - facts.added) / DAY)
        ),
        "exposure": metrics.exposure(after.top, fifths, 5).tolist(),
        "ndcg_change": [change, low, high],
        "ms_per_user": 1e3 * elapsed / len(after),
    }


def rows_of(question: Question, trials: Sequence[Trial]) -> list[Row]:
    """`measured` for each trial, against the model's own order."""
    base = reranked(question, ())
    return [measured(question, trial, base) for trial in trials]


# --- what is chosen -------------------------------------------------------------------------------


def chosen_strength(rows: Sequence[Row]) -> float:
    """Of the strengths that give the long tail `AT_LEAST` times its share, the one with the best NDCG@10.

    Raises
    ------
    DataError
        If none of them costs at most `AT_MOST` of it.
    """
    base = next(row for row in rows if row["stage"] == NONE)
    enough = [
        row
        for row in rows
        if row["stage"] == LONG_TAIL
        and row["long_tail@10"] >= AT_LEAST * base["long_tail@10"]
        and row["ndcg@10"] >= (1 - AT_MOST) * base["ndcg@10"]
    ]
    if not enough:
        raise DataError(f"Expected a strength with {AT_LEAST:g} times the long tail at {AT_MOST:.0%} of NDCG@10.")
    return float(max(enough, key=lambda row: float(row["ndcg@10"]))["value"])


def tuning_run(run: Path, out: Path) -> tuple[Release, Workspace]:
    """Hold out once more from a run's training data, and train on what is left as the run did.

    It takes as long as the run; one that was cut off goes on, and a whole one is opened.
    """
    config, workspace = load_release(run / "adapter").config, resume(run).workspace
    root = out / "partners"
    if (root / "held_out.parquet").exists():
        split = Workspace.open(root)
    else:
        parts = [read(learner.premises.data) for learner in workspace.learners()]
        named = [part.interactions.with_columns(partner=pl.lit(k, pl.Int32)) for k, part in enumerate(parts)]
        data = RawData("tuning", pl.concat(named), parts[0].items)
        split = prepare(data, data.interactions, root, seed=workspace.learner(0).premises.tie_seed)
    if (out / "adapter").exists():
        return load_release(out / "adapter"), split
    return trained(config, split, range(split.partners), root, out), split


def rerank_study(run: Path, tuning: Path | None = None) -> list[Row]:
    """Every stage alone and the default mix, on the held-out items of a run.

    Parameters
    ----------
    run : Path
        Run folder of a simulation.
    tuning : Path, optional
        Where the tuning run lies or is to be made. Without it nothing is chosen, and the mix is that of
        `MIX_STRENGTH`.

    Returns
    -------
    list of dict
        Rows of `measured` with their ``split``, ``last_but_one`` or ``last``, and ``chosen``.
    """
    rows: list[Row] = []
    trials, strength = grid(), None
    if tuning is not None:
        told = rows_of(question_of(*tuning_run(run, tuning)), trials)
        strength = chosen_strength(told)
        rows += [{"split": "last_but_one", "chosen": False, **row} for row in told]
    trials.append(mix() if strength is None else mix(strength))
    last = rows_of(question_of(load_release(run / "adapter"), resume(run).workspace), trials)
    rows += [{"split": "last", "chosen": _is_chosen(row, strength), **row} for row in last]
    return rows


def _is_chosen(row: Row, strength: float | None) -> bool:
    return strength is not None and row["stage"] in (LONG_TAIL, MIX) and row["value"] == strength
