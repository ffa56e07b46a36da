"""The sum of all training rounds' opened sums, kept for an audit whose canaries are told after the run.

``audit/sum.safetensors`` lies in the run folder of a run with audit canaries. Every opened sum is a release, whose
noise the plan bills, and so is what they add up to: the file tells nothing that the coordinator may not tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.gathering import Gathered
from server.strategy import Witness
from shared.errors import DataError
from shared.files import write_bytes
from shared.privacy.plan import PrivacyPlan, Stage

SUM_FILE = "audit/sum.safetensors"
"""In a run folder."""


@dataclass(frozen=True, slots=True)
class AuditSum:
    """What the training rounds of a run released, added up.

    Attributes
    ----------
    run_id : str
    rounds : tuple of int
        Of which rounds.
    cohorts : tuple of int
        How many partners are in the sum of each of them.
    energies : tuple of float
        The squared length of the sum of each of them, in lattice steps squared: with `total` it tells how much differs
        from round to round, as noise does, and how much does not.
    total : (P,) int64
        Lattice steps.
    before : (P,) int64
        The same without the last of these rounds: a coordinator that was killed between this file and its checkpoint
        opens that round again.
    """

    run_id: str
    rounds: tuple[int, ...]
    cohorts: tuple[int, ...]
    energies: tuple[float, ...]
    total: NDArray[np.int64]
    before: NDArray[np.int64]

    def with_round(self, number: int, gathered: Gathered) -> Self:
        """With the sum of one more round, or of the last round again."""
        again = number in self.rounds[-1:]
        base, keep = (self.before, len(self.rounds) - 1) if again else (self.total, len(self.rounds))
        length = float(np.linalg.norm(gathered.total.astype(np.float64)))
        return type(self)(
            run_id=self.run_id,
            rounds=(*self.rounds[:keep], number),
            cohorts=(*self.cohorts[:keep], gathered.partners),
            energies=(*self.energies[:keep], length**2),
            total=base + gathered.total,
            before=base,
        )

    def write(self, run: Path) -> None:
        """Keep it in a run folder."""
        lists = {"rounds": self.rounds, "cohorts": self.cohorts, "energies": self.energies}
        told = {"run_id": self.run_id, **{name: json.dumps(values) for name, values in lists.items()}}
        write_bytes(run / SUM_FILE, save({"total": self.total, "before": self.before}, told))

    @classmethod
    def read(cls, run: Path) -> Self:
        """What a run folder holds.

        Raises
        ------
        DataError
            If there is no such file, or it is not what was written.
        """
        file = run / SUM_FILE
        try:
            with safe_open(file, framework="np") as kept:
                told, total, before = kept.metadata() or {}, kept.get_tensor("total"), kept.get_tensor("before")
            rounds, cohorts = (tuple(map(int, json.loads(told[name]))) for name in ("rounds", "cohorts"))
            run_id, energies = told["run_id"], tuple(map(float, json.loads(told["energies"])))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise DataError(f"{file}: Expected the summed rounds of a run with audit canaries.") from None
        if total.dtype != np.int64 or total.ndim != 1 or before.shape != total.shape:
            raise DataError(f"{file}: Expected one whole number a parameter.")
        if not len(rounds) == len(cohorts) == len(energies):
            raise DataError(f"{file}: Expected a cohort and a length a round.")
        return cls(run_id, rounds, cohorts, energies, total, before)


def with_audit_sum(witness: Witness | None, run: Path, run_id: str, plan: PrivacyPlan, size: int) -> Witness | None:
    """A witness of opened sums that also adds them up; `witness` itself where the plan has no canaries.

    Parameters
    ----------
    witness : callable or None
    run : Path
        The run folder.
    run_id : str
    plan : PrivacyPlan
    size : int
        P, trained parameters.

    Raises
    ------
    PolicyViolationError
        If the model has too few parameters for the plan's canaries, which every partner would refuse.
    """
    if not plan.canaries:
        return witness
    plan.check_canaries(size)

    def see(number: int, stage: Stage, gathered: Gathered) -> None:
        if stage == "train":
            _so_far(run, run_id, size).with_round(number, gathered).write(run)
        if witness is not None:
            witness(number, stage, gathered)

    return see


def _so_far(run: Path, run_id: str, size: int) -> AuditSum:
    """What is kept of this run; what is lost is not in `rounds`, and an audit sees that: no round ends for it."""
    try:
        kept = AuditSum.read(run)
    except DataError:
        kept = None
    if kept is not None and kept.run_id == run_id and kept.total.shape == (size,):
        return kept
    nothing = np.zeros(size, dtype=np.int64)
    return AuditSum(run_id, (), (), (), nothing, nothing)
