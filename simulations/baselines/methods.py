"""The baselines by name: how each is fitted, and the settings that its tuning may choose from.

A grid's first settings are the method's default. Under a budget closed forms have a grid of their own, since
what a ridge has to hold down is then the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from shared.errors import ConfigError
from simulations.baselines import closed_forms as private
from simulations.baselines.classical import ease, item_knn, popularity
from simulations.baselines.next_item import next_item_ridge
from simulations.baselines.problem import Budget, Problem, Settings
from simulations.evaluation import Scorer

__all__ = ["METHODS", "Budget", "Fit", "Method", "Problem", "Settings"]

Fit = Callable[[Problem, Settings, Budget | None, int], Scorer]
"""(problem, settings, budget, seed) -> scorer of users of any partner's histories."""


@dataclass(frozen=True, slots=True)
class Method:
    """A baseline.

    Attributes
    ----------
    name : str
    fit : Fit
        Without a budget: without privacy. Deterministic by seed.
    grid : tuple of Settings
        The first is the default.
    private : bool
        Whether `fit` takes a budget.
    private_grid : tuple of Settings
        The grid under a budget; `grid` where it is empty.
    reads_text : bool
        Whether `fit` needs ``Problem.vectors``.
    """

    name: str
    fit: Fit
    grid: tuple[Settings, ...]
    private: bool
    private_grid: tuple[Settings, ...] = ()
    reads_text: bool = False

    def settings(self, budget: Budget | None) -> tuple[Settings, ...]:
        """The grid with or without a budget.

        Raises
        ------
        ConfigError
            For a budget that the method has no private form for.
        """
        if budget is not None and not self.private:
            raise ConfigError(f"Expected budget=None: method={self.name} has no private form.")
        return (self.private_grid or self.grid) if budget is not None else self.grid


