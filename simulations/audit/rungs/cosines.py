"""Rung 3: cosine canaries that took part in a production run, found again in what it released.

Every partner added synthetic users of known direction to its sums (`client.audit_canaries`), bound by its ledger before
the first round, and told their seed after the last. Whoever has the sum S of all released rounds measures
``cos_i = <c_i, S> / |S|``. A direction that was not added has a cosine of ``N(0, 1/d)``, so that nobody has to be left
out; one that was added in qT of T steps has a mean of at most ``mu / sqrt(d)`` with ``mu = q sqrt(T) / z``, for z the
plan's noise per canary's length: whatever else is in S makes S longer and the cosines smaller. So a larger mean, beyond
what chance does, refutes the plan's noise or its sampling.

What makes S longer also hides canaries, so that power hangs on it. How much of S differs from round to round, as noise
does, and how much all rounds share, the lengths of the single rounds tell (`simulations.audit.rungs.spread`).

What bounds epsilon here is the sum alone, as one Gaussian (Andrew et al., ICLR 2024, "all iterates hidden"): a reader
of the final model. It is an estimate under that form, and below what the accountant claims for all rounds.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.audit_canaries import Reveal, commitment_of, direction, reveal
from client.premises import Premises
from server.audit_sum import AuditSum
from shared.config import load_config
from shared.errors import ConfigError, DataError, IntegrityError
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.plan import PrivacyPlan
from simulations.audit.estimators.cosines import estimate
from simulations.audit.estimators.tradeoff import gdp_epsilon
from simulations.audit.findings import CONFIDENCE, Estimate, RungResult, ScoreSet, judge
from simulations.audit.rungs.spread import Spread, claimed_noise

NAME, TITLE = "3-cosines", "Cosine canaries in the rounds of the run itself"
ABOUT = "sum of the training rounds"
HALVED = 0.5
RUNS = 1000
"""Simulated audits behind a figure of power."""
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the plan says of the sum, with a canary's length as the unit.

    Attributes
    ----------
    size : int
        d, coordinates.
    steps : int
        T, noised sums that are in it.
    rate : float
        q.
    noise : float
        Standard deviation of a step's noise, in every coordinate, as claimed; 0 without privacy.
    presence : float
        Share of the partners that are in the sum of a mean round.
    """

    size: int
    steps: int
    rate: float
    noise: float
    presence: float = 1.0

    @classmethod
    def of(cls, plan: PrivacyPlan, released: AuditSum) -> Setting:
        """From the plan, for the rounds that were summed.

        Guarantees
        ----------
        `noise` is no more than what the plan promises: shares of more partners than it counts on only add to it.
        """
        steps, presence = len(released.rounds) * plan.local_steps, float(np.mean(released.cohorts)) / plan.partners
        return cls(released.total.size, steps, plan.sampling_rate, claimed_noise(plan), presence)

    @property
    def mu(self) -> float:
        """The largest ``sqrt(d)`` times mean cosine that the plan's noise allows; infinite without noise."""
        return self.rate * math.sqrt(self.steps) / self.noise if self.noise else math.inf

    @property
    def noise_energy(self) -> float:
        """Expected squared length of the claimed noise in the sum."""
        return self.size * self.steps * self.noise**2

    def simulate(self, k: int, noise_factor: float, others: float, rng: np.random.Generator) -> Vector:
        """Cosines of k canaries, shape ``(k,)``, if the noise were `noise_factor` times what is claimed.

        Parameters
        ----------
        others : float
            Squared length of what people put into the sum: seen along a canary it is Gaussian as well.
        """
        taken = rng.binomial(self.steps, self.rate * self.presence, k).astype(np.float64)
        noise = (noise_factor * self.noise) ** 2 * self.steps
        canaries = float(taken @ taken)
        beside = noise + (others + canaries - taken**2) / self.size  # variance along a canary's direction
        length = canaries + others + noise * (self.size + math.sqrt(2 * self.size) * rng.standard_normal())
        cosines: Vector = (taken + np.sqrt(beside) * rng.standard_normal(k)) / math.sqrt(length)
        return cosines


def refutes(cosines: Vector, setting: Setting, delta: float) -> bool:
    """Whether the bound is above what the plan's noise allows: the decision of this rung."""
    return estimate(cosines, setting.size, delta, CONFIDENCE).lower_bound > gdp_epsilon(setting.mu, delta)


def power(
    setting: Setting, k: int, delta: float, *, noise_factor: float = HALVED, others: float = 0.0, seed: int = 0
) -> float:
    """How often the rung refutes the claim if the noise were off by a factor, over `RUNS` simulated audits.

    Raises
    ------
    ConfigError
        If there is no noise to multiply.
    """
    if not setting.noise:
        raise ConfigError("power: Expected a plan with privacy: without noise nothing can be halved.")
    rng = np.random.default_rng([seed, 3])
    simulated = (setting.simulate(k, noise_factor, others, rng) for _ in range(RUNS))
    return sum(refutes(cosines, setting, delta) for cosines in simulated) / RUNS


def audit_run(run: Path, partners: Sequence[Path], *, seed: int = 0) -> RungResult:
    """The rung for a run whose partners' folders lie on this machine: a simulation.

    Raises
    ------
    DataError, ReplayError, LedgerError, IntegrityError
        As `audit` and `client.audit_canaries.reveal`.
    """
    released = AuditSum.read(run)
    premises = [Premises.open(folder) for folder in partners]
    ledgers = {each.name: each.ledger_file for each in premises}
    return audit(run, [reveal(each, released.run_id) for each in premises], ledgers, seed=seed)


