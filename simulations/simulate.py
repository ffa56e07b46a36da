"""``veilrec simulate``: partition, train over simulated partners, evaluate, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from client.app import app as client_app
from client.data.ingest import RawData
from server.app import describe_run, run_federation
from server.strategy import Observer
from shared.config import ModelConfig, RunConfig
from shared.errors import CheckpointError, ConfigError
from shared.files import write_json
from shared.privacy.accounting import build_plan
from simulations.datasets import MARKETPLACE, obtain
from simulations.federation import InProcessGrid
from simulations.partition import Method, partition
from simulations.presets import for_population, preset
from simulations.progress import RunProgress
from simulations.report import render
from simulations.results import evaluate_alone, evaluate_run, run_document
from simulations.spending import export_ledgers, spent, told
from simulations.tensorboard import EventWriter
from simulations.workspace import Workspace, prepare

Engine = Literal["inprocess", "ray"]
REQUEST_FILE = "simulation.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a simulation was asked for; kept in ``simulation.json`` so that it can be resumed.

    Attributes
    ----------
    data : str
        ``marketplace``, an imported set, or a path.
    partition : {"iid", "dirichlet", "taste", "given"}
    users, items : int
        Size of the marketplace.
    local_only : bool
        Also train every partner alone, as a baseline: it doubles the time.
    settings : dict
        What the user fixed of the `RunConfig`; the rest comes from `simulations.presets`.
    federation : str
        A folder of partners that are there already (``veilrec data partition``): their data, keys and ledgers
        are used where they lie. Empty: partners are made from `data` in the run folder.
    """

    data: str
    partners: int
    partition: Method
    seed: int
    engine: Engine
    users: int
    items: int
    local_only: bool
    settings: dict[str, Any]
    federation: str = ""

    def root(self, out: Path) -> Path:
        """The folder of the partners' folders."""
        return Path(self.federation) if self.federation else out / "partners"


@dataclass(frozen=True)
class Simulation:
    """A simulation that is ready to run: its `request`, the federation on disk and its configuration."""

    out: Path
    request: Request
    data_name: str
    workspace: Workspace
    config: RunConfig


def start(request: Request, out: Path) -> Simulation:
    """Load, clean and partition the data, and write the partners' folders below ``out``.

    Raises
    ------
    ConfigError
        If `out` already holds a run, or a setting is wrong.
    AccountingError
        If no noise reaches the epsilon that was asked for.
    """
    if (out / REQUEST_FILE).exists():
        raise ConfigError(f"{out}: holds a run already. Expected another --out, or --resume {out}.")
    # What cannot be run is refused before a file is written.
    build_plan(_configured(request, users=1, items=1, rating_max=5.0))
    if request.federation:
        workspace = Workspace.open(Path(request.federation))
        name, request = workspace.root.resolve().name, replace(request, partners=workspace.partners)
    else:
        name = prepare_partners(request, out / "partners")
    write_json(out / REQUEST_FILE, {**asdict(request), "name": name})
    return resume(out)


def prepare_partners(request: Request, root: Path) -> str:
    """Write the partners' folders of a request below `root`; returns the name of the data."""
    data, partitioned = spread(request)
    prepare(data, partitioned, root, seed=request.seed)
    return data.name


def spread(request: Request) -> tuple[RawData, pl.DataFrame]:
    """The data of a request, cleaned, and its interactions with the ``partner`` of each."""
    data = obtain(request.data, users=request.users, items=request.items, partners=request.partners, seed=request.seed)
    method = "given" if request.data == MARKETPLACE else request.partition
    return data, partition(data.interactions, data.items, partners=request.partners, method=method, seed=request.seed)


