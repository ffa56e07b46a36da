"""An audited re-run: the training of a run once more, by the installed code, with canaries whose presence coins decide.

Same data, same plan, same code, another seed. Nothing of it is released: it is thrown away after the measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.app import app as client_app
from client.data.histories import build_histories
from client.learner import Learner
from client.statistics import clipped_statistics
from server.app import describe_run, run_federation
from server.checkpoint import CheckpointStore
from server.gathering import Gathered
from shared.config import RunConfig, load_config
from shared.model.prior import effective_kind, uninformed
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import sensitivity
from shared.privacy.plan import PrivacyPlan, Stage
from shared.schema import Histories
from simulations.audit.canaries import Candidates, GradientCanaries, TextCanaries, at_partners
from simulations.audit.retraining import events_of, federation
from simulations.audit.text_probe import TextProbe
from simulations.audit.watching import Watch
from simulations.federation import InProcessGrid
from simulations.segments import selected
from simulations.workspace import Workspace, simulated_key

FRESH_SHARE, LEAST_EVENTS = 0.4, 10
UNCLAIMED_ROUNDS = 60
"""Of a run without privacy: hundreds of rounds are usual there, and its users are found long before."""
PAIRWISE = ("hybrid", "ease")
"""Kinds of the prior's sum in which a pair of items has a coordinate of its own."""
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many canaries and candidates take part in a re-run, inside and outside together."""

    gradient: int = 1000
    text: int = 200
    users: int = 400


@dataclass(frozen=True)
class Subjects:
    """Who is asked about: the invented and the real ones.

    Attributes
    ----------
    gradient : GradientCanaries
    text : TextCanaries
    users : Candidates
    """

    gradient: GradientCanaries
    text: TextCanaries
    users: Candidates


@dataclass
class Rerun:
    """What an audited re-run shows.

    Attributes
    ----------
    config, plan
        Those of the run, but for the seed.
    subjects : Subjects
    adapter : Path
        What it released.
    workspace : Workspace
        Its partners.
    apart : Workspace
        All text canaries and the earlier (partner 0) and later (partner 1) events of all candidates, in or out.
    prior : (m,) float64 or None
        What is left of the prior's opened sum at each gradient canary's pair, less all real users, in units of the
        plan's sensitivity; None where the sum has no such coordinate or there is none.
    prior_signal : float
        What a canary that takes part adds there.
    training : (m, T) float64
        The same of each round's sum, at each gradient canary's coordinate.
    projections : (n, T) float64
        The same of each text canary, along its own gradient in that round less what all canaries have in common.
    reach : (n, T) float64
        What a text canary adds there if it is in the round.
    """

    config: RunConfig
    plan: PrivacyPlan
    subjects: Subjects
    adapter: Path
    workspace: Workspace
    apart: Workspace
    prior: Values | None = None
    prior_signal: float = 0.0
    training: Values = field(default_factory=lambda: np.zeros((0, 0)))
    projections: Values = field(default_factory=lambda: np.zeros((0, 0)))
    reach: Values = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def noise_factor(self) -> float:
        """Standard deviation of the noise of an opened sum over that of the plan's: what all answers add up to."""
        plan = self.plan
        if plan.mode == "local":
            return math.sqrt(plan.partners * plan.local_steps)
        return math.sqrt(plan.partners / (plan.survivors - plan.colluders))


def rerun(run: Path, folder: Path, *, seed: int, sizes: Sizes, tell: Callable[[str], None] = print) -> Rerun:
    """Train once more in `folder`, watched.

    Parameters
    ----------
    run : Path
        The folder of a simulated run, with its ``partners``.
    folder : Path
        Empty; what is written there holds the run's simulated data.
    seed : int
        Of the canaries, the coins and the training.
    sizes : Sizes
    tell : callable
        Is told of every round.
    """
    config = _config(run, seed)
    plan = build_plan(config)
    before = Workspace.open(run / "partners")
    events = events_of(before)
    subjects = _subjects(before, events, config, plan, seed, sizes)
    workspace = _with_subjects(before, events, subjects, plan, folder / "partners", seed)
    apart = _apart(before, subjects, folder / "apart", seed)
    made = Rerun(config, plan, subjects, folder / "run" / "adapter", workspace, apart)
    _train(made, folder / "run", tell)
    return made


