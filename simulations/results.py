"""What a run is worth: metrics of the federated model and of the baselines, and ``run.json``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.cleaning import clean
from client.learner import Learner
from client.ranking.rank import MARKETPLACE, data_of
from client.ranking.scorer import FrozenBert, ModelScorer, histories_scorer
from server.strategy import Run
from shared.adapter import Release, load_release
from shared.config import RunConfig
from shared.errors import AdapterMismatchError
from shared.model.behaviour import BehaviourStage, trainable_parameters
from shared.model.prior import solve
from shared.model.weights import find_base
from shared.privacy.accounting import epsilon_rows, epsilon_spent
from shared.schema import Histories
from simulations.baselines import BASELINES, item_counts
from simulations.evaluation import Scorer, evaluate_cold, merge_cold
from simulations.segments import (
    SEGMENTS,
    Part,
    QueryScores,
    ScorerOver,
    blind,
    category_popularity,
    measure_segments,
    rank_all,
    reading,
)
from simulations.spending import spent_document
from simulations.workspace import Workspace, prepare

COLD_THRESHOLD = 5
ModelPart = Literal["federated", "untrained", "prior_only"]
MODEL_PARTS: tuple[ModelPart, ...] = ("federated", "untrained", "prior_only")
"""The whole model; what it has before any training round, which is the prior and the frozen texts; the prior's sum
without what texts weigh beside it."""
FEW_EVENT_METHODS = (*MODEL_PARTS, "popularity", "item_knn")
Metrics = dict[str, Any]
"""``run.json``'s ``metrics``: figures by method, and by segment and method under ``segments``."""


def evaluate_run(adapter: Path, workspace: Workspace) -> Metrics:
    """Metrics of the federated model, of its parts, and of the classical baselines.

    Every partner ranks for its own users; users of all partners count alike. The baselines are
    trained on all partners' data together and without privacy: they are what pooling would give.
    """
    release = load_release(adapter)
    parts = parts_of(workspace, release.config)
    catalogue = workspace.catalogue
    counts = item_counts([part.histories for part in parts], len(catalogue))
    scorers = scorers_of(release, workspace)
    ranked = {name: rank_all(scorer, parts) for name, scorer in scorers.items()}
    metrics: Metrics = {name: one.metrics(counts) for name, one in ranked.items()}
    metrics["cold_items"] = _cold(scorers["federated"], parts, counts)
    metrics[SEGMENTS] = measure_segments(
        ranked,
        {name: scorers[name] for name in FEW_EVENT_METHODS},
        {
            **_queries(release, workspace),
            "category_popularity": category_popularity(catalogue, counts),
            "popularity": blind(counts),
        },
        catalogue,
        parts,
        counts,
        seed=release.config.seed or 0,
    )
    return metrics


def evaluate_on(run_folder: Path, data: str) -> dict[str, Any]:
    """``veilrec evaluate``: an adapter on a data set, all its users at one place.

    Events of one time stand in the order of the run's own seed: in another, other items would be last, and held out,
    which the adapter was trained on.

    Raises
    ------
    AdapterMismatchError
        If the adapter was trained with another catalogue.
    """
    release = load_release(run_folder / "adapter")
    if data == MARKETPLACE:  # the run's own partners, whose held-out items are no part of their folders
        workspace = Workspace.open(run_folder / "partners")
        metrics = evaluate_run(run_folder / "adapter", workspace)
        return {"data": {"name": data}, "privacy": release.manifest["privacy"], "metrics": metrics}
    cleaned = clean(data_of(run_folder, data))[0]
    one_place = cleaned.interactions.with_columns(partner=pl.lit(0, dtype=pl.Int32))
    with tempfile.TemporaryDirectory() as folder:
        workspace = prepare(cleaned, one_place, Path(folder), seed=release.config.seed or 0)
        if workspace.catalogue.digest != release.manifest["catalogue_sha256"]:
            raise AdapterMismatchError(
                f"{data}: Expected the catalogue that the adapter was trained with: digests differ."
            )
        metrics = evaluate_run(run_folder / "adapter", workspace)
    return {"data": {"name": cleaned.name}, "privacy": release.manifest["privacy"], "metrics": metrics}


def evaluate_alone(adapters: Sequence[Path], workspace: Workspace) -> dict[str, float]:
    """Metrics of partners that trained alone, each ranking for its own users."""
    releases = [load_release(folder) for folder in adapters]
    parts = parts_of(workspace, releases[0].config)
    counts = item_counts([part.histories for part in parts], len(workspace.catalogue))

    def alone(partner: int, histories: Histories) -> Scorer:
        return model_scorer(releases[partner], workspace.learner(partner), histories)

    return rank_all(alone, parts).metrics(counts)


def parts_of(workspace: Workspace, config: RunConfig) -> list[Part]:
    """Histories and held-out items of each partner."""
    return [
        Part(workspace.learner(k).histories(config.model), workspace.targets(k, config.model))
        for k in range(workspace.partners)
    ]


def scorers_of(release: Release, workspace: Workspace) -> dict[str, ScorerOver]:
    """The federated model, its parts, and the classical baselines fitted to all partners' training data."""
    histories, items = workspace.histories(release.config.model), len(workspace.catalogue)
    scorers = _model_scorers(release, workspace)
    scorers["frozen_bert"] = everywhere(_frozen(release, workspace, item_counts(histories, items)))
    return scorers | {name: everywhere(fit(histories, items)) for name, fit in BASELINES.items()}


