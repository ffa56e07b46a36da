"""The server's optimiser: what the mean gradient of a round does to the global parameters.

All of it is post-processing of released sums: free of privacy cost. State is plain arrays, so that a
checkpoint holds all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shared.config import TrainingConfig

Vector = NDArray[np.float64]
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class ServerState:
    """The global model between rounds; every array has shape ``(P,)``.

    Attributes
    ----------
    steps : int
        Rounds that were applied.
    parameters : (P,)
    momentum, variance : (P,)
        Adam's moments.
    mean_parameters, averaged : (P,), int
        Mean of the iterates so far, and of how many.
    """

    steps: int
    parameters: Vector
    momentum: Vector
    variance: Vector
    mean_parameters: Vector
    averaged: int = field(default=0)

    @classmethod
    def start(cls, parameters: NDArray[np.float32]) -> ServerState:
        """Before the first round."""
        begin = parameters.astype(np.float64)
        return cls(0, begin, np.zeros_like(begin), np.zeros_like(begin), begin.copy())

    @property
    def released(self) -> NDArray[np.float32]:
        """What is released after the last round: the mean of the averaged iterates, or the last one."""
        return (self.mean_parameters if self.averaged else self.parameters).astype(np.float32)


def apply_mean_gradient(state: ServerState, gradient: Vector, config: TrainingConfig) -> ServerState:
    """One step of the server.

    ``adam``: Kingma and Ba (2015), as FedAdam (Reddi et al., 2021). ``average``: the plain mean of the
    partners' updates, scaled by the learning rate.
    """
    steps = state.steps + 1
    momentum, variance = state.momentum, state.variance
    if config.server_optimizer == "average":
        step = gradient
    else:
        momentum = config.beta1 * momentum + (1 - config.beta1) * gradient
        variance = config.beta2 * variance + (1 - config.beta2) * gradient**2
        corrected = np.sqrt(variance / (1 - config.beta2**steps)) + EPSILON
        step = momentum / (1 - config.beta1**steps) / corrected
    parameters = state.parameters - config.learning_rate * step
    moved = replace(state, steps=steps, parameters=parameters, momentum=momentum, variance=variance)
    return _averaged(moved, config)


def _averaged(state: ServerState, config: TrainingConfig) -> ServerState:
    if state.steps <= config.average_from * config.rounds:
        return state
    count = state.averaged + 1
    mean = (
        state.parameters if count == 1 else state.mean_parameters + (state.parameters - state.mean_parameters) / count
    )
    return replace(state, mean_parameters=mean, averaged=count)