def _config(run: Path, seed: int) -> RunConfig:
    config = load_config(run / "config.json").model_copy(update={"seed": seed})
    if config.privacy.mode != "none" or config.training.rounds <= UNCLAIMED_ROUNDS:
        return config
    training = config.training.model_copy(update={"rounds": UNCLAIMED_ROUNDS})
    return config.model_copy(update={"training": training})


def _subjects(
    workspace: Workspace, events: pl.DataFrame, config: RunConfig, plan: PrivacyPlan, seed: int, sizes: Sizes
) -> Subjects:
    bench = workspace.learner(0).workbench(config.model, config.seed or 0)
    kind = effective_kind(config.prior, plan, len(workspace.catalogue))
    gradient = GradientCanaries.draw(
        sizes.gradient, workspace.catalogue, bench.gradients.size, disjoint=kind not in PAIRWISE, seed=seed
    )
    return Subjects(
        gradient,
        TextCanaries.draw(sizes.text, workspace.catalogue, seed=seed),
        Candidates.draw(sizes.users, events, least=LEAST_EVENTS, share=FRESH_SHARE, seed=seed),
    )


def _with_subjects(
    before: Workspace, events: pl.DataFrame, subjects: Subjects, plan: PrivacyPlan, root: Path, seed: int
) -> Workspace:
    """The run's partners, with the canaries that take part, and of the candidates only what is trained on."""
    partners, catalogue = before.partners, before.catalogue
    others = events.filter(~pl.col("user_id").is_in(subjects.users.names))
    candidates = subjects.users.earlier.filter(pl.col("user_id").is_in(subjects.users.taking_part))
    parts = [others, candidates]
    for names, made, inside in (
        (subjects.gradient.names, subjects.gradient.events(catalogue), subjects.gradient.inside),
        (subjects.text.names, subjects.text.events, subjects.text.inside),
    ):
        present = [name for name, here in zip(names, inside, strict=True) if here]
        parts.append(
            at_partners(made, names, partners, plan.partners_per_user).filter(pl.col("user_id").is_in(present))
        )
    return federation(before, pl.concat(parts, how="diagonal_relaxed"), root, seed)


def _apart(before: Workspace, subjects: Subjects, root: Path, seed: int) -> Workspace:
    """Everybody who is asked about, whether or not they take part, where only the auditor looks."""
    first = pl.lit(0, dtype=pl.Int32)
    earlier = pl.concat(
        [subjects.text.events.with_columns(partner=first), subjects.users.earlier.with_columns(partner=first)],
        how="diagonal_relaxed",
    )
    later = subjects.users.later.with_columns(partner=pl.lit(1, dtype=pl.Int32))
    return federation(before, pl.concat([earlier, later], how="diagonal_relaxed"), root, seed)


def _train(made: Rerun, out: Path, tell: Callable[[str], None]) -> None:
    config, plan, workspace = made.config, made.plan, made.workspace
    learners = list(workspace.learners())
    bench = learners[0].workbench(config.model, config.seed or 0)
    watch = Watch(plan, made.subjects.gradient, _marked(made.subjects))
    maker = made.apart.learner(0).batch_maker(config.model, config.seed or 0)
    probe = TextProbe(maker, rows_of(maker.histories, made.subjects.text.names), bench, config.training, plan)
    store, run_id = CheckpointStore(out / "checkpoints"), describe_run(config, workspace.catalogue).run_id
    seen: list[Values] = []

    def witness(number: int, stage: Stage, gathered: Gathered) -> None:
        total = gathered.total.astype(np.float64) * plan.step(stage)
        unit = unit_of(plan, stage, len(total))
        if stage == "prior":
            made.prior, made.prior_signal = _prior_residuals(made, learners, total, unit)
            return
        left = total - np.sum(list(watch.others.values()), axis=0)
        seen.append(left[made.subjects.gradient.coordinates] / unit)
        kept = store.load(run_id)
        prior = (kept.prior if kept else None) or uninformed(len(workspace.catalogue))
        probe.look(left, list(watch.others), bench.prior_logits(prior, config.prior))
        watch.others.clear()
        tell(f"audited re-run: round {number}")

    with watch.over(learners, bench, config):
        grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
        run_federation(grid, config, workspace.catalogue, out, workspace.root, witness=witness)
    made.training = np.stack(seen, axis=1) if seen else np.zeros((len(made.subjects.gradient), 0))
    made.projections, made.reach = probe.projections, probe.reach


