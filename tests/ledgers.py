"""A partner's ledger for tests: a plan, keys, whole rounds, and a partner that cheats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import plans
import pytest

from shared.errors import VeilrecError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_entries import Body, Reservation, seal
from shared.privacy.plan import PrivacyPlan, Stage

PLAN = replace(plans.PLAN, rounds=3)
BARE = replace(PLAN, mode="none", noise_multiplier=0.0, prior_noise_multiplier=0.0)
COHORT = ("a", "b", "c", "d")
KEY, SERVER = SigningKey.generate(), SigningKey.generate()


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def asked(
    round_: int, stage: Stage = "train", *, run: str = "run", of: str = "", plan: PrivacyPlan = PLAN
) -> Reservation:
    return Reservation.of(plan, run, round_, stage, digest(f"{round_}{of}"))


def flat(plan: PrivacyPlan, rounds: int) -> float | None:
    """An accountant for tests: 3 for any plan with noise."""
    return None if plan.mode == "none" else 3.0


def make(path: Path) -> Ledger:
    """A ledger with one run declared: epsilon 3 of 8."""
    made = Ledger(path, KEY)
    made.declare("run", PLAN, 3.0, 8.0, 1e-4)
    return made


def refused(path: Path, family: type[VeilrecError], told: str, act: Callable[[], object]) -> None:
    """Check that `act` is refused with one clear message, and that the file has every byte that it had."""
    before = path.read_bytes()
    with pytest.raises(family, match=told) as error:
        act()
    assert type(error.value) is family
    assert path.read_bytes() == before


def silent(path: Path, act: Callable[[], object]) -> None:
    """Check that `act` is admitted and writes nothing."""
    before = path.read_bytes()
    act()
    assert path.read_bytes() == before


def whole_round(ledger: Ledger, round_: int, stage: Stage = "train") -> None:
    ledger.reserve(asked(round_, stage))
    ledger.release("run", round_, digest(f"sum {round_}"))
    ledger.open("run", round_, COHORT)


def forge(path: Path, *bodies: Body, key: SigningKey = KEY) -> None:
    """Append lines with the partner's own key, past the rules: a partner that cheats."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    previous = json.loads(lines[-1])["hash"] if lines else ""
    for index, body in enumerate(bodies, start=len(lines)):
        entry = seal(index, "2026-11-22T00:00:00+00:00", previous, body, key)
        lines.append(entry.line)
        previous = entry.hash
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(lines))