def audit(run: Path, reveals: Sequence[Reveal], ledgers: Mapping[str, Path], *, seed: int = 0) -> RungResult:
    """Look for the canaries of those partners that told their seeds.

    Parameters
    ----------
    run : Path
        The run folder: ``config.json``, ``audit/sum.safetensors``.
    reveals : sequence of Reveal
        What partners told (``veilrec partner audit-canaries``); who told nothing is not measured.
    ledgers : mapping of str to Path
        By partner: a copy of its ledger, which bound it to its seed.
    seed : int
        Of the directions that nobody added, to compare with, and of the simulated power.

    Raises
    ------
    DataError
        If a file is not what was expected, or nobody told a seed.
    IntegrityError
        If a seed is not the one that its ledger names, or plan and sum are not of one run.
    LedgerError
        If a ledger cannot be believed.
    """
    began = time.monotonic()
    released, plan = AuditSum.read(run), build_plan(load_config(run / "config.json"))
    seeds = _seeds(reveals, ledgers, released, plan)
    if not released.rounds or plan.canaries * len(seeds) < 2:
        raise DataError(f"{run}: Expected at least one summed round and two canaries whose seeds were told.")
    setting, total = Setting.of(plan, released), _in_canaries(released, plan)
    spread = Spread.of(plan, released)
    inside = np.array([_cosine(one, total) for one in _directions(seeds, plan.canaries, total.size)])
    control = hashlib.sha256(f"control {seed}".encode()).digest()
    outside = np.array([_cosine(one, total) for one in _directions([control], len(inside), total.size)])
    return _result(plan, released, setting, spread, ScoreSet("cosines", inside, outside), seed, began)


def _seeds(
    reveals: Sequence[Reveal], ledgers: Mapping[str, Path], released: AuditSum, plan: PrivacyPlan
) -> list[bytes]:
    """The seeds, each checked against the commitment in its partner's ledger."""
    if len({each.partner for each in reveals}) != len(reveals):
        raise DataError("reveals: Expected every partner once.")
    seeds = []
    for told in reveals:
        if told.partner not in ledgers:
            raise DataError(f"reveals: Expected a copy of the ledger of {told.partner}.")
        runs = {each.run_id: each for each in read_ledger(ledgers[told.partner]).runs}
        bound = runs.get(released.run_id)
        seed = _hexadecimal(told.seed)
        if bound is None or bound.plan_digest != plan.digest() or told.run_id != released.run_id:
            raise IntegrityError(f"{told.partner}: Expected ledger, plan and sum of one run.")
        if commitment_of(seed) != bound.commitment or told.canaries != bound.canaries:
            raise IntegrityError(f"{told.partner}: Expected the seed that its ledger was bound to before the run.")
        seeds.append(seed)
    return seeds


def _hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise DataError("reveals: Expected a seed in hexadecimal.") from None


def _in_canaries(released: AuditSum, plan: PrivacyPlan) -> Vector:
    """The sum with a canary's length as the unit."""
    total = released.total.astype(np.float64) * (plan.step("train") / plan.partner_clip_norm)
    if not total.any():
        raise DataError("audit/sum.safetensors: Expected a sum that is not zero.")
    return total


def _directions(seeds: Sequence[bytes], each: int, size: int) -> Iterator[Vector]:
    return (direction(seed, number, size) for seed in seeds for number in range(each))


def _cosine(unit: Vector, total: Vector) -> float:
    return float(unit @ total / np.linalg.norm(total))


def _result(
    plan: PrivacyPlan, released: AuditSum, setting: Setting, spread: Spread, scores: ScoreSet, seed: int, began: float
) -> RungResult:
    found, k = estimate(scores.inside, setting.size, plan.delta, CONFIDENCE), len(scores.inside)
    claimed, likely = None, None
    if setting.noise:
        claimed = gdp_epsilon(setting.mu, plan.delta)
        if spread.known:
            likely = power(setting, k, plan.delta, others=spread.others, seed=seed)
    too_much = claimed is not None and found.lower_bound > claimed
    refuted = too_much or not all(each.holds for each in spread.measurements)
    one = Estimate(
        "cosines", ABOUT, found.lower_bound, found.point, CONFIDENCE, True, claimed, refutes=too_much, power=likely
    )
    return RungResult(
        name=NAME,
        title=TITLE,
        verdict=judge(refuted, likely),
        why=_why(claimed, too_much, refuted, likely),
        seconds=time.monotonic() - began,
        epsilon_lower_bound=found.lower_bound,
        power=likely,
        measurements=spread.measurements,
        estimates=(one,),
        scores=(scores,),
        facts={
            "canaries": k,
            "canaries_of_each_partner": plan.canaries,
            "dimension": setting.size,
            "rounds": list(released.rounds),
            "planned_rounds": plan.rounds,
            "mu": found.mu,
            "largest_mu_of_the_plan": setting.mu if setting.noise else None,
            "people_over_noise": spread.others / setting.noise_energy if setting.noise else None,
            "epsilon_of_the_run": epsilon_spent(plan, plan.rounds),
            "null_stddev": setting.size**-0.5,
            "seed": seed,
        },
    )


def _why(claimed: float | None, too_much: bool, refuted: bool, likely: float | None) -> str:
    if claimed is None:
        return "The run claims no privacy, so that there is nothing to refute; the bound is told."
    if too_much:
        return "More of the canaries is left in the released sums than the plan's noise and sampling allow."
    if refuted:
        return "The released sums differ less from round to round than the noise alone would make them."
    if likely is None:
        return "One round does not tell noise from what people put in."
    return (
        "No more of the canaries is left in the released sums than the plan allows; "
        f"with half of the noise that would have been seen with a probability of {likely:.2f}."
    )
