"""What a baseline is asked to solve, and under which promise to the users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Catalogue, Histories

Settings = Mapping[str, float | int]
"""Hyperparameters of a method by name; one entry of its grid."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The promise of a private baseline: (epsilon, delta) at user level, under add-or-remove of one user.

    Raises
    ------
    ConfigError
        If epsilon is not positive and finite, or delta not between 0 and 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf or not 0 < self.delta < 1:
            raise ConfigError(f"Expected a finite epsilon > 0 and 0 < delta < 1, got {self.epsilon} and {self.delta}.")


@dataclass(frozen=True, slots=True)
class Problem:
    """The training data of a federation, as an evaluator who may see all of it has them.

    Attributes
    ----------
    histories : tuple of Histories
        One a partner, without any held-out event.
    items : int
        I, the size of the catalogue.
    catalogue : Catalogue
    vectors : array of float32, shape (I, 2, H), or None
        Text vectors and item vectors of the frozen BERT (`client.workbench.catalogue_vectors`); None where no
        method reads text.
    population : int
        N0: the declared, public number of users.
    partners_per_user : int
        The most partners that hold one person; what is private is clipped to 1 / partners_per_user at each.

    Raises
    ------
    EmptyHistoryError
        If there is no interaction.
    ConfigError
        If `items` is not the size of the catalogue, or `population` or `partners_per_user` is below 1.
    """

    histories: tuple[Histories, ...]
    items: int
    catalogue: Catalogue
    vectors: NDArray[np.float32] | None
    population: int
    partners_per_user: int = 1

    def __post_init__(self) -> None:
        if not any(len(part.items) for part in self.histories):
            raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
        if self.items != len(self.catalogue):
            raise ConfigError(f"Expected items={len(self.catalogue)}, as in the catalogue, got items={self.items}.")
        if self.population < 1 or self.partners_per_user < 1:
            raise ConfigError(
                f"Expected population and partners_per_user of at least 1, got population={self.population}, "
                f"partners_per_user={self.partners_per_user}."
            )
