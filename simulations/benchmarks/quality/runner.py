"""From a study to results: the canary first, then every cell that the cache does not hold."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.config import RunConfig
from shared.errors import ConfigError
from simulations.baselines.methods import METHODS
from simulations.benchmarks.quality.cache import Cache, Result
from simulations.benchmarks.quality.canary import Canary, check_evaluator
from simulations.benchmarks.quality.central import Central
from simulations.benchmarks.quality.choosing import PRIORS, ROUNDS, choose, tuning_cell
from simulations.benchmarks.quality.dataset import Dataset, open_dataset
from simulations.benchmarks.quality.federated import run_alone, run_cell
from simulations.benchmarks.quality.study import ALONE, FROM_A_RUN, Cell, Study
from simulations.evaluation import evaluate, hold_out
from simulations.presets import merged

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """A data set in numbers."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study came to so far.

    Attributes
    ----------
    study : Study
    canary : Canary
    sizes : mapping of str to Sizes
        By the name of the data set.
    results : tuple of Result
        Of the cells that are done, in the study's order.
    cells : int
        How many the study has.
    """

    study: Study
    canary: Canary
    sizes: Mapping[str, Sizes]
    results: tuple[Result, ...]
    cells: int


def run_study(study: Study, cache: Cache, *, only_cached: bool = False, tell: Tell = lambda line: None) -> Outcome:
    """Do what is left of a study.

    Parameters
    ----------
    study : Study
    cache : Cache
        Gets every cell as soon as it is done: a process that is killed loses the one at work at most, and of a
        federated run the round.
    only_cached : bool
        Do nothing; collect what is there.
    tell : callable
        Gets a line about every cell.

    Raises
    ------
    RankingError
        If the canary finds a leak in the evaluator; nothing is measured.
    ConfigError
        If a method is unknown.
    """
    known = (*FROM_A_RUN, ALONE, *METHODS)
    if unknown := sorted(set(study.methods) - set(known)):
        raise ConfigError(f"Expected methods of {', '.join(known)}, got {', '.join(unknown)}.")
    canary = check_evaluator(hold_out, evaluate)
    private = {method: METHODS[method].private for method in study.methods if method in METHODS}
    sizes, results, wanted = {}, [], 0
    for name in study.data:
        data = open_dataset(name, users=study.users, items=study.items, partners=study.partners)
        sizes[data.raw.name] = Sizes(data.users, data.raw.items.height, data.raw.interactions.height)
        bench = _Bench(data, study, cache)
        cells = list(study.cells(name, private))
        wanted += len(cells)
        results += list(bench.results(cells, only_cached, tell))
    return Outcome(study, canary, sizes, tuple(results), wanted)


class _Bench:
    """The cells of one data set."""

    def __init__(self, data: Dataset, study: Study, cache: Cache) -> None:
        self._data, self._study, self._cache = data, study, cache
        self._central = Central(data, study.partners, cache)

    def results(self, cells: list[Cell], only_cached: bool, tell: Tell) -> Iterator[Result]:
        for number, cell in enumerate(cells, 1):
            if not only_cached:
                self._choose(cell, tell)
            untuned = self._tunes(cell) and self._note(cell) is None  # its key is that of a cell that is not to be
            found = None if untuned else self._cache.get(self._key(cell))
            if found is None and not only_cached:
                tell(f"{number} of {len(cells)}: {cell}")
                began = time.monotonic()
                self._run(cell)
                tell(f"{number} of {len(cells)}: done in {time.monotonic() - began:.0f} s")
                found = self._cache.get(self._key(cell))
            if found is not None:
                yield found

    def _choose(self, cell: Cell, tell: Tell) -> None:
        """Tune the federated model if that is asked for and not done."""
        if not self._tunes(cell) or self._note(cell) is not None:
            return
        tell(f"tuning on the last but one: {tuning_cell(cell)}")
        key, began = self._tuning_key(cell), time.monotonic()
        with self._cache.workplace(key) as folder:
            self._cache.put_note(key, choose(tuning_cell(cell), self._data, self._study.settings, folder))
            shutil.rmtree(folder)
        tell(f"tuned in {time.monotonic() - began:.0f} s: {json.dumps(self._note(cell))}")

    def _tunes(self, cell: Cell) -> bool:
        return self._study.tuned and cell.epsilon is None and cell.method not in METHODS

    def _note(self, cell: Cell) -> Mapping[str, Any] | None:
        return self._cache.note(self._tuning_key(cell))

    def _tuning_key(self, cell: Cell) -> str:
        tuning = tuning_cell(cell)
        config = self._data.config(tuning, self._study.settings).model_dump(mode="json")
        grid = [dict(one) for one in (*ROUNDS, *PRIORS)]
        decides = {"cell": asdict(tuning), "data": self._data.digest, "config": config, "grid": grid}
        return self._cache.key("tuning", decides)

    def _config(self, cell: Cell) -> RunConfig:
        chosen = self._note(cell) if self._tunes(cell) else None
        return self._data.config(cell, merged(chosen or {}, self._study.settings))

    def _key(self, cell: Cell) -> str:
        return self._cache.key("cell", self._decides(cell))

    def _decides(self, cell: Cell) -> Mapping[str, Any]:
        if cell.method in METHODS:
            return self._central.decides(cell)
        config = self._config(cell).model_dump(mode="json")
        return {"cell": asdict(cell), "data": self._data.digest, "config": config}

    def _run(self, cell: Cell) -> None:
        began = time.monotonic()
        if cell.method in METHODS:
            found, settings = self._central.run_cell(cell)
            self._cache.put(self._key(cell), cell, found, settings, time.monotonic() - began)
            return
        config = self._config(cell)
        with self._cache.workplace(self._key(cell)) as folder:
            if cell.method == ALONE:
                ranked = {ALONE: run_alone(cell, self._data, config, folder)}
            else:
                ranked = run_cell(cell, self._data, config, folder)
            seconds = time.monotonic() - began
            for method, found in ranked.items():  # one run, two results
                own = Cell(**{**asdict(cell), "method": method})
                self._cache.put(self._key(own), own, found, config.model_dump(mode="json"), seconds)
            shutil.rmtree(folder)
