"""The real thing in a cell: partners on disk, keys, ledgers, masks, noise, and the in-process engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from client.agent import agent_for
from client.app import app as client_app
from server.app import run_federation
from shared.adapter import Release, load_release
from shared.config import RunConfig
from shared.errors import DataError
from shared.schema import Histories
from simulations.benchmarks.quality.dataset import Dataset
from simulations.benchmarks.quality.measure import Measured, measure
from simulations.benchmarks.quality.study import Cell
from simulations.evaluation import Scorer
from simulations.federation import InProcessGrid
from simulations.partition import Method
from simulations.results import MODEL_PARTS, ModelPart, model_scorer, parts_of
from simulations.segments import ScorerOver
from simulations.simulate import alone_config
from simulations.workspace import Workspace, prepare


def run_cell(cell: Cell, data: Dataset, config: RunConfig, folder: Path) -> dict[str, Measured]:
    """Train over the cell's partners and rank with the release, and with its parts.

    Parameters
    ----------
    cell : Cell
    data : Dataset
    config : RunConfig
        As `Dataset.config` gives it.
    folder : Path
        Where the federation and its checkpoints lie; a run that was cut off goes on from its last whole round.

    Returns
    -------
    dict of str to Measured
        Under the names of `simulations.results.MODEL_PARTS`.
    """
    workspace = workspace_of(cell, data, folder / "partners")
    release = trained(config, workspace, range(workspace.partners), workspace.root, folder)
    parts = parts_of(workspace, config)

    def ranked(part: ModelPart) -> Measured:
        return measure(scored_by(release, workspace, part), parts, len(workspace.catalogue))

    return {part: ranked(part) for part in MODEL_PARTS}


def run_alone(cell: Cell, data: Dataset, config: RunConfig, folder: Path) -> Measured:
    """Train at every partner by itself, under `simulations.simulate.alone_config`; each ranks for its own users."""
    workspace = workspace_of(cell, data, folder / "partners")
    alone, releases = alone_config(config, workspace.partners, len(workspace.catalogue)), []
    for k in range(workspace.partners):
        at = folder / "alone" / f"partner-{k:03d}"
        releases.append(trained(alone, workspace, [k], workspace.alone(k, at / "partners"), at))

    def scorer(partner: int, histories: Histories) -> Scorer:
        return model_scorer(releases[partner], workspace.learner(partner), histories)

    return measure(scorer, parts_of(workspace, config), len(workspace.catalogue))


def scored_by(release: Release, workspace: Workspace, part: ModelPart = "federated") -> ScorerOver:
    """Every partner ranks with the release, or with a part of it."""

    def scorer(partner: int, histories: Histories) -> Scorer:
        return model_scorer(release, workspace.learner(partner), histories, part)

    return scorer


def trained(config: RunConfig, workspace: Workspace, partners: Sequence[int], home: Path, out: Path) -> Release:
    """The release of a run over some of the partners; one that was cut off goes on."""
    agent_for.cache_clear()  # agents of the cell before hold its data
    run_federation(InProcessGrid(client_app, partners, home), config, workspace.catalogue, out, home)
    return load_release(out / "adapter")


def workspace_of(
    cell: Cell, data: Dataset, root: Path, *, which: Literal["last", "last_but_one"] = "last"
) -> Workspace:
    """The partners' folders: those of a run that was cut off if they are whole, or else new ones."""
    try:
        workspace = Workspace.open(root)
        if workspace.partners == cell.partners:
            return workspace
    except DataError:
        pass
    shutil.rmtree(root.parent, ignore_errors=True)  # a run over half a federation has nothing to go on from
    root.parent.mkdir(parents=True)
    method: Method = "given" if data.given else cell.partition  # type: ignore[assignment]
    return prepare(data.raw, data.spread(method, cell.partners, cell.seed), root, seed=cell.seed, which=which)
