"""A ledger read by someone without secrets: what it says, and whether it can be believed.

Nothing is locked or written. `read_ledger` checks chain, signatures and rules, as the partner does each time it
opens the file; `verify_ledger` also checks keys, receipts, plan digests and, by the accountant, every epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shared.errors import LedgerError, VeilrecError
from shared.hazmat.signing import Pin, VerifyKey
from shared.privacy.ledger import replay
from shared.privacy.ledger_entries import Genesis
from shared.privacy.ledger_heads import LedgerHead, Receipt
from shared.privacy.ledger_state import LedgerState, RunState, Spent
from shared.privacy.plan import Mode, PrivacyPlan

EPSILON_TOLERANCE = 1e-3
"""A declared epsilon may be this share below the recomputed one: accountants of other versions grid otherwise."""

Accountant = Callable[[PrivacyPlan, int], float | None]


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run of a ledger.

    Attributes
    ----------
    run_id, mode, plan_digest : str
    epsilon : float or None
        As declared; None in mode ``none``.
    recomputed_epsilon : float or None
        By this installation's accountant; None where it was not asked.
    delta : float
    planned, reserved, released, opened : int
        Rounds.
    canaries : int
        Audit canaries in each training step, as planned.
    commitment : str or None
        SHA-256 of the seed of their directions, from before the first of these rounds.
    finished : bool
        The last planned round was released and, where sums are masked, opened.
    """

    run_id: str
    mode: Mode
    plan_digest: str
    epsilon: float | None
    recomputed_epsilon: float | None
    delta: float
    planned: int
    reserved: int
    released: int
    opened: int
    canaries: int = 0
    commitment: str | None = None
    finished: bool = False

    @property
    def dangling(self) -> int:
        """Rounds that were reserved and never released: a crash in between. They count as spent."""
        return self.reserved - self.released


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """A whole ledger.

    Attributes
    ----------
    ledger_id, identity : str
        The key that signs the next line.
    head : LedgerHead
    runs : tuple of RunReport
        In the order in which they were declared.
    spent : Spent
    receipts : int
        Heads that a server countersigned.
    countersigned : int
        The highest count among them: up to there a rollback shows.
    torn_bytes : int
        Of a last line that a crash tore; it counts for nothing.
    """

    ledger_id: str
    identity: str
    head: LedgerHead
    runs: tuple[RunReport, ...]
    spent: Spent
    receipts: int
    countersigned: int
    torn_bytes: int


def read_ledger(path: Path) -> LedgerReport:
    """Read a ledger, checking spelling, chain, signatures by the key in the first line, and rules.

    Guarantees
    ----------
    The lines are those that the holder of that key wrote, in order, and the declared plans fit the
    budgets under which they were declared. That the last lines are there cannot be seen from the file
    alone: it takes the server's receipts.

    Raises
    ------
    LedgerError
        Names file, line and what is wrong.
    """
    return _report(*_read(path))


def verify_ledger(
    path: Path,
    identity: Pin | None = None,
    server: Pin | None = None,
    *,
    receipts: Iterable[Receipt] = (),
    accountant: Accountant | None = None,
) -> LedgerReport:
    """Audit a ledger: all that `read_ledger` checks, and keys, receipts, digests and epsilons.

    Parameters
    ----------
    path : Path
    identity : Pin, optional
        The partner's key, known from elsewhere: the one of today, or one that handed the ledger on to it.
    server : Pin, optional
        The key by which all receipts must be, or the two while the coordinator changes its own.
    receipts : iterable of Receipt
        The server's own copies: each must be an entry of this chain.
    accountant : callable, optional
        ``(plan, rounds) -> epsilon``; by default `shared.privacy.accounting.epsilon_spent`.

    Guarantees
    ----------
    No declared epsilon is below what the accountant finds for its plan (to `EPSILON_TOLERANCE`).

    Raises
    ------
    LedgerError
        Names file, what is wrong, and the line where there is one.
    """
    genesis, state, torn = _read(path)
    if identity is not None and not set(identity.keys) & set(state.identities):
        raise LedgerError(f"{path}, line 1: Expected identity={identity.text}, got another partner's ledger.")
    _check_receipts(path, state, server, receipts)
    account = accountant or _default_accountant()
    recomputed = {run_id: _recompute(path, run, account) for run_id, run in state.runs.items()}
    report = _report(genesis, state, torn)
    return replace(report, runs=tuple(replace(run, recomputed_epsilon=recomputed[run.run_id]) for run in report.runs))