def resume(out: Path) -> Simulation:
    """Open a simulation that was started before; it goes on from its last whole round.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    try:
        told = json.loads((out / REQUEST_FILE).read_text(encoding="utf-8"))
        name = str(told.pop("name"))
        request = Request(**told)
    except (OSError, ValueError, TypeError, KeyError):
        raise CheckpointError(f"{out / REQUEST_FILE}: Expected a simulation to resume.") from None
    workspace = Workspace.open(request.root(out))
    return Simulation(out, request, name, workspace, _config(request, workspace))


def run(simulation: Simulation, *, show: bool = True, ray_address: str = "") -> dict[str, Any]:
    """Train, evaluate, and write ``run.json``, ``report.html`` and the event files; returns ``run.json``."""
    out, config, workspace = simulation.out, simulation.config, simulation.workspace
    began = time.monotonic()
    plan = describe_run(config, workspace.catalogue)
    resumed = (out / "checkpoints").exists()  # its own plan is in the ledgers already
    if not resumed and (note := told(spent(workspace))):
        print(note, file=sys.stderr)
    with RunProgress(plan.rounds, enabled=show) as progress:
        with progress.stage("reading texts"):
            text_s = _timed(lambda: _read_texts(simulation))
        with EventWriter(out) as events:

            def observe(record: dict[str, Any]) -> None:
                events.round(record)
                progress.round_done(record)

            training_s = _timed(lambda: _train(simulation, observe, ray_address))
        export_ledgers(workspace, out)
        with progress.stage("evaluation"):
            evaluation_began = time.monotonic()
            metrics = evaluate_run(out / "adapter", workspace)
            if simulation.request.local_only:
                with progress.stage("partners alone"):
                    metrics["local_only"] = _local_only(simulation)
    timing = {
        "total_s": time.monotonic() - began,
        "text_stage_s": text_s,
        "training_s": training_s,
        "evaluation_s": time.monotonic() - evaluation_began,
    }
    document = run_document(
        simulation.data_name, simulation.request.engine, config, plan, workspace, out, metrics, timing
    )
    write_json(out / "run.json", document)
    render(out)
    return document


def prepare_for_flower(request: Request, root: Path) -> None:
    """Write the partners' folders and, beside them, the configuration that `flwr run` then uses."""
    prepare_partners(request, root)
    write_json(root / "config.json", _config(request, Workspace.open(root)).model_dump(mode="json"))


def _config(request: Request, workspace: Workspace) -> RunConfig:
    histories = workspace.histories(ModelConfig())
    best = max((float(np.nanmax(h.ratings, initial=0.0)) for h in histories), default=0.0)
    # 5 and 10 are the two scales in use.
    rating_max = 5.0 if best <= 5.0 else 10.0
    users, items = sum(len(h) for h in histories), len(workspace.catalogue)
    return _configured(request, users=users, items=items, rating_max=rating_max)


def _configured(request: Request, *, users: int, items: int, rating_max: float) -> RunConfig:
    return preset(
        users=users,
        items=items,
        partners=request.partners,
        seed=request.seed,
        marketplace=request.data == MARKETPLACE,
        rating_max=rating_max,
        settings=request.settings,
    )


def _read_texts(simulation: Simulation) -> None:
    for learner in simulation.workspace.learners():
        learner.batch_maker(simulation.config.model, simulation.config.seed or 0)


def _train(simulation: Simulation, observer: Observer, ray_address: str) -> None:
    workspace, config = simulation.workspace, simulation.config
    if simulation.request.engine == "ray":
        from simulations.ray import run_on_ray

        run_on_ray(config, workspace, simulation.out, observer, address=ray_address)
        return
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    run_federation(grid, config, workspace.catalogue, simulation.out, workspace.root, observer)


def _local_only(simulation: Simulation) -> dict[str, float]:
    """Every partner trains alone, see `alone_config`, and ranks for its own users."""
    workspace = simulation.workspace
    alone, folders = alone_config(simulation.config, workspace.partners, len(workspace.catalogue)), []
    for k in range(workspace.partners):
        folder = simulation.out / "local" / f"partner-{k:03d}"
        home = workspace.alone(k, folder / "partners")
        run_federation(InProcessGrid(client_app, [k], home), alone, workspace.catalogue, folder, home)
        folders.append(folder / "adapter")
    return evaluate_alone(folders, workspace)


def alone_config(config: RunConfig, partners: int, items: int) -> RunConfig:
    """The recipe for one partner: its own noise, for its part of the population, and what the preset has for so few.

    The promise is the partner's own: a person at two of them is promised epsilon by each.
    """
    own = for_population(config, max(1, round(config.privacy.population / partners)), items)
    return own.model_copy(
        update={
            "privacy": own.privacy.model_copy(update={"partners_per_user": 1, "colluders": 0}),
            "federation": own.federation.model_copy(
                update={"partners": 1, "quorum": 0, "buckets": 1, "combine": "sum"}
            ),
        }
    )


def _timed(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
