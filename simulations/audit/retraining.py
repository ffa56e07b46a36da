"""Train a run's federation once more with other users, and ask its release about people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.app import app as client_app
from client.app import partner_folder
from client.data.histories import in_time_order
from client.data.ingest import RawData, read
from server.app import run_federation
from shared.adapter import load_release
from shared.config import RunConfig
from shared.errors import DataError
from simulations.audit.black_box import gains
from simulations.federation import InProcessGrid
from simulations.workspace import Workspace, prepare, simulated_key

Values = NDArray[np.float64]
Train = Callable[[Workspace, RunConfig, Path], Path]
"""From a federation, a configuration and an empty folder to the folder of a release."""
LEAST_EVENTS = 10
"""Of a user who is asked about."""
LEAST_ASKED = 20
"""People, or canaries, of whom the one-run audits can guess at all."""


def train(workspace: Workspace, config: RunConfig, out: Path) -> Path:
    """Train as ``veilrec simulate`` does, in this process, by the installed code."""
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    run_federation(grid, config, workspace.catalogue, out, workspace.root)
    return out / "adapter"


def events_of(workspace: Workspace) -> pl.DataFrame:
    """All interactions of all partners in time order, with a ``partner`` column."""
    parts = [
        read(partner_folder(workspace.root, k)).interactions.with_columns(partner=pl.lit(k, dtype=pl.Int32))
        for k in range(workspace.partners)
    ]
    return in_time_order(pl.concat(parts), workspace.learner(0).premises.tie_seed)


def federation(before: Workspace, events: pl.DataFrame, root: Path, seed: int) -> Workspace:
    """A federation over the same catalogue with other events; nothing is held back."""
    items = read(partner_folder(before.root, 0)).items
    return prepare(RawData("audit", events.drop("partner"), items), events, root, seed=seed, which="nothing")


def drawn(events: pl.DataFrame, m: int, rng: np.random.Generator, least: int = LEAST_EVENTS) -> tuple[str, ...]:
    """At most m users with at least `least` events, sorted.

    Raises
    ------
    DataError
        If there are fewer than `LEAST_ASKED`.
    """
    counted = events.group_by("user_id").len().filter(pl.col("len") >= least)
    known = counted.get_column("user_id").sort().to_list()
    if min(m, len(known)) < LEAST_ASKED:
        raise DataError(
            f"audit: Expected at least {LEAST_ASKED} users with {least} events to ask about, "
            f"got {len(known)}, candidates={m}."
        )
    return tuple(sorted(rng.choice(known, min(m, len(known)), replace=False).tolist()))


def without(events: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The events of everybody else."""
    return events.filter(~pl.col("user_id").is_in(list(names)))


def of(events: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The events of these users."""
    return events.filter(pl.col("user_id").is_in(list(names)))


def chosen(names: Sequence[str], inside: NDArray[np.bool_]) -> list[str]:
    """Whose coin says yes."""
    return [name for name, here in zip(names, inside, strict=True) if here]


def told_of(adapter: Path, apart: Workspace, names: Sequence[str]) -> Values:
    """How much likelier a release finds each user's events than the untrained model does, (m,).

    Mean log likelihood ratio of a user's positions; of a user of several partners the mean over these.

    Parameters
    ----------
    adapter : Path
    apart : Workspace
        Everybody who is asked about, at their partners, in or out.
    names : sequence of str
        User ids.
    """
    release, found = load_release(adapter), np.full((apart.partners, len(names)), np.nan)
    pseudonyms = simulated_key().pseudonyms(list(names))
    for k, learner in enumerate(apart.learners()):
        histories, gained = gains(release, learner)
        row = {user: place for place, user in enumerate(histories.users)}
        here = [place for place, user in enumerate(pseudonyms) if user in row]
        found[k, here] = gained[[row[pseudonyms[place]] for place in here]]
    return np.asarray(np.nanmean(found, axis=0), dtype=np.float64)
