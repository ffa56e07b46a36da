"""What is said in a round, and the chain of types that leads to it.

``ClippedSum -> NoisedSum``: each step is one function that takes one type and returns the next
(`client.privatize`), and the wire accepts only the last (`shared.wire`), so that nothing unclipped or
unnoised can be sent by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.config import RunConfig
from shared.privacy.plan import PrivacyPlan

Stage = Literal["prior", "train"]


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What the coordinator asks of every partner in one round; public.

    Attributes
    ----------
    run_id : str
    round : int
        1 is the first; the prior's sum, if there is one, comes first.
    stage : {"prior", "train"}
    config : RunConfig
    plan : PrivacyPlan
        Of the whole run, not of the round.
    catalogue_digest : str
        The catalogue that the rows of all vectors mean.
    """

    run_id: str
    round: int
    stage: Stage
    config: RunConfig
    plan: PrivacyPlan
    catalogue_digest: str


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """A sum over users in which each moves at most `clip_norm`. Private: never leaves the partner.

    Attributes
    ----------
    values : (P,) float64
    clip_norm : float
    private_loss : float or None
        Mean loss of the users in the sum; data-dependent, reported only where privacy is off.
    """

    values: NDArray[np.float64]
    clip_norm: float
    private_loss: float | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NoisedSum:
    """A clipped sum with the partner's share of the noise: what may leave, once masks are in place.

    Attributes
    ----------
    values : (P,) float64
        On the public lattice of `client.privatize`.
    noise_stddev : float
        Of the share that was added; public. 0 only in mode ``none``.
    loss : float or None
        Only in mode ``none``.
    """

    values: NDArray[np.float64]
    noise_stddev: float
    loss: float | None = None
