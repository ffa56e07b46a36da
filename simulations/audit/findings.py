"""What an audit finds: verdicts, measurements, bounds and curves, rung by rung.

A rung tries to refute the claim. FAIL: it did. PASS: it could not, and it would have refuted a mechanism with half of
the noise with a probability of at least `ENOUGH_POWER`. INCONCLUSIVE: it could not, and might not have noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH_POWER = 0.8
"""The least power against "noise halved" with which a rung may say PASS."""
CONFIDENCE = 0.95
"""Of an audit: what it may say falsely, it says in at most 5 % of all audits."""
RUNG_CONFIDENCE = 0.99
"""Of all bounds of one rung together: five of them (1, 2, 4, 5, 7) make one audit's `CONFIDENCE`. Rung 3 goes alone."""
Scores = NDArray[np.float64]


class Verdict(StrEnum):
    """What a rung, or the whole audit, says about the claim."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number that was measured and what it had to be.

    Attributes
    ----------
    name : str
        A sentence's beginning: ``noise of a share, standard deviation over the billed one``.
    value : float
    expected : str
        In words or numbers: ``1 ± 0.004``, ``<= 0.15``.
    holds : bool
    catches : str
        What goes wrong where it does not hold: ``noise halved``.
    """

    name: str
    value: float
    expected: str
    holds: bool
    catches: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one estimator makes of the scores of canaries.

    Attributes
    ----------
    estimator : str
        ``one-run SNJ``, ``one-run f-DP``, ``Gaussian pair``, ``cosines``.
    about : str
        Which scores: ``prior``, ``training``, ``whole run``.
    lower_bound : float or None
        Epsilon at the claim's delta, at `confidence`; None if the estimator gives none.
    point : float or None
        The estimate itself, where there is one.
    confidence : float
    parametric : bool
        It assumes a form of the scores' distribution: an estimate, not a proof.
    claimed : float or None
        Epsilon that the plan claims for these releases at that delta; None without privacy.
    refutes : bool
        The claim for these releases is rejected.
    power : float or None
        The probability of that if the noise were halved, by simulation of the claimed mechanism.
    """

    estimator: str
    about: str
    lower_bound: float | None
    point: float | None
    confidence: float
    parametric: bool
    claimed: float | None
    refutes: bool
    power: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreSet:
    """Scores of those who took part and of those who did not; what curves and bounds are made from.

    Attributes
    ----------
    name : str
    inside, outside : ndarray of float64
        Higher means: rather took part.
    """

    name: str
    inside: Scores
    outside: Scores


@dataclass(frozen=True, slots=True)
class RungResult:
    """What one rung found.

    Attributes
    ----------
    name : str
        ``0-mechanism``, ``1-gradient-canaries``, ... : number and word, stable.
    title : str
        For people.
    verdict : Verdict
    why : str
        One sentence.
    seconds : float
    epsilon_lower_bound : float or None
        The largest of the estimates' bounds for the whole run; None where the rung bounds nothing.
    power : float or None
        Against "noise halved"; 1.0 for deterministic checks that were seen to catch it; None where it is not known.
    measurements, estimates, scores
    facts : mapping
        Other figures, JSON values: counts, seeds, sizes, examples.
    """

    name: str
    title: str
    verdict: Verdict
    why: str
    seconds: float
    epsilon_lower_bound: float | None = None
    power: float | None = None
    measurements: tuple[Measurement, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    scores: tuple[ScoreSet, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values; scores as lists of numbers, so that others can make the bounds anew."""
        told = asdict(self) | {"verdict": self.verdict.value, "facts": dict(self.facts)}
        told["scores"] = [
            {"name": one.name, "inside": one.inside.tolist(), "outside": one.outside.tolist()} for one in self.scores
        ]
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> RungResult:
        """The inverse of `to_json`."""
        made = dict(told)
        made["verdict"] = Verdict(told["verdict"])
        made["measurements"] = tuple(Measurement(**one) for one in told["measurements"])
        made["estimates"] = tuple(Estimate(**one) for one in told["estimates"])
        made["scores"] = tuple(
            ScoreSet(one["name"], np.array(one["inside"], dtype=float), np.array(one["outside"], dtype=float))
            for one in told["scores"]
        )
        return cls(**made)


def judge(refuted: bool, power: float | None) -> Verdict:
    """The verdict of a rung: an underpowered one never says PASS."""
    if refuted:
        return Verdict.FAIL
    return Verdict.PASS if power is not None and power >= ENOUGH_POWER else Verdict.INCONCLUSIVE


MEASURING = ("1-gradient-canaries", "2-canary-users", "3-cosines")
"""Rungs that measure what was released: no audit passes without one of them."""


def overall(verdicts: Mapping[str, Verdict]) -> Verdict:
    """The verdict of an audit, from the verdicts of its rungs by name.

    FAIL if any rung failed. PASS if rung 0 passed and so did at least one of the `MEASURING` rungs: each of them would
    have noticed half of the noise. Rungs without that power can fail an audit, and never pass it.
    """
    if Verdict.FAIL in verdicts.values():
        return Verdict.FAIL
    measured = any(verdicts.get(name) is Verdict.PASS for name in MEASURING)
    return Verdict.PASS if measured and verdicts.get("0-mechanism") is Verdict.PASS else Verdict.INCONCLUSIVE