def _default_accountant() -> Accountant:
    from shared.privacy.accounting import epsilon_spent

    return epsilon_spent


def _read(path: Path) -> tuple[Genesis, LedgerState, int]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"Expected a ledger at {path}, got {error.strerror}.") from error
    state = LedgerState()
    read = sum(len(line) for line in replay(data, 0, state, path))
    if state.genesis is None:
        raise LedgerError(f"{path}, line 1: Expected a ledger, got a file without one whole line.")
    return state.genesis, state, len(data) - read


def _check_receipts(path: Path, state: LedgerState, server: Pin | None, theirs: Iterable[Receipt]) -> None:
    own = [(f"line {line}", receipt) for line, receipt in state.receipts.items()]
    for place, receipt in [*own, *(("a receipt of the server's", receipt) for receipt in theirs)]:
        try:
            receipt.verify(server or VerifyKey.from_text(receipt.server))
            state.confirm(receipt)
        except VeilrecError as error:
            raise LedgerError(f"{path}, {place}: {error}") from error


def _recompute(path: Path, run: RunState, account: Accountant) -> float | None:
    declared = run.declaration
    if run.plan.digest() != declared.plan_digest:
        raise LedgerError(f"{path}, line {run.line}: Expected the digest of the declared plan, got another.")
    epsilon = account(run.plan, run.plan.rounds)
    # A plan without noise was declared without an epsilon: `LedgerState.check` has seen to that.
    if epsilon is None or declared.epsilon is None:
        return None
    if not declared.epsilon >= epsilon * (1 - EPSILON_TOLERANCE):
        raise LedgerError(
            f"{path}, line {run.line}: Expected epsilon >= {epsilon:.6g} for the declared plan, "
            f"got {declared.epsilon:.6g}."
        )
    return epsilon


def _report(genesis: Genesis, state: LedgerState, torn: int) -> LedgerReport:
    return LedgerReport(
        ledger_id=genesis.ledger_id,
        identity=(state.identity or VerifyKey.from_text(genesis.identity)).text,
        head=state.head,
        runs=tuple(_run_report(run) for run in state.runs.values()),
        spent=state.spent(),
        receipts=len(state.receipts),
        countersigned=max(state.countersigned.values(), default=0),
        torn_bytes=torn,
    )


def _run_report(run: RunState) -> RunReport:
    declared, rounds = run.declaration, run.rounds.values()
    return RunReport(
        run_id=declared.run_id,
        mode=run.plan.mode,
        plan_digest=declared.plan_digest,
        epsilon=declared.epsilon,
        recomputed_epsilon=None,
        delta=declared.delta,
        planned=run.planned("prior") + run.planned("train"),
        reserved=len(rounds),
        released=sum(state.output is not None for state in rounds),
        opened=sum(state.survivors is not None for state in rounds),
        canaries=run.plan.canaries,
        commitment=None if run.audit is None else run.audit.commitment,
        finished=run.finished,
    )


def to_json(report: LedgerReport) -> dict[str, object]:
    """The report as JSON values; a sum of epsilons without a bound is null."""
    told: dict[str, object] = asdict(report)
    told["runs"] = [asdict(run) | {"dangling": run.dangling} for run in report.runs]
    if math.isinf(report.spent.epsilon):
        told["spent"] = asdict(report.spent) | {"epsilon": None}
    return told
