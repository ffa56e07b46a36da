"""What is said in a round, and the chain of types that leads to it.

``ClippedSum -> NoisedSum -> MaskedUpdate``: each step is one function that takes one type and returns the
next (`client.privatize`), and the wire accepts only the last (`shared.wire`), so that nothing unclipped,
unnoised or unmasked can be sent by mistake.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.config import RunConfig
from shared.model.prior import CollaborativePrior
from shared.privacy.plan import PrivacyPlan, Stage

ROUND_PLAN = "round plan"
"""The purpose of the coordinator's signature over a round plan."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What the coordinator asks of every partner in one round; public, and the same for all of them.

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
    model_digest : str
        `model_digest` of what a training round starts from; empty for the prior's sum.
    attempt : str
        A fresh nonce: a round that is asked again is the same request in another attempt.
    """

    run_id: str
    round: int
    stage: Stage
    config: RunConfig
    plan: PrivacyPlan
    catalogue_digest: str
    model_digest: str
    attempt: str

    def text(self) -> str:
        """JSON with sorted keys: what the coordinator signs."""
        return json.dumps(self._told(), sort_keys=True)

    @property
    def request(self) -> str:
        """SHA-256 of all but the attempt: two attempts with one request ask for the same noised sum."""
        told = {key: value for key, value in self._told().items() if key != "attempt"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _told(self) -> dict[str, object]:
        return {
            "run_id": self.run_id,
            "round": self.round,
            "stage": self.stage,
            "config": self.config.model_dump(mode="json"),
            "plan": self.plan.told(),
            "catalogue_digest": self.catalogue_digest,
            "model_digest": self.model_digest,
            "attempt": self.attempt,
        }


@dataclass(frozen=True, slots=True)
class SignedPlan:
    """A round plan as it came: the `text` that the coordinator signed, and its `signature`."""

    text: str
    signature: bytes

    @property
    def context(self) -> bytes:
        """SHA-256 of the text, 32 bytes: what all keys and signatures of this attempt are bound to."""
        return hashlib.sha256(self.text.encode()).digest()


def model_digest(parameters: NDArray[np.float32], prior: CollaborativePrior) -> str:
    """SHA-256 of what a training round starts from: partners that are told different models find out."""
    h = hashlib.sha256()
    for name, array in (("parameters", parameters), *sorted(prior.arrays().items())):
        values = np.ascontiguousarray(array, dtype="<f4")
        h.update(f"{name} {values.shape}\n".encode() + values.tobytes())
    return h.hexdigest()


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
    """A clipped sum on the public lattice with the partner's share of the noise. Stays at the partner.

    Attributes
    ----------
    values : (P,) int64
        Lattice steps (`shared.privacy.lattice`).
    loss : float or None
        Only in mode ``none``.
    """

    values: NDArray[np.int64]
    loss: float | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MaskedUpdate:
    """What may leave: a noised sum in the ring of 32 bits, under the masks of the secure sum.

    Attributes
    ----------
    values : (P,) uint32
    masked : bool
        False only where the plan is not masked: in ``local`` mode, whose noise holds against everyone, and
        in simulations.
    loss : float or None
        Only in mode ``none``.
    """

    values: NDArray[np.uint32]
    masked: bool
    loss: float | None = None
