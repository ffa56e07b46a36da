"""Baselines in a cell: tuned once a data set on the last-but-one split, fitted to all partners' data at one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.schema import Catalogue
from simulations.baselines import Budget, Problem
from simulations.baselines.methods import METHODS
from simulations.baselines.tuning import tune
from simulations.benchmarks.quality.cache import Cache
from simulations.benchmarks.quality.dataset import Dataset, Split, split
from simulations.benchmarks.quality.measure import Measured, measure
from simulations.benchmarks.quality.study import Cell
from simulations.presets import declared_population
from simulations.segments import reading

TUNING_SEED = 0


@dataclass(slots=True)
class Central:
    """The baselines of one data set; keeps the split and the vectors that it made last.

    Attributes
    ----------
    data : Dataset
    partners : int
        How the users are spread where a baseline is federated itself: IID, or as the data bring it.
    cache : Cache
        For what tuning chose.
    """

    data: Dataset
    partners: int
    cache: Cache
    _last: tuple[tuple[int, str], Split] | None = field(default=None, init=False)
    _vectors: NDArray[np.float32] | None = field(default=None, init=False)

    def decides(self, cell: Cell) -> dict[str, Any]:
        """All that decides the cell's figures, beside the code."""
        grid = [dict(one) for one in METHODS[cell.method].settings(_budget(cell))]
        return {"cell": asdict(cell), "data": self.data.digest, "grid": grid}

    def run_cell(self, cell: Cell) -> tuple[Measured, Mapping[str, float | int]]:
        """Tune if that has not been done, fit, and rank; returns the settings too."""
        settings = self._tuned(cell)
        parts = self._split(cell.seed, "last").parts
        scorer = METHODS[cell.method].fit(self._problem(cell, "last"), settings, _budget(cell), cell.seed)
        found = measure(lambda _, histories: reading(scorer, histories), parts, self.data.raw.items.height)
        return found, settings

    def _tuned(self, cell: Cell) -> Mapping[str, float | int]:
        method, budget = METHODS[cell.method], _budget(cell)
        grid = method.settings(budget)
        if len(grid) == 1:
            return grid[0]
        decides = self.decides(cell)
        decides["cell"]["seed"] = TUNING_SEED
        key = self.cache.key("tuning", decides)
        known = self.cache.note(key)
        if known is None:
            tuning = Cell(**{**asdict(cell), "seed": TUNING_SEED})
            targets = [part.targets for part in self._split(TUNING_SEED, "last_but_one").parts]
            known = dict(tune(method, self._problem(tuning, "last_but_one"), targets, budget, TUNING_SEED))
            self.cache.put_note(key, known)
        return known

    def _problem(self, cell: Cell, which: Literal["last", "last_but_one"]) -> Problem:
        held = self._split(cell.seed, which)
        return Problem(
            histories=tuple(part.histories for part in held.parts),
            items=len(held.catalogue),
            catalogue=held.catalogue,
            vectors=self._read_texts(cell, held.catalogue) if METHODS[cell.method].reads_text else None,
            population=declared_population(self.data.users),
            partners_per_user=2 if self.data.given else 1,
        )

    def _split(self, seed: int, which: Literal["last", "last_but_one"]) -> Split:
        if self._last is None or self._last[0] != (seed, which):
            self._last = (seed, which), split(self.data, method="iid", partners=self.partners, seed=seed, which=which)
        return self._last[1]

    def _read_texts(self, cell: Cell, catalogue: Catalogue) -> NDArray[np.float32]:
        """Text and item vectors of the catalogue under the model of the preset, shape (I, 2, H)."""
        if self._vectors is None:
            from client.workbench import open_workbench
            from shared.model.weights import choose_device
            from simulations.workspace import text_cache_path

            model = self.data.config(cell, {}).model
            bench = open_workbench(model, cell.seed, catalogue, text_cache_path(), choose_device("auto"))
            both = (bench.catalogue.texts, bench.catalogue.items)
            self._vectors = np.stack([one.cpu().numpy() for one in both], axis=1)
        return self._vectors


def _budget(cell: Cell) -> Budget | None:
    return None if cell.epsilon is None or cell.delta is None else Budget(cell.epsilon, cell.delta)
