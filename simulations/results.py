"""What a run is worth: metrics of the federated model and of the baselines, and ``run.json``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.cleaning import clean
from client.ranking.rank import MARKETPLACE, data_of
from client.ranking.scorer import FrozenBert, ModelScorer, histories_scorer
from server.strategy import Run
from shared.adapter import Release, load_release
from shared.config import RunConfig
from shared.errors import AdapterMismatchError
from shared.model.behaviour import trainable_parameters
from shared.model.prior import solve
from shared.model.weights import find_base
from shared.privacy.accounting import epsilon_rows, epsilon_spent
from simulations.baselines import BASELINES, item_counts
from simulations.evaluation import Scorer, evaluate, evaluate_cold, merge, merge_cold
from simulations.spending import spent_document
from simulations.workspace import Workspace, prepare

COLD_THRESHOLD = 5
ScorerOf = Callable[[int], Scorer]


def evaluate_run(adapter: Path, workspace: Workspace) -> dict[str, dict[str, float]]:
    """Metrics of the federated model, of its parts, and of the classical baselines.

    Every partner ranks for its own users; users of all partners count alike. The baselines are
    trained on all partners' data together and without privacy: they are what pooling would give.
    """
    release = load_release(adapter)
    histories = workspace.histories(release.config.model)
    counts = item_counts(histories, len(workspace.catalogue))
    federated = _model_scorers(release, workspace)
    metrics: dict[str, dict[str, float]] = {"federated": _measure(federated, workspace, release.config, counts)}
    prior_only = _model_scorers(release, workspace, prior_only=True)
    metrics["prior_only"] = _measure(prior_only, workspace, release.config, counts)
    frozen = _frozen(release, workspace, counts)
    metrics["frozen_bert"] = _measure(lambda _: frozen, workspace, release.config, counts)
    for name, fit in BASELINES.items():
        scorer = fit(histories, len(workspace.catalogue))
        metrics[name] = _measure(lambda _, scorer=scorer: scorer, workspace, release.config, counts)  # type: ignore[misc]
    metrics["cold_items"] = _cold(federated, workspace, release.config, counts)
    return metrics


def evaluate_on(run_folder: Path, data: str, seed: int) -> dict[str, Any]:
    """``veilrec evaluate``: an adapter on a data set, all its users at one place.

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
        workspace = prepare(cleaned, one_place, Path(folder), seed=seed)
        if workspace.catalogue.digest != release.manifest["catalogue_sha256"]:
            raise AdapterMismatchError(
                f"{data}: Expected the catalogue that the adapter was trained with: digests differ."
            )
        metrics = evaluate_run(run_folder / "adapter", workspace)
    return {"data": {"name": cleaned.name}, "privacy": release.manifest["privacy"], "metrics": metrics}


def evaluate_alone(adapters: Sequence[Path], workspace: Workspace) -> dict[str, float]:
    """Metrics of partners that trained alone, each ranking for its own users."""
    releases = [load_release(folder) for folder in adapters]
    config = releases[0].config
    counts = item_counts(workspace.histories(config.model), len(workspace.catalogue))
    return _measure(lambda k: _model_scorers(releases[k], workspace)(k), workspace, config, counts)


def _model_scorers(release: Release, workspace: Workspace, *, prior_only: bool = False) -> ScorerOf:
    def scorer_of(partition: int) -> Scorer:
        learner = workspace.learner(partition)
        bench = learner.workbench(release.config.model, release.config.seed or 0)
        model = None if prior_only else release.model.to(learner.device)
        scorer = ModelScorer(model, release.prior, release.config.prior, bench.catalogue)
        return histories_scorer(scorer, learner.batch_maker(release.config.model, release.config.seed or 0))

    return scorer_of


def _frozen(release: Release, workspace: Workspace, counts: NDArray[np.int64]) -> Scorer:
    learner = workspace.learner(0)
    bench = learner.workbench(release.config.model, release.config.seed or 0)
    popularity = solve("popularity", counts.astype(np.float64), len(counts), 0.0).popularity
    return FrozenBert(bench.catalogue, popularity)


def _measure(
    scorer_of: ScorerOf, workspace: Workspace, config: RunConfig, counts: NDArray[np.int64]
) -> dict[str, float]:
    parts = [
        evaluate(scorer_of(k), workspace.learner(k).histories(config.model), workspace.targets(k, config.model))
        for k in range(workspace.partners)
    ]
    return merge(parts).metrics(counts)


def _cold(scorer_of: ScorerOf, workspace: Workspace, config: RunConfig, counts: NDArray[np.int64]) -> dict[str, float]:
    measure = partial(evaluate_cold, threshold=COLD_THRESHOLD)
    parts = [
        measure(
            scorer_of(k),
            workspace.learner(k).histories(config.model),
            workspace.targets(k, config.model),
            counts,
        )
        for k in range(workspace.partners)
    ]
    return merge_cold(parts).metrics(counts)


def run_document(
    data_name: str,
    engine: str,
    config: RunConfig,
    run: Run,
    workspace: Workspace,
    out: Path,
    metrics: dict[str, dict[str, float]],
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