def _popularity(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    if budget is not None:
        return private.private_popularity(problem, settings, budget, seed)
    return popularity(problem.histories, problem.items)


def _item_knn(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    if budget is not None:
        return private.private_item_knn(problem, settings, budget, seed)
    shrink = float(settings["shrink"])
    return item_knn(problem.histories, problem.items, neighbours=int(settings["neighbours"]), shrink=shrink)


def _ease(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    if budget is not None:
        return private.private_ease(problem, settings, budget, seed)
    return ease(problem.histories, problem.items, ridge=settings["ridge"], decay=settings["decay"])


def _next_item(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    if budget is not None:
        return private.private_next_item(problem, settings, budget, seed)
    return next_item_ridge(problem.histories, problem.items, ridge=settings["ridge"], decay=settings["decay"])


def _als(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    from simulations.baselines.factorisation import als

    return als(problem, settings, budget, seed)


def _bpr(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    from simulations.baselines.factorisation import bpr

    return bpr(problem, settings, budget, seed)


def _sasrec(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    from simulations.baselines.sasrec import sasrec

    return sasrec(problem, settings, budget, seed)


def _federated_mf(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    from simulations.baselines.federated_mf import federated_mf

    return federated_mf(problem, settings, budget, seed)


def _frozen_bert(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Scorer:
    from simulations.baselines.frozen import frozen_bert

    return frozen_bert(problem, settings, budget, seed)


_NOTHING: Settings = {}
_EDGES = (2.0, 1.0, 4.0)


def _grid(names: str, *rows: tuple[float, ...], **shared: float) -> tuple[Settings, ...]:
    """Settings from a table: one row each, columns by name, and what all of them share."""
    return tuple({**dict(zip(names.split(), row, strict=True)), **shared} for row in rows)


_ALL = (
    Method("popularity", _popularity, (_NOTHING,), private=True),
    Method(
        "item_knn",
        _item_knn,
        _grid("neighbours shrink", (0, 0.0), (0, 10.0), (100, 0.0), (100, 10.0), (20, 0.0)),
        private=True,
        private_grid=_grid("neighbours floor", (0, 10.0), (0, 1.0), (0, 100.0), (100, 10.0)),
    ),
    Method(
        "ease",
        _ease,
        _grid("ridge", (500.0,), (50.0,), (100.0,), (250.0,), (1000.0,), (2000.0,), decay=1.0),
        private=True,
        private_grid=_grid("edge", (2.0,), (1.0,), (4.0,), (8.0,), ridge=2.0, decay=1.0),
    ),
    Method(
        "ease_recency",
        _ease,
        _grid("ridge decay", (500.0, 0.9), (500.0, 0.8), (100.0, 0.9), (100.0, 0.8), (50.0, 0.8), (2000.0, 0.8)),
        private=True,
        private_grid=_grid("edge decay", *((edge, decay) for edge in _EDGES for decay in (0.9, 0.95)), ridge=2.0),
    ),
    Method(
        "next_item_ridge",
        _next_item,
        _grid("decay ridge", (0.9, 5.0), (0.9, 2.0), (0.9, 20.0), (0.95, 5.0), (0.95, 2.0), (0.8, 5.0), (0.8, 2.0)),
        private=True,
        private_grid=_grid(
            "decay edge",
            *((decay, edge) for decay in (0.95, 0.9) for edge in (4.0, 8.0, 2.0)),
            ridge=20.0,
            targets=20,
            gram=0.5,
        ),
    ),
    Method(
        "als",
        _als,
        _grid(
            "factors regularization alpha",
            *(
                (64, 10.0, 10.0),
                (16, 0.1, 1.0),
                (128, 10.0, 1.0),
                (128, 50.0, 10.0),
                (16, 50.0, 10.0),
                (64, 100.0, 40.0),
            ),
            iterations=15,
        ),
        private=False,
    ),
    Method(
        "bpr",
        _bpr,
        _grid(
            "factors learning_rate regularization iterations",
            *((64, 0.01, 0.05, 300), (64, 0.01, 0.1, 300), (32, 0.01, 0.05, 300), (64, 0.05, 0.05, 50)),
            *((64, 0.01, 0.01, 100), (64, 0.01, 0.2, 300)),
        ),
        private=False,
    ),
    Method(
        "sasrec",
        _sasrec,
        _grid(
            "width dropout epochs learning_rate",
            *((64, 0.3, 80, 3e-3), (64, 0.3, 30, 3e-3), (64, 0.5, 60, 1e-3), (64, 0.4, 120, 3e-3)),
            (64, 0.3, 10, 3e-3),
            layers=2,
            max_events=50,
            batch=64,
            most_steps=5000,
        ),
        private=True,
        private_grid=_grid(
            "steps sampling_rate learning_rate",
            *((100, 0.06, 1e-2), (40, 0.06, 1e-2), (20, 0.2, 2e-2)),
            width=32,
            layers=1,
            max_events=30,
            clip_norm=0.5,
        ),
    ),
    Method(
        "federated_mf",
        _federated_mf,
        _grid(
            "factors alpha ridge rounds",
            *((64, 1.0, 10.0, 20), (64, 1.0, 50.0, 60), (16, 1.0, 10.0, 60), (64, 10.0, 50.0, 20), (16, 1.0, 50.0, 60)),
            sampling_rate=1.0,
            learning_rate=0.03,
        ),
        private=True,
        private_grid=_grid(
            "factors alpha ridge rounds",
            *((32, 10.0, 10.0, 20), (16, 10.0, 50.0, 20), (16, 1.0, 10.0, 40), (64, 10.0, 50.0, 10)),
            sampling_rate=1.0,
            learning_rate=0.03,
        ),
    ),
    Method(
        "frozen_bert",
        _frozen_bert,
        _grid(
            "temperature popularity_weight decay",
            *(
                (15.0, 0.9, 0.8),
                (15.0, 0.5, 0.8),
                (15.0, 0.9, 0.9),
                (30.0, 0.9, 0.8),
                (30.0, 0.9, 0.6),
                (60.0, 0.9, 0.6),
            ),
        ),
        private=True,
        reads_text=True,
    ),
)
CONCATENATED_TEXT = "concatenated_text"


class _Methods(Mapping[str, Method]):
    """The methods by name; the one that brings in PEFT and Opacus is made when it is asked for."""

    def __init__(self, quick: tuple[Method, ...]) -> None:
        self._quick = {method.name: method for method in quick}

    def __getitem__(self, name: str) -> Method:
        if name != CONCATENATED_TEXT:
            return self._quick[name]
        from simulations.baselines.concatenated import GRID, fit

        return Method(CONCATENATED_TEXT, fit, GRID, private=True, reads_text=True)

    def __iter__(self) -> Iterator[str]:
        yield from self._quick
        yield CONCATENATED_TEXT

    def __len__(self) -> int:
        return len(self._quick) + 1


METHODS: Mapping[str, Method] = _Methods(_ALL)
"""By name. Equal care: every grid has some settings, none more than eight."""
