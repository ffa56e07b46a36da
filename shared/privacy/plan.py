"""The privacy plan: public, complete, and the only thing that the accountant reads."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shared.buckets import largest_bucket, smallest_bucket, why_not
from shared.errors import PolicyViolationError
from shared.exchange import SMALLEST_COHORT
from shared.privacy.lattice import LARGEST_VECTOR, scale_for, sensitivity

Mode = Literal["distributed", "local", "none"]
Stage = Literal["prior", "train"]

SMALLEST_CLIP_NORM = 1e-6
"""Near float32's smallest numbers a clipped gradient is longer than the clip norm says."""
PARAMETERS_PER_CANARY = 100
"""The least trained parameters for each canary of any partner: more canaries would disturb each other (k = o(d) in
Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024)."""
ADDED_LATER: dict[str, Any] = {"canaries": 0, "buckets": 1}
"""Fields that plans of earlier versions do not have, and what their absence means: at that value they are not told."""


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """The mechanism of a whole run, from the first sum to the last round.

    The run is one composition: a noised sum over all users (the collaborative prior, if any), then `steps`
    Poisson-subsampled noised sums. Noise is integer-valued (Skellam) on a public lattice.

    Attributes
    ----------
    mode : {"distributed", "local", "none"}
        Who adds the noise: shares at every partner, all of it at every partner, nobody.
    unit, adjacency : str
        What is hidden: one user (all that the partners hold of them), added or removed.
    delta : float
    sampling_rate : float
        q of every step; public.
    population : int
        N0, declared. Sums are divided by ``q N0``, never by a measured count.
    clip_norm : float
        C, the most that one user moves a sum, over all partners that hold them.
    noise_multiplier : float
        z: the noise of a step's sum has z times the standard deviation of one user's reach, which is C
        and what rounding to the lattice adds to it (`shared.privacy.lattice.sensitivity`).
    prior_noise_multiplier : float or None
        The same for the prior's sum, whose sensitivity is 1; None if there is no such sum.
    rounds, local_steps : int
    partners : int
        n, the most that take part in a round.
    survivors, colluders : int
        t partners must answer in every sum and c of them may subtract their shares: a share has variance
        ``z^2 C^2 / (t - c)``.
    masked : bool
        The coordinator sees only the sum. If not, it sees each partner's own noised sum.
    partners_per_user : int
        k_max; every partner clips to ``C / k_max``.
    max_events : int
        m, the events of a user that are used.
    canaries : int
        Audit canaries at every partner in each step's sum; they are not data, so that no epsilon depends on them.
    buckets : int
        b, the sums that a round is split into (`shared.buckets`), each of them opened by t of its own members. All c
        colluders may be in one of them.

    Guarantees
    ----------
    Of b bucket sums each has the noise of the plan, and what is released of a round is the vector of all of them. One
    user moves that vector by no more than C in L2, wherever the k partners that hold them are: every partner moves
    one bucket's sum by at most ``C / k``, and the norm of the vector of moves is at most the sum of their norms.
    So epsilon does not depend on b (`shared.privacy.accounting`, in both of its worlds).
    """

    mode: Mode
    delta: float
    sampling_rate: float
    population: int
    clip_norm: float
    noise_multiplier: float
    prior_noise_multiplier: float | None
    rounds: int
    local_steps: int
    partners: int
    survivors: int
    colluders: int
    masked: bool
    partners_per_user: int
    max_events: int
    unit: str = "user"
    adjacency: str = "add-or-remove"
    mechanism: str = "skellam"
    accountant: str = "pld"
    canaries: int = 0
    buckets: int = 1

    def __post_init__(self) -> None:
        if self.canaries < 0:
            raise PolicyViolationError(f"Expected canaries >= 0, got {self.canaries}.")
        if self.population < 1:
            raise PolicyViolationError(
                f"Expected a declared population >= 1, got {self.population}: sums are divided by it."
            )
        if not 1 <= self.survivors <= self.partners:
            raise PolicyViolationError(f"Expected 1 <= survivors <= partners={self.partners}, got {self.survivors}.")
        self._check_buckets()
        if self.buckets == 1 and self.masked and 2 * self.survivors <= self.partners + self.colluders:
            raise PolicyViolationError(
                f"Expected 2 survivors > partners + colluders = {self.partners + self.colluders} under masks, "
                f"got survivors={self.survivors}: two different sums of one round could be opened."
            )
        if self.mode == "none":
            return
        noises = [self.noise_multiplier] if self.steps else []
        if self.prior_noise_multiplier is not None:
            noises.append(self.prior_noise_multiplier)
        if any(not math.isfinite(z) or z <= 0 for z in noises):
            raise PolicyViolationError(
                f"Expected noise_multiplier > 0 in mode={self.mode}, got {self.noise_multiplier} "
                f"(prior {self.prior_noise_multiplier})."
            )
        if not 0 < self.sampling_rate <= 1 or not 0 < self.delta < 1:
            raise PolicyViolationError("Expected 0 < sampling_rate <= 1 and 0 < delta < 1.")
        if not SMALLEST_CLIP_NORM <= self.clip_norm <= 1 / SMALLEST_CLIP_NORM or self.partners_per_user < 1:
            raise PolicyViolationError(
                f"Expected clip_norm from {SMALLEST_CLIP_NORM:g} to {1 / SMALLEST_CLIP_NORM:g} and partners_per_user "
                f">= 1, got {self.clip_norm} and {self.partners_per_user}."
            )
        if self.mode == "distributed" and not 0 <= self.colluders < self.survivors:
            raise PolicyViolationError(
                f"Expected 0 <= colluders < survivors={self.survivors}, got {self.colluders}: no honest share is left."
            )

    def _check_buckets(self) -> None:
        if self.buckets < 1:
            raise PolicyViolationError(f"Expected buckets >= 1, got {self.buckets}.")
        if reason := why_not(self.partners, self.buckets, self.masked):
            raise PolicyViolationError(f"Expected buckets that can be: {reason}.")
        smallest = smallest_bucket(self.partners, self.buckets)
        if self.buckets > 1 and not SMALLEST_COHORT <= self.survivors <= smallest:
            raise PolicyViolationError(
                f"Expected {SMALLEST_COHORT} <= survivors <= {smallest}, the smallest bucket, got {self.survivors}."
            )
        if self.buckets > 1 and 2 * self.survivors <= self.largest_cohort + self.colluders:
            raise PolicyViolationError(
                f"Expected 2 survivors > members of a bucket + colluders = {self.largest_cohort + self.colluders}, "
                f"got survivors={self.survivors}: two different sums of one bucket could be opened."
            )

    @property
    def largest_cohort(self) -> int:
        """The most partners in one sum: all, or the largest bucket."""
        return largest_bucket(self.partners, self.buckets)

    @property
    def steps(self) -> int:
        """T: noised sums over the training rounds."""
        return self.rounds * self.local_steps

    @property
    def partner_clip_norm(self) -> float:
        """What one partner clips a user's contribution to: ``C / k_max``."""
        return self.clip_norm / self.partners_per_user

    @property
    def normaliser(self) -> float:
        """``q N0``, the public divisor of a step's sum."""
        return self.sampling_rate * self.population

    def scale(self, stage: Stage) -> int:
        """Lattice steps per clip norm in a sum of this stage; public."""
        return scale_for(self.population if stage == "prior" else self.normaliser)

    def step(self, stage: Stage) -> float:
        """The length of one lattice step: a sum is this times its integers."""
        return (1.0 if stage == "prior" else self.clip_norm) / self.scale(stage)

    def multiplier(self, stage: Stage) -> float:
        """The noise multiplier of a stage; 0 in mode ``none``."""
        value = self.prior_noise_multiplier if stage == "prior" else self.noise_multiplier
        if value is None:
            raise PolicyViolationError(f"Expected a plan with a {stage} stage.")
        return 0.0 if self.mode == "none" else value

    def share_variance(self, stage: Stage, size: int) -> float:
        """Variance, in steps squared, of the noise that one partner adds to its own sum of `size` coordinates.

        Guarantees
        ----------
        In ``distributed`` mode the shares of any ``t - c`` honest partners, so those of every sum that is opened,
        add up to at least the noise of the plan. In ``local`` mode every partner adds all of it. In ``none``: 0.

        Raises
        ------
        PolicyViolationError
            If the sum has more coordinates than the accountant counts on.
        """
        if not 0 < size <= LARGEST_VECTOR:
            raise PolicyViolationError(f"Expected a sum of 1 to {LARGEST_VECTOR} coordinates, got {size}.")
        full = (self.multiplier(stage) * sensitivity(self.scale(stage), size, self.partners_per_user)) ** 2
        return full / (self.survivors - self.colluders) if self.mode == "distributed" else full

    def check_canaries(self, size: int) -> None:
        """Refuse more audit canaries than sums of `size` coordinates can tell apart.

        Raises
        ------
        PolicyViolationError
        """
        most = size // (PARAMETERS_PER_CANARY * self.partners)
        if self.canaries > most:
            raise PolicyViolationError(
                f"Expected canaries <= {most} at each of {self.partners} partners, for sums of {size} coordinates, "
                f"got {self.canaries}."
            )

    def told(self) -> dict[str, Any]:
        """The fields by name, as they are signed and kept in ledgers; those of `ADDED_LATER` only where they matter."""
        fields = asdict(self)
        return {key: value for key, value in fields.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}

    def digest(self) -> str:
        """SHA-256 of all that is told: two parties with one digest mean one plan."""
        text = "\n".join(f"{key}={value!r}" for key, value in sorted(self.told().items()))
        return hashlib.sha256(text.encode()).hexdigest()
