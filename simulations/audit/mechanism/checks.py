"""What a check of the mechanism is, what it looks at, and how it is run.

A check yields findings: numbers that were measured and what they had to be. It is deterministic, or compares a
statistic with `STANDARD_ERRORS` and says how often right code would fail it. An error with which the mechanism refuses
what it should have done is a finding too; any other error is a broken program, and no finding.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.config import RunConfig
from shared.errors import VeilrecError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Measurement

STANDARD_ERRORS = 5.0
"""Of every comparison of a statistic: right code fails one in 1.7 million."""
REFERENCE = PrivacyPlan(
    mode="distributed",
    delta=1e-5,
    sampling_rate=0.25,
    population=50,
    clip_norm=0.5,
    noise_multiplier=2.0,
    prior_noise_multiplier=1.5,
    rounds=3,
    local_steps=1,
    partners=4,
    survivors=3,
    colluders=1,
    masked=True,
    partners_per_user=2,
    max_events=100,
)
"""Looked at beside the audited plan: one partner may drop out, one may collude, a user may be at two."""

BUCKETED = replace(REFERENCE, partners=10, survivors=3, colluders=0, buckets=3)


@dataclass(frozen=True, slots=True)
class Finding:
    """A measurement, and the chance with which right code fails it."""

    measurement: Measurement
    false_alarm: float = 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What checks look at.

    Attributes
    ----------
    plan : PrivacyPlan
        The audited one.
    config : RunConfig
    seed : int
        Of the audit's own coins, and of seeded sources in practice federations.
    root : Path
        An empty folder for practice federations.
    run : Path or None
        The audited run's folder.
    """

    plan: PrivacyPlan
    config: RunConfig
    seed: int
    root: Path
    run: Path | None = None

    @property
    def noisy(self) -> PrivacyPlan:
        """The audited plan without audit users; the reference where it has no noise: the code is looked at anyway."""
        if self.plan.mode == "none" or not self.plan.steps:
            return REFERENCE
        return replace(self.plan, canaries=0)

    @property
    def plans(self) -> tuple[PrivacyPlan, ...]:
        """The audited plan, the reference, and the reference in ``local`` mode with several steps and in buckets."""
        local = replace(REFERENCE, mode="local", local_steps=2)
        return tuple(dict.fromkeys((self.noisy, REFERENCE, local, BUCKETED)))

    def folder(self) -> Path:
        """A new folder below `root`."""
        return Path(tempfile.mkdtemp(dir=self.root))


Look = Callable[[Setting], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
        ``noise.deviation``: the module, and the function in it.
    catches : str
        What goes wrong where it fails.
    look : callable
    """

    name: str
    catches: str
    look: Look


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found."""

    name: str
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether anything was found, and all of it is as it had to be."""
        return bool(self.findings) and all(one.measurement.holds for one in self.findings)

    @property
    def broken(self) -> tuple[Measurement, ...]:
        """The measurements that do not hold."""
        return tuple(one.measurement for one in self.findings if not one.measurement.holds)


def check(book: list[Check], catches: str) -> Callable[[Look], Look]:
    """Enter a function in a book of checks, under the name of its module and its own."""

    def enter(look: Look) -> Look:
        book.append(Check(f"{look.__module__.rpartition('.')[2]}.{look.__name__}", catches, look))
        return look

    return enter


def run_check(one: Check, setting: Setting) -> Outcome:
    """Run one check; a refusal by the mechanism, where none was expected, does not hold."""
    began, found = time.monotonic(), list[Finding]()
    log = logging.getLogger("veilrec.client")
    with exchanged(log, "disabled", True):  # refusals are what is wanted here: a partner's log of them would be noise
        try:
            found.extend(one.look(setting))
        except VeilrecError as error:
            name = f"{one.name}: what is in order is done, errors ({type(error).__name__})"
            found.append(Finding(Measurement(name, 1.0, "0", False, one.catches)))
    return Outcome(one.name, time.monotonic() - began, tuple(found))


# --- findings -------------------------------------------------------------------------------------


def chance(comparisons: int = 1) -> float:
    """That right code fails one of so many two-sided comparisons at `STANDARD_ERRORS`."""
    return comparisons * math.erfc(STANDARD_ERRORS / math.sqrt(2))


def near(name: str, value: float, expected: float, error: float, catches: str, *, comparisons: int = 1) -> Finding:
    """A statistic with one standard `error` (absolute), of which the worst of some `comparisons` is told."""
    room = STANDARD_ERRORS * error
    holds = bool(abs(value - expected) <= room)  # False for NaN
    return Finding(Measurement(name, _number(value), f"{expected:g} ± {room:.2g}", holds, catches), chance(comparisons))


def at_most(name: str, value: float, bound: float, catches: str, *, false_alarm: float = 0.0) -> Finding:
    """A number with an upper bound."""
    return Finding(Measurement(name, _number(value), f"<= {bound:.9g}", bool(value <= bound), catches), false_alarm)


def at_least(name: str, value: float, bound: float, catches: str, *, false_alarm: float = 0.0) -> Finding:
    """A number with a lower bound."""
    return Finding(Measurement(name, _number(value), f">= {bound:.9g}", bool(value >= bound), catches), false_alarm)


def equal(name: str, value: float, expected: float, catches: str, *, within: float = 0.0) -> Finding:
    """A number that is known; `within` is relative."""
    holds = abs(value - expected) <= within * abs(expected)
    told = f"{expected:.9g}" + (f" to {within:g} of it" if within else "")
    return Finding(Measurement(name, _number(value), told, bool(holds), catches))


def none_of(name: str, wrong: float, catches: str, *, false_alarm: float = 0.0) -> Finding:
    """A count of what must not be."""
    return Finding(Measurement(name, _number(float(wrong)), "0", bool(wrong == 0), catches), false_alarm)


def refused(name: str, family: type[Exception], act: Callable[[], object], catches: str) -> Finding:
    """What must be refused with an error of this family; every other answer does not hold."""
    try:
        act()
        got = 0.0
    except family:
        got = 1.0
    except VeilrecError:
        got = 0.0
    return Finding(Measurement(f"{name}: refusals", got, "1", got == 1.0, catches))


def _number(value: float) -> float:
    """JSON has no infinity and no NaN."""
    return float(value) if math.isfinite(value) else sys.float_info.max


@contextmanager
def exchanged(owner: Any, name: str, value: object) -> Iterator[None]:
    """Exchange an attribute for the time of a check: a clock that is watched, a part that fails on purpose."""
    before, own = getattr(owner, name), name in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:  # the class's: an object is left without one of its own
            delattr(owner, name)
