"""What a ledger's entries add up to, and the rules by which one more is admitted.

The same rules are applied when an entry is about to be written (they refuse the operation) and when it is
read back (they say that the file was changed), so that an auditor checks what the partner enforced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import assert_never

from shared.errors import (
    AccountingError,
    BudgetExhaustedError,
    CohortTooSmallError,
    LedgerError,
    PolicyViolationError,
    ReplayError,
    UnmaskError,
)
from shared.hazmat.signing import VerifyKey
from shared.privacy.ledger_entries import (
    Body,
    Commitment,
    Declaration,
    Entry,
    Genesis,
    Opened,
    Release,
    Reservation,
)
from shared.privacy.ledger_heads import LedgerHead, Receipt, Succession
from shared.privacy.plan import PrivacyPlan, Stage


@dataclass(frozen=True, slots=True)
class Spent:
    """What all declared plans cost together, finished or not.

    Attributes
    ----------
    epsilon : float
        Sum over the plans; infinite once a plan without noise was declared.
    delta : float
    plans : int

    Guarantees
    ----------
    Basic composition: valid even where each plan was chosen after the results of those before it were
    seen (Rogers, Roth, Ullman, Vadhan, "Privacy Odometers and Filters", NeurIPS 2016). The tighter PLD holds only
    inside a plan that was fixed in advance.
    """

    epsilon: float
    delta: float
    plans: int

    @classmethod
    def of(cls, declarations: list[Declaration]) -> Spent:
        """Add up, in decimal, the numbers as they are written: 0.1 + 0.2 is 0.3, no more and no less."""
        unbounded = any(declared.epsilon is None for declared in declarations)
        epsilon = math.inf if unbounded else _sum([declared.epsilon or 0.0 for declared in declarations])
        return cls(float(epsilon), float(_sum([declared.delta for declared in declarations])), len(declarations))


def _sum(values: list[float]) -> Decimal:
    return sum((Decimal(repr(float(value))) for value in values), Decimal(0))


@dataclass(frozen=True, slots=True)
class RoundState:
    """How far one round came."""

    reservation: Reservation
    output: str | None = None
    survivors: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RunState:
    """One declared run, what its audit is bound to, and its rounds; `line` is that of its declaration, from 1."""

    line: int
    declaration: Declaration
    plan: PrivacyPlan
    rounds: dict[int, RoundState] = field(default_factory=dict)
    audit: Commitment | None = None

    def planned(self, stage: Stage) -> int:
        """Rounds of this stage in the plan."""
        return int(self.plan.prior_noise_multiplier is not None) if stage == "prior" else self.plan.rounds

    @property
    def finished(self) -> bool:
        """Whether the last planned round was released and, where sums are masked, opened: no other sum can come."""
        last = self.rounds.get(self.planned("prior") + self.planned("train"))
        return last is not None and last.output is not None and (last.survivors is not None or not self.plan.masked)


@dataclass(slots=True)
class LedgerState:
    """All that was read, in order.

    Guarantees
    ----------
    Whatever `add` took was new and kept every rule of `check` at its place: the declared plans fit the
    budget of each declaration, no round is reserved twice or beyond its plan, canaries were committed to once
    and before the first round that has them, a round has one output and one set of survivors, and each
    identity handed the ledger over to the next, which consented.
    """

    genesis: Genesis | None = None
    hashes: list[str] = field(default_factory=list)
    runs: dict[str, RunState] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    """By line, from 1."""
    countersigned: dict[str, int] = field(default_factory=dict)
    """By server key: the highest count it signed."""
    identities: list[VerifyKey] = field(default_factory=list)
    """The partner's keys, in the order in which they signed."""

    @property
    def head(self) -> LedgerHead:
        """Count and hash of the chain; an empty ledger has the hash ``""``."""
        return LedgerHead(len(self.hashes), self.hashes[-1] if self.hashes else "")

    @property
    def identity(self) -> VerifyKey | None:
        """The key that signs the next line: the one that the first line names, or its last successor."""
        return self.identities[-1] if self.identities else None

    def spent(self) -> Spent:
        """What all declared plans cost together."""
        return Spent.of([run.declaration for run in self.runs.values()])

    def check(self, body: Body) -> bool:  # noqa: PLR0911  one line a kind
        """Return whether `body` is news; raise if it is not allowed. Changes nothing.

        Raises
        ------
        BudgetExhaustedError, ReplayError, PolicyViolationError, CohortTooSmallError, UnmaskError, LedgerError
        """
        if isinstance(body, Genesis) != (self.genesis is None):
            raise LedgerError("Expected kind=genesis in the first line and nowhere else.")
        match body:
            case Genesis():
                return True
            case Declaration():
                return self._check_declaration(body)
            case Commitment():
                return self._check_commitment(body, self.runs.get(body.run_id))
            case Reservation():
                self._check_committed(body)
                return self._check_reservation(body, self.runs.get(body.run_id))
            case Release():
                return self._check_release(body)
            case Opened():
                return self._check_opened(body)
            case Receipt():
                return self._check_receipt(body)
            case Succession():
                return self._check_succession(body)
            case _:
                assert_never(body)

    def add(self, entry: Entry) -> None:
        """Take an entry that `check` found new."""
        body = entry.body
        match body:
            case Genesis():
                self.genesis = body
                self.identities.append(VerifyKey.from_text(body.identity))
            case Declaration():
                self.runs[body.run_id] = RunState(entry.index + 1, body, body.privacy_plan())
            case Commitment():
                self.runs[body.run_id] = replace(self.runs[body.run_id], audit=body)
            case Reservation():
                self.runs[body.run_id].rounds[body.round] = RoundState(body)
            case Release():
                rounds = self.runs[body.run_id].rounds
                rounds[body.round] = replace(rounds[body.round], output=body.output)
            case Opened():
                rounds = self.runs[body.run_id].rounds
                rounds[body.round] = replace(rounds[body.round], survivors=body.survivors)
            case Receipt():
                self.receipts[entry.index + 1] = body
                self.countersigned[body.server] = body.count
            case Succession():
                self.identities.append(VerifyKey.from_text(body.identity))
            case _:
                assert_never(body)
        self.hashes.append(entry.hash)

    def confirm(self, receipt: Receipt) -> None:
        """Check that the countersigned head is an entry of this chain.

        Raises
        ------
        LedgerError
            If it is not: entries that were told to the server are gone, or others are in their place.
        """
        if not 1 <= receipt.count <= len(self.hashes) or self.hashes[receipt.count - 1] != receipt.hash:
            raise LedgerError(
                f"Expected entry {receipt.count - 1} with the hash that the server countersigned, got a ledger of "
                f"{len(self.hashes)} entries without it: it was rolled back or forked."
            )

    def _check_declaration(self, body: Declaration) -> bool:
        plan = body.privacy_plan()
        if body.delta != plan.delta:
            raise LedgerError(f"Expected delta={plan.delta} as in the declared plan, got {body.delta}.")
        if (body.epsilon is None) != (plan.mode == "none"):
            raise AccountingError(
                f"Expected epsilon=none only in mode=none, got epsilon={body.epsilon} in {plan.mode}."
            )
        known = self.runs.get(body.run_id)
        if known is not None and known.declaration.plan_digest != body.plan_digest:
            raise ReplayError("Expected one plan a run, got another plan for a run that was declared before.")
        _afford(self._without(body.run_id), body if known is None else _under(known.declaration, body))
        return known is None

    def _without(self, run_id: str) -> list[Declaration]:
        return [run.declaration for name, run in self.runs.items() if name != run_id]

    def check_round(self, declaration: Declaration, reservation: Reservation) -> None:
        """Raise if the reservation would be refused once the run is declared and its canaries are. Changes nothing.

        Raises
        ------
        BudgetExhaustedError, ReplayError, PolicyViolationError, AccountingError, LedgerError
        """
        self.check(declaration)
        undeclared = RunState(0, declaration, declaration.privacy_plan())
        self._check_reservation(reservation, self.runs.get(declaration.run_id, undeclared))

    def _check_commitment(self, body: Commitment, run: RunState | None) -> bool:
        if run is None:
            raise ReplayError("Expected a declared run before its audit canaries, got a run without a plan.")
        if run.audit is not None:
            if run.audit != body:
                raise ReplayError("Expected one set of audit canaries a run, got another.")
            return False
        if body.canaries != run.plan.canaries:
            raise PolicyViolationError(
                f"Expected audit canaries={run.plan.canaries} as in the declared plan, got {body.canaries}."
            )
        return True  # and before the first training round: without it there is none, see `_check_committed`

    def _check_committed(self, body: Reservation) -> None:
        run = self.runs.get(body.run_id)
        if run is not None and run.plan.canaries and run.audit is None and body.stage == "train":
            raise ReplayError(f"Expected the plan's audit canaries to be committed to before round={body.round}.")

    def _check_reservation(self, body: Reservation, run: RunState | None) -> bool:
        if run is None:
            raise ReplayError(f"Expected a declared run before round={body.round}, got a run without a plan.")
        if body.plan_digest != run.declaration.plan_digest:
            raise ReplayError(f"Expected the run's declared plan in round={body.round}, got another plan.")
        last = max(run.rounds, default=body.round)
        if body.round < last:
            raise ReplayError(f"Expected round >= {last}, the last that was reserved, got round={body.round}.")
        if body.round in run.rounds:
            if run.rounds[body.round].reservation != body:
                raise ReplayError(f"Expected the same request again for round={body.round}, got another.")
            return False
        done = sum(state.reservation.stage == body.stage for state in run.rounds.values())
        if done >= run.planned(body.stage):
            raise BudgetExhaustedError(
                f"Expected at most {run.planned(body.stage)} rounds of stage={body.stage} as planned, "
                f"got round={body.round} after {done}."
            )
        # The digest of a later version's plan may have more fields in it: the declared one counts.
        planned = Reservation.of(run.plan, body.run_id, body.round, body.stage, body.request)
        if body != replace(planned, plan_digest=run.declaration.plan_digest):
            raise PolicyViolationError(f"Expected the plan's rate, noise and releases in round={body.round}.")
        return True

    def _round(self, run_id: str, round_: int) -> RoundState | None:
        run = self.runs.get(run_id)
        return None if run is None else run.rounds.get(round_)

    def _check_release(self, body: Release) -> bool:
        state = self._round(body.run_id, body.round)
        if state is None:
            raise ReplayError(f"Expected a reservation before the release of round={body.round}.")
        if state.output not in (None, body.output):
            raise ReplayError(f"Expected one noised sum in round={body.round}, got a second.")
        return state.output is None

    def _check_opened(self, body: Opened) -> bool:
        state = self._round(body.run_id, body.round)
        if state is None or state.output is None:
            raise ReplayError(f"Expected a release before the sum of round={body.round} is opened.")
        if state.survivors is not None and state.survivors != body.survivors:
            raise UnmaskError(f"Expected the same survivors as before in round={body.round}, got another set.")
        if list(body.survivors) != sorted(set(body.survivors)):
            raise UnmaskError(f"Expected survivors in order and once each in round={body.round}.")
        needed = self.runs[body.run_id].plan.survivors
        if len(body.survivors) < needed:
            raise CohortTooSmallError(
                f"Expected survivors >= {needed} in round={body.round}, got {len(body.survivors)}."
            )
        return state.survivors is None

    def _check_receipt(self, body: Receipt) -> bool:
        self.confirm(body)
        return body.count > self.countersigned.get(body.server, 0)

    def _check_succession(self, body: Succession) -> bool:
        if body.verify(self.head) in self.identities:
            raise LedgerError("Expected a new identity, got one that has signed this ledger before.")
        return True


def _under(known: Declaration, asked: Declaration) -> Declaration:
    """A plan that was declared before, under the budget of today: it may have been lowered since."""
    return replace(known, max_epsilon=asked.max_epsilon, max_delta=asked.max_delta)


def _afford(others: list[Declaration], new: Declaration) -> None:
    """The filter: epsilons and deltas of all plans, the new one included, within the new one's budget."""
    before, after = Spent.of(others), Spent.of([*others, new])
    for name, spent, total, budget, asked in (
        ("epsilon", before.epsilon, after.epsilon, new.max_epsilon, new.epsilon),
        ("delta", before.delta, after.delta, new.max_delta, new.delta),
    ):
        # Not "total > budget": a budget that is no number admits nothing.
        if budget is not None and not total <= budget:
            raise BudgetExhaustedError(
                f"Expected {name} <= {max(0.0, budget - spent):.6g} left of the budget of {budget:.6g}, "
                f"the plan asks for {'no bound' if asked is None else format(asked, '.6g')}."
            )
