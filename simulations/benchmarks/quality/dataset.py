"""A data set of a study: cleaned, with what is told of it in public, and a digest that names it in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from client.data.histories import build_histories
from client.data.ingest import RawData
from shared.catalogue import build_catalogue
from shared.config import ModelConfig, RunConfig
from shared.schema import Catalogue
from simulations.benchmarks.quality.study import Cell, data_name
from simulations.datasets import MARKETPLACE, obtain
from simulations.evaluation import hold_out, targets_of
from simulations.partition import Method, partition
from simulations.presets import preset
from simulations.segments import Part
from simulations.workspace import simulated_key


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set, the same for all seeds.

    Attributes
    ----------
    raw : RawData
        Cleaned, under the name that the study's tables have for it.
    given : bool
        Whether the interactions name their partner.
    users : int
        Of all partners: a person at two of them counts twice, as no partner can tell.
    rating_max : float
        The best rating of the scale; 5 and 10 are the two in use.
    digest : str
        SHA-256 of the content; the order of the rows leaves no trace.
    """

    raw: RawData
    given: bool
    users: int
    rating_max: float
    digest: str

    def spread(self, method: Method, partners: int, seed: int) -> pl.DataFrame:
        """Interactions with a ``partner`` column; what the data bring themselves goes before `method`."""
        own: Method = "given" if self.given else method
        return partition(self.raw.interactions, self.raw.items, partners=partners, method=own, seed=seed)

    def config(self, cell: Cell, settings: Mapping[str, Any]) -> RunConfig:
        """The preset of a cell's size and privacy, overruled by `settings`.

        Raises
        ------
        ConfigError
            If a setting is not one of `RunConfig`, or has a wrong value.
        """
        asked = {"mode": "none"} if cell.epsilon is None else {"epsilon": cell.epsilon, "delta": cell.delta}
        tree = {**settings, "privacy": {**settings.get("privacy", {}), **asked}}
        return preset(
            users=self.users,
            items=self.raw.items.height,
            partners=cell.partners,
            seed=cell.seed,
            marketplace=self.given,
            rating_max=self.rating_max,
            settings=tree,
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Training histories and held-out items of each partner, as an evaluator who may see all of it has them."""

    catalogue: Catalogue
    parts: tuple[Part, ...]


def open_dataset(name_or_path: str, *, users: int, items: int, partners: int) -> Dataset:
    """Load and clean; the marketplace is generated, with so many `users`, `items` and `partners`, from seed 0.

    Raises
    ------
    ConfigError, DataError, SchemaError
        See `simulations.datasets.load`.
    """
    given = name_or_path == MARKETPLACE
    raw = obtain(name_or_path, users=users, items=items, partners=partners, seed=0)
    columns = ["user_id", "partner"] if given else ["user_id"]
    best = raw.interactions.get_column("rating").max()
    return Dataset(
        raw=RawData(data_name(name_or_path), raw.interactions, raw.items),
        given=given,
        users=raw.interactions.select(columns).unique().height,
        rating_max=10.0 if isinstance(best, float) and best > 5 else 5.0,
        digest=_digest(raw),
    )


def split(
    data: Dataset, *, method: Method, partners: int, seed: int, which: Literal["last", "last_but_one"] = "last"
) -> Split:
    """Hold out and build histories in memory, as `simulations.workspace.prepare` does on disk."""
    train, held_out = hold_out(data.spread(method, partners, seed), tie_seed=seed, which=which)
    catalogue, key, most = build_catalogue(data.raw.items), simulated_key(), ModelConfig().max_history
    parts = []
    for k in range(partners):
        own, wanted = train.filter(pl.col("partner") == k), held_out.filter(pl.col("partner") == k)
        histories = build_histories(own, catalogue, key, max_events=most, tie_seed=seed)
        parts.append(Part(histories, targets_of(wanted, histories, catalogue, key)))
    return Split(catalogue, tuple(parts))


def _digest(raw: RawData) -> str:
    digest = hashlib.sha256()
    for frame in (raw.interactions, raw.items):
        columns = sorted(frame.columns)
        digest.update(frame.select(columns).sort(columns).write_csv().encode())
    return digest.hexdigest()
