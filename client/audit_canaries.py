"""Audit canaries: synthetic users whose part in the released sums can be looked for afterwards, in production.

Each is a random direction of the length to which a user is clipped. It takes part in a step like any user, and goes
through the same rounding and noise. After the run the seed of the directions is told, and an auditor measures how much
of each is left in the sums (`simulations.audit.rungs.cosines`; Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar,
"One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.premises import RUNS, Premises
from shared.errors import DataError, LedgerError, ReplayError, SensitivityError
from shared.files import sync_folder, write_bytes
from shared.messages import ClippedSum
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.plan import PrivacyPlan

SEED_FILE, SEED_BYTES = "audit-seed", 32


def commitment_of(seed: bytes) -> str:
    """SHA-256 of a seed, hexadecimal: what the ledger is told before the first sum that has canaries."""
    return hashlib.sha256(seed).hexdigest()


def canary_names(plan: PrivacyPlan) -> tuple[str, ...]:
    """A partner's audit users; what they are sampled by."""
    return tuple(f"canary {number}" for number in range(plan.canaries))


def direction(seed: bytes, number: int, size: int) -> NDArray[np.float64]:
    """Canary `number` of a partner: a point of the unit sphere, shape ``(size,)``, from nothing but the seed.

    SHAKE-256 gives uniforms of 53 bits, Box and Muller (1958) make them Gaussian, and a Gaussian vector brought to
    length 1 is uniform on the sphere. No library's generator is in it: whoever has the seed finds the same vector.
    """
    half = (size + 1) // 2
    stream = hashlib.shake_256(b"veilrec audit canary\0" + seed + number.to_bytes(8, "big")).digest(16 * half)
    uniform = ((np.frombuffer(stream, dtype="<u8") >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1)
    length, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    normal = np.concatenate([length * np.cos(angle), length * np.sin(angle)])[:size]
    unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
    return unit


def add_canaries(clipped: ClippedSum, plan: PrivacyPlan, seed: bytes, taken: Iterable[int]) -> ClippedSum:
    """Add the canaries that take part in a step to its clipped sum, each with the length of a user's clip norm.

    Parameters
    ----------
    clipped : ClippedSum
        Of the partner's users.
    plan : PrivacyPlan
    seed : bytes
        Of the partner's canaries in this run.
    taken : iterable of int
        Numbers of the canaries that were sampled.

    Guarantees
    ----------
    The guarantee of every real user is the one that it was. Let f(D) be the clipped sum over the users D, and A what is
    added here. A is a function of the plan, the seed and the canaries' own coins, none of which any data touch. For
    every value a of A and every D' that is D without one user, ``(f(D) + a) - (f(D') + a) = f(D) - f(D')``: the same
    vector, of at most the clip norm. So the step that noises ``f(D) + a`` is as private as the one that noises
    ``f(D)``, by the same accountant; it is so for each a, and therefore also against one who knows all canaries. What
    is written is also what is tested: `tests/unit/test_production_canaries.py`.

    Raises
    ------
    SensitivityError
        If the users' sum was clipped to another norm than the plan's.
    """
    if clipped.clip_norm != plan.partner_clip_norm:
        raise SensitivityError(f"Expected a sum clipped to {plan.partner_clip_norm:g}, got {clipped.clip_norm:g}.")
    total = clipped.values.copy()
    for number in taken:
        total += plan.partner_clip_norm * direction(seed, int(number), len(total))
    return replace(clipped, values=total)


class CanarySeed:
    """The seed of one run's canaries on the partner's disk: in the run's folder, readable by its owner alone.

    Parameters
    ----------
    folder : Path
        The partner's folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / SEED_FILE

    def read(self, commitment: str) -> bytes:
        """The seed that the ledger is bound to.

        Raises
        ------
        LedgerError
            If it is not there, or is another: a new one would be chosen after sums were seen.
        """
        seed = self.kept()
        if seed is None or commitment_of(seed) != commitment:
            raise LedgerError(f"Expected {self._file} to hold the seed of the audit canaries that the ledger names.")
        return seed

    def kept(self) -> bytes | None:
        """What is on the disk; None if there is none, or not a whole one."""
        try:
            seed = bytes.fromhex(self._file.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            return None
        return seed if len(seed) == SEED_BYTES else None

    def keep(self, seed: bytes) -> None:
        """Write a new run's seed, durably, its folders included: a commitment to a seed that is lost binds for good.

        Raises
        ------
        LedgerError
            If it cannot be written.
        """
        folder = self._file.parent
        try:
            write_bytes(self._file, (seed.hex() + "\n").encode())
            for each in (folder, folder.parent, folder.parent.parent):
                sync_folder(each)
        except OSError as error:
            raise LedgerError(f"Expected to keep {self._file.name} of a run, got {error.strerror}.") from None


@dataclass(frozen=True, slots=True)
class Reveal:
    """What a partner tells of its canaries once a run is over; no data are in it.

    Attributes
    ----------
    run_id, partner : str
    canaries : int
        As planned.
    seed : str
        Hexadecimal; makes all their directions (`direction`).
    commitment : str
        SHA-256 of the seed, as in the partner's ledger since before the first of these rounds.
    """

    run_id: str
    partner: str
    canaries: int
    seed: str
    commitment: str


def reveal(premises: Premises, run_id: str) -> Reveal:
    """What an auditor needs to look for a partner's canaries, from its ledger and its run folder.

    Guarantees
    ----------
    Nothing is told before the last sum of the run is opened: until then, whoever knew the directions could take the
    canaries out of the sums that are to be audited. (What is promised to users does not rest on that.)

    Raises
    ------
    DataError
        If the ledger has no such run, or one without canaries.
    ReplayError
        If the run is not over.
    LedgerError
        If the ledger cannot be believed, or the seed is not the one that it names.
    """
    run = next((each for each in read_ledger(premises.ledger_file).runs if each.run_id == run_id), None)
    if run is None or run.commitment is None:
        raise DataError(f"{premises.ledger_file}: Expected a run with audit canaries, got none of that id.")
    if not run.finished:
        raise ReplayError(
            f"Expected a run that is over, got one with {run.released} of {run.planned} rounds released here and "
            f"{run.opened} opened: seeds are told after the last."
        )
    seed = CanarySeed(premises.folder / RUNS / run_id).read(run.commitment)
    return Reveal(run_id, premises.name, run.canaries, seed.hex(), run.commitment)