def unit_of(plan: PrivacyPlan, stage: Stage, size: int) -> float:
    """How far one user moves a sum of `size` coordinates by the plan's own account, rounding included."""
    return sensitivity(plan.scale(stage), size, plan.partners_per_user) * plan.step(stage)


def rows_of(histories: Histories, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Rows of users by id, in the order given."""
    row = {user: k for k, user in enumerate(histories.users)}
    return np.array([row[user] for user in simulated_key().pseudonyms(list(names))], dtype=np.int64)


def _marked(subjects: Subjects) -> dict[str, int | None]:
    key = simulated_key()
    gradient = dict(zip(key.pseudonyms(list(subjects.gradient.names)), range(len(subjects.gradient)), strict=True))
    return {**gradient, **dict.fromkeys(key.pseudonyms(list(subjects.text.names)))}


def _prior_residuals(made: Rerun, learners: list[Learner], total: Values, unit: float) -> tuple[Values | None, float]:
    """What the sum holds beside all who are not gradient canaries, along what each canary adds alone."""
    plan, config, n_items = made.plan, made.config, len(made.workspace.catalogue)
    kind = effective_kind(config.prior, plan, n_items)
    canaries, clip = made.subjects.gradient, 1.0 / plan.partners_per_user
    names = set(simulated_key().pseudonyms(list(canaries.names)))
    left = total.copy()
    for learner in learners:
        histories = learner.histories(config.model)
        kept = np.array([k for k, user in enumerate(histories.users) if user not in names], dtype=np.int64)
        left -= clipped_statistics(selected(histories, kept), n_items, config.prior, kind, clip_norm=clip).values
    along, signal = _own_coordinates(made, kind, n_items)
    if along is None:
        return None, 0.0
    return np.array([left[places] @ weights for places, weights in along]) / unit, signal / unit


def _own_coordinates(
    made: Rerun, kind: str, n_items: int
) -> tuple[list[tuple[NDArray[np.int64], Values]] | None, float]:
    """Of every gradient canary the coordinates of the prior's sum that no other one touches, and unit weights there."""
    canaries, catalogue = made.subjects.gradient, made.workspace.catalogue
    most = made.config.model.max_history
    histories = build_histories(canaries.events(catalogue), catalogue, simulated_key(), max_events=most, tie_seed=0)
    touched: dict[int, int] = {}
    parts: list[tuple[NDArray[np.int64], Values]] = []
    for row in rows_of(histories, canaries.names):
        one = selected(histories, np.array([row], dtype=np.int64))
        values = clipped_statistics(one, n_items, made.config.prior, kind, clip_norm=1.0).values
        places = np.flatnonzero(values)
        parts.append((places, values[places]))
        for place in places.tolist():
            touched[place] = touched.get(place, 0) + 1
    own, signals = [], []
    for places, values in parts:
        alone = np.array([touched[place] == 1 for place in places.tolist()], dtype=bool)
        norm = float(np.linalg.norm(values[alone]))
        if not norm:
            return None, 0.0
        own.append((places[alone], values[alone] / norm))
        signals.append(norm)
    return own, float(np.mean(signals))
