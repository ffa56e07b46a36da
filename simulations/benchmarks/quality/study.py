"""What a study asks for, and the cells it comes to."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from simulations.datasets import MARKETPLACE

FEDERATED = "federated"
FROM_A_RUN = (FEDERATED, "untrained", "prior_only")
"""Methods that are measured on the release of one federated run: `simulations.results.MODEL_PARTS`."""
ALONE = "local_only"
"""Every partner trains by itself, with the same recipe and under the same promise, and ranks for its own users."""
PARTITIONS = ("iid", "dirichlet", "taste")
GIVEN, POOLED = "given", "pooled"
"""Partition of the marketplace, which brings its own; and of what is fitted to all partners' data at one place."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure's worth of work.

    Attributes
    ----------
    data : str
        Name of the data set, without its path.
    partition : str
        One of `PARTITIONS`, `GIVEN` or `POOLED`.
    partners : int
    method : str
    epsilon, delta : float or None
        User level, for all that the method does; both None without privacy.
    seed : int
        Decides the order of equal times (and with it what is held out), who goes where, how the model starts, who is
        sampled, and the noise.
    """

    data: str
    partition: str
    partners: int
    method: str
    epsilon: float | None
    delta: float | None
    seed: int

    def __str__(self) -> str:
        privacy = "no privacy" if self.epsilon is None else f"epsilon={self.epsilon:g}"
        return f"{self.data}, {self.partition}, {self.method}, {privacy}, seed={self.seed}"


@dataclass(frozen=True, slots=True)
class Study:
    """A table to be filled: data sets x partitions x privacy x seeds x methods.

    Attributes
    ----------
    data : tuple of str
        Names or paths, as `simulations.datasets.load` takes them, or ``marketplace``.
    partitions : tuple of str
        Of the federated methods; `PARTITIONS`. What the marketplace brings replaces them there.
    epsilons : tuple of float or None
        None: without privacy.
    seeds : int
        Seeds 0, 1, ...
    partners : int
    delta : float
        Wherever there is an epsilon.
    methods : tuple of str
        Of `FROM_A_RUN`, `ALONE` and names of `simulations.baselines.methods.METHODS`.
    users, items : int
        Size of the marketplace; its shop is that of seed 0 for all seeds.
    settings : mapping
        Overrides of the federated model's preset, a tree with the keys of `RunConfig`.
    tuned : bool
        Whether the federated model's settings without privacy are chosen, as those of the baselines always are.

    Raises
    ------
    ConfigError
        If something is asked for twice, or not at all, or is unknown.
    """

    data: tuple[str, ...]
    methods: tuple[str, ...]
    partitions: tuple[str, ...] = ("iid",)
    epsilons: tuple[float | None, ...] = (None,)
    seeds: int = 3
    partners: int = 8
    delta: float = 1e-6
    users: int = 6000
    items: int = 300
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = True

    def __post_init__(self) -> None:
        for name in ("data", "methods", "partitions", "epsilons"):
            _check_once(name, getattr(self, name))
        _check_once("data", [data_name(one) for one in self.data])  # one name in a table means one set
        if unknown := sorted(set(self.partitions) - set(PARTITIONS)):
            raise ConfigError(f"Expected partitions of {', '.join(PARTITIONS)}, got {', '.join(unknown)}.")
        if not all(epsilon is None or 0 < epsilon < math.inf for epsilon in self.epsilons) or not 0 < self.delta < 1:
            raise ConfigError("Expected finite epsilons above 0 or none, and a delta between 0 and 1.")
        model = self.settings.get("model")
        if isinstance(model, Mapping) and "max_history" in model:
            raise ConfigError("Expected no model.max_history: all methods rank for the same histories.")
        if self.seeds < 1 or self.partners < 1:
            raise ConfigError(f"Expected seeds >= 1 and partners >= 1, got {self.seeds} and {self.partners}.")

    def cells(self, data: str, private: Mapping[str, bool]) -> Iterator[Cell]:
        """The cells of one of the data sets, seed by seed, pooled methods first.

        A pooled method without a private form has its cell without privacy alone, whatever epsilons are asked for.

        Parameters
        ----------
        data : str
            One of `data`.
        private : mapping of str to bool
            Which pooled methods have a private form.
        """
        name, spread = data_name(data), (GIVEN,) if data == MARKETPLACE else self.partitions
        spread_methods = [method for method in (*FROM_A_RUN, ALONE) if method in self.methods]
        central = [method for method in self.methods if method not in spread_methods]
        for seed in range(self.seeds):
            for method in central:
                for epsilon in self.epsilons if private[method] else (None,):
                    yield self._cell(name, POOLED, method, epsilon, seed)
            for partition in spread:
                for epsilon in self.epsilons:
                    for method in spread_methods:
                        yield self._cell(name, partition, method, epsilon, seed)

    def _cell(self, data: str, partition: str, method: str, epsilon: float | None, seed: int) -> Cell:
        delta = None if epsilon is None else self.delta
        return Cell(data, partition, self.partners, method, epsilon, delta, seed)

    def command(self, data: Iterable[str] | None = None) -> str:
        """The command line of the study, or of its part over some of the data sets; no folder is told."""
        chosen = self.data if data is None else tuple(data)
        words = ["veilrec", "bench", "quality"]
        words += ["--data", ",".join(one if one == data_name(one) else f"PATH/{data_name(one)}" for one in chosen)]
        words += ["--partitions", ",".join(self.partitions)]
        words += ["--epsilons", ",".join("none" if epsilon is None else f"{epsilon:g}" for epsilon in self.epsilons)]
        words += ["--delta", f"{self.delta:g}", "--seeds", str(self.seeds), "--partners", str(self.partners)]
        words += ["--methods", ",".join(self.methods)]
        if MARKETPLACE in chosen:
            words += ["--users", str(self.users), "--items", str(self.items)]
        for section, values in sorted(self.settings.items()):
            inner = values.items() if isinstance(values, Mapping) else []
            for key, value in sorted(inner):
                words += ["--set", f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
        if not self.tuned:
            words.append("--no-tune")
        return shlex.join(words)


def data_name(name_or_path: str) -> str:
    """The name of a data set, given by name or path."""
    return Path(name_or_path).name


def _check_once(name: str, values: Iterable[object]) -> None:
    listed = list(values)
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError(f"Expected {name} with at least one entry and none twice, got entries={len(listed)}.")
