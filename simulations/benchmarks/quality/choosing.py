"""The federated model without privacy is tuned as the baselines are: at most eight settings, on the last-but-one split.

First the number of rounds, then the prior. The model is trained beside the prior, so that another prior needs no
other training. Under privacy nothing is chosen: every run would spend epsilon, and the preset stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.statistics import clipped_statistics
from shared import metrics
from shared.adapter import Release
from shared.config import RunConfig
from shared.model.prior import effective_kind, solve
from shared.privacy.accounting import build_plan
from simulations.benchmarks.quality.dataset import Dataset
from simulations.benchmarks.quality.federated import scored_by, trained, workspace_of
from simulations.benchmarks.quality.study import GIVEN, Cell
from simulations.evaluation import NO_TARGET
from simulations.presets import merged
from simulations.results import parts_of
from simulations.segments import Part, rank_all
from simulations.workspace import Workspace

Settings = Mapping[str, Any]
ROUNDS: tuple[Settings, ...] = ({}, {"training": {"rounds": 100}}, {"training": {"rounds": 30}})
PRIORS: tuple[Settings, ...] = (
    {"prior": {"decay": 0.8}},
    {"prior": {"decay": 0.8, "ease_ridge": 5.0}},
    {"prior": {"next_weight": 0.0, "ease_ridge": 100.0}},
    {"prior": {"weight": 1.2}},
    {"prior": {"weight": 4.8}},
)
MOST_USERS = 5000
"""Users of a tuning split that are ranked for."""


@dataclass(frozen=True, slots=True)
class _Trial:
    settings: Settings
    ndcg: float


def choose(cell: Cell, data: Dataset, settings: Settings, folder: Path) -> Settings:
    """The settings with the best NDCG@10; of equals the first.

    Parameters
    ----------
    cell : Cell
        Without privacy; its seed and partition are those of the tuning.
    settings : Settings
        What the study fixes, which is not chosen.
    folder : Path
        For the runs, which go on where they were cut off.
    """
    runs, trials = [], []
    for number, tried in enumerate(_free(ROUNDS, settings)):
        config = data.config(cell, merged(tried, settings))
        workspace = workspace_of(cell, data, folder / str(number) / "partners", which="last_but_one")
        release = trained(config, workspace, range(workspace.partners), workspace.root, folder / str(number))
        runs.append((workspace, release))
        trials.append(_Trial(tried, _ndcg(release, workspace)))
    best = max(trials, key=lambda trial: trial.ndcg)
    (workspace, release), rounds = runs[trials.index(best)], best.settings
    if not release.config.prior.training_share:
        for tried in _free(PRIORS, settings):
            both = merged(rounds, tried)
            other = _with_prior(release, data.config(cell, merged(both, settings)), workspace)
            trials.append(_Trial(both, _ndcg(other, workspace)))
    return max(trials, key=lambda trial: trial.ndcg).settings


def tuning_cell(cell: Cell) -> Cell:
    """Seed 0, IID or as the data are given: tuned once a data set, as the baselines are."""
    return replace(cell, method="federated", partition=GIVEN if cell.partition == GIVEN else "iid", seed=0)


def _free(grid: Sequence[Settings], fixed: Settings) -> Iterator[Settings]:
    """The settings of a grid that touch nothing that is fixed."""
    for tried in grid:
        if not any(set(values) & set(fixed.get(section, {})) for section, values in tried.items()):
            yield tried


def _with_prior(release: Release, config: RunConfig, workspace: Workspace) -> Release:
    """The same model beside the prior that a federation under `config` would have, from all partners' sums."""
    plan, n_items = build_plan(config), len(workspace.catalogue)
    kind = effective_kind(config.prior, plan, n_items)
    sums = [
        clipped_statistics(histories, n_items, config.prior, kind, clip_norm=1.0).values
        for histories in workspace.histories(config.model)
    ]
    total = np.sum(sums, axis=0)
    prior = solve(kind, total, n_items, 0.0, config=config.prior, population=plan.population)
    return replace(release, config=config, prior=prior)


def _ndcg(release: Release, workspace: Workspace) -> float:
    parts = [_some(part, workspace.partners) for part in parts_of(workspace, release.config)]
    return metrics.ndcg(rank_all(scored_by(release, workspace), parts).ranks)


def _some(part: Part, partners: int) -> Part:
    """A part of which no more than its share of `MOST_USERS` is ranked for: the first, in the order of pseudonyms."""
    wanted = np.flatnonzero(part.targets != NO_TARGET)
    wanted = wanted[np.argsort([part.histories.users[int(k)] for k in wanted])][: MOST_USERS // partners]
    targets = np.full_like(part.targets, NO_TARGET)
    targets[wanted] = part.targets[wanted]
    return Part(part.histories, targets)
