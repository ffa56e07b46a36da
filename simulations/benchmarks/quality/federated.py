"""The real thing in a cell: partners on disk, keys, ledgers, masks, noise, and the in-process engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from client.agent import agent_for
from client.app import app as client_app
from server.app import run_federation
from shared.adapter import Release, load_release
from shared.config import RunConfig
from shared.errors import DataError
from shared.schema import Histories
from simulations.benchmarks.quality.dataset import Dataset
from simulations.benchmarks.quality.measure import Measured, measure
from simulations.benchmarks.quality.study import FEDERATED, PRIOR_ONLY, Cell
from simulations.evaluation import Scorer
from simulations.federation import InProcessGrid
from simulations.partition import Method
from simulations.results import model_scorer, parts_of
from simulations.simulate import alone_config
from simulations.workspace import Workspace, prepare


def run_cell(cell: Cell, data: Dataset, config: RunConfig, folder: Path) -> dict[str, Measured]:
    """Train over the cell's partners and rank with the release, with and without its BERT part.

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
        Under `FEDERATED` and `PRIOR_ONLY`.
    """
    workspace = _workspace(cell, data, folder / "partners")
    release = _trained(config, workspace, range(workspace.partners), workspace.root, folder)
    parts = parts_of(workspace, config)

    def ranked(prior_only: bool) -> Measured:
        def scorer(partner: int, histories: Histories) -> Scorer:
            return model_scorer(release, workspace.learner(partner), histories, prior_only=prior_only)

        return measure(scorer, parts, len(workspace.catalogue))

    return {FEDERATED: ranked(False), PRIOR_ONLY: ranked(True)}


def run_alone(cell: Cell, data: Dataset, config: RunConfig, folder: Path) -> Measured:
    """Train at every partner by itself, under `simulations.simulate.alone_config`; each ranks for its own users."""
    workspace = _workspace(cell, data, folder / "partners")
    alone, releases = alone_config(config, workspace.partners), []
    for k in range(workspace.partners):
        at = folder / "alone" / f"partner-{k:03d}"
        releases.append(_trained(alone, workspace, [k], workspace.alone(k, at / "partners"), at))

    def scorer(partner: int, histories: Histories) -> Scorer:
        return model_scorer(releases[partner], workspace.learner(partner), histories)

    return measure(scorer, parts_of(workspace, config), len(workspace.catalogue))


def _trained(config: RunConfig, workspace: Workspace, partners: Sequence[int], home: Path, out: Path) -> Release:
    agent_for.cache_clear()  # agents of the cell before hold its data
    run_federation(InProcessGrid(client_app, partners, home), config, workspace.catalogue, out, home)
    return load_release(out / "adapter")


def _workspace(cell: Cell, data: Dataset, root: Path) -> Workspace:
    """The partners' folders: those of a run that was cut off if they are whole, or else new ones."""
    try:
        workspace = Workspace.open(root)
        if workspace.partners == cell.partners:
            return workspace
    except DataError:
        pass
    shutil.rmtree(root.parent)  # a run over half a federation has nothing to go on from
    root.parent.mkdir()
    method: Method = "given" if data.given else cell.partition  # type: ignore[assignment]
    return prepare(data.raw, data.spread(method, cell.partners, cell.seed), root, seed=cell.seed)