def _model_scorers(release: Release, workspace: Workspace) -> dict[str, ScorerOver]:
    """The model and its parts, at every partner of a workspace."""

    def scorer_over(part: ModelPart) -> ScorerOver:
        return lambda k, histories: model_scorer(release, workspace.learner(k), histories, part)

    return {part: scorer_over(part) for part in MODEL_PARTS}


def model_scorer(release: Release, learner: Learner, histories: Histories, part: ModelPart = "federated") -> Scorer:
    """A release, or a part of it, over histories of a partner's users: the partner's own, or some of them."""
    config = release.config.model
    bench = learner.workbench(config, release.config.seed or 0)
    model = release.model.to(learner.device) if part == "federated" else None
    prior = replace(release.prior, text_weights=None) if part == "prior_only" else release.prior
    if histories is learner.histories(config):
        maker = learner.batch_maker(config, release.config.seed or 0)
    else:
        maker = learner.maker_of(histories, config, release.config.seed or 0)
    return histories_scorer(ModelScorer(model, prior, release.config.prior, bench.catalogue), maker)


def everywhere(scorer: Scorer) -> ScorerOver:
    """One scorer for all partners, which reads whatever histories it is given."""
    return lambda _, histories: reading(scorer, histories)


def _frozen(release: Release, workspace: Workspace, counts: NDArray[np.int64]) -> Scorer:
    learner = workspace.learner(0)
    bench = learner.workbench(release.config.model, release.config.seed or 0)
    popularity = solve("popularity", counts.astype(np.float64), len(counts), 0.0).popularity
    return FrozenBert(bench.catalogue, popularity)


def _queries(release: Release, workspace: Workspace) -> dict[str, QueryScores]:
    """How the model answers a query; without the behaviour stage it is the frozen BERT that answers."""
    learner = workspace.learner(0)
    bench = learner.workbench(release.config.model, release.config.seed or 0)

    def asked(model: BehaviourStage | None) -> QueryScores:
        scorer = ModelScorer(model, release.prior, release.config.prior, bench.catalogue)
        return lambda texts: np.stack([scorer.query(text, bench.text) for text in texts])

    return {"federated": asked(release.model.to(learner.device)), "frozen_bert": asked(None)}


def _cold(scorer_over: ScorerOver, parts: Sequence[Part], counts: NDArray[np.int64]) -> dict[str, float]:
    found = [
        evaluate_cold(scorer_over(k, part.histories), part.histories, part.targets, counts, threshold=COLD_THRESHOLD)
        for k, part in enumerate(parts)
    ]
    return merge_cold(found).metrics(counts)


def run_document(
    data_name: str,
    engine: str,
    config: RunConfig,
    run: Run,
    workspace: Workspace,
    out: Path,
    metrics: Metrics,
    timing: dict[str, float],
) -> dict[str, Any]:
    """``run.json``, as the contract has it."""
    release = load_release(out / "adapter")
    histories = workspace.histories(config.model)
    sizes = [{"users": len(h), "interactions": len(h.items)} for h in histories]
    users = sum(size["users"] for size in sizes)
    taken = users * run.plan.sampling_rate * run.plan.steps
    rounds = _records(out)
    return {
        "veilrec_version": version("veilrec"),
        "seed": config.seed,
        "engine": engine,
        "data": {
            "name": data_name,
            "users": users,
            "items": len(workspace.catalogue),
            "interactions": sum(size["interactions"] for size in sizes),
            "partners": workspace.partners,
        },
        "partners": [{"name": f"partner-{k:03d}", **size} for k, size in enumerate(sizes)],
        "model": {
            "base": config.model.base,
            "base_sha256": find_base(config.model.base).sha256,
            "adapted_layers": config.model.adapted_layers,
            "lora_rank": config.model.lora_rank,
            "trainable_parameters": sum(p.numel() for p in trainable_parameters(release.model).values()),
            "adapter_fingerprint": release.fingerprint,
        },
        "privacy": _privacy(config, run) | {"ledger": spent_document(workspace)},
        "epsilons": [asdict(row) for row in epsilon_rows(run.plan)],
        "metrics": metrics,
        "timing": {**timing, "users_per_s": taken / max(timing["training_s"], 1e-9)},
        "traffic": {
            "bytes_up_per_partner_round": max((r["bytes_up"] for r in rounds if r["stage"] == "train"), default=0),
            "bytes_down_per_partner_round": max((r["bytes_down"] for r in rounds), default=0),
            "bytes_up_prior_round": max((r["bytes_up"] for r in rounds if r["stage"] == "prior"), default=0),
        },
        "config": config.model_dump(mode="json"),
    }


def _privacy(config: RunConfig, run: Run) -> dict[str, Any]:
    return {
        **asdict(run.plan),
        "epsilon": epsilon_spent(run.plan, run.plan.rounds),
        "prior_epsilon": epsilon_spent(run.plan, 0),
        "randomness": "system" if config.seed is None else "seeded",
    }


def _records(out: Path) -> list[dict[str, Any]]:
    text = (out / "rounds.jsonl").read_text(encoding="utf-8") if (out / "rounds.jsonl").exists() else ""
    return [json.loads(line) for line in text.splitlines()]
