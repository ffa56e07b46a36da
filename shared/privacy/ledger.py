"""A partner's ledger: the one place on its disk that says what was spent on its data.

One file for all runs over the same data, append-only, chained and signed (`ledger_entries`), under rules
that are checked before each line is written and each time it is read (`ledger_state`)::

    plan -> audit (the plan has canaries) -> reserve -> (noise is drawn) -> release -> open
                                                                  receipt: the server countersigned a head
                                                                  succession: the partner changed its key

What a crash leaves behind counts as spent: a plan counts whole when it is declared, and a reserved
round counts though nothing was released.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from shared.errors import LedgerError, VeilrecError
from shared.files import sync_folder
from shared.hazmat.signing import Pin, SigningKey
from shared.privacy.ledger_entries import (
    Body,
    Commitment,
    Declaration,
    Genesis,
    Opened,
    Release,
    Reservation,
    parse,
    seal,
    validate,
)
from shared.privacy.ledger_heads import LedgerHead, Receipt, sign_receipt, sign_succession
from shared.privacy.ledger_state import LedgerState, RoundState, RunState, Spent
from shared.privacy.plan import PrivacyPlan

__all__ = ["Ledger", "LedgerHead", "Receipt", "Reservation", "Spent", "replay", "sign_receipt"]

LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.005


class Ledger:
    """An open ledger. Any number of processes and threads may have the same file open.

    Parameters
    ----------
    path : Path
        Made, with mode 0600, if there is none. ``<path>.lock`` lies beside it.
    identity : SigningKey
        The partner's; a ledger takes lines of one identity only, until that one hands it over (`hand_over`).
    ledger_id : str, optional
        32 hexadecimal digits for a new ledger; random by default. Only a simulation has reason to fix them.

    Guarantees
    ----------
    - When a method returns, what it recorded is on the disk (fsync) and in the chain.
    - When a method raises, no line was written: the file has the bytes that it had.
    - Each operation is atomic among processes: two runs cannot both spend the last of a budget.
    - A file that lost lines, or of which an earlier byte changed, is refused while it is open. A
      whole earlier copy, put back while nobody had it open, is refused as soon as the server shows its
      receipt (`accept_receipt`): nothing on the partner's own disk could tell.

    Raises
    ------
    LedgerError
        From every method: if the file was changed, is another identity's, or cannot be locked, read or
        written.
    """

    def __init__(self, path: Path, identity: SigningKey, *, ledger_id: str | None = None) -> None:
        # Resolved: two names of one file must mean one lock.
        self.path = path.resolve()
        self._identity = identity
        self._state = LedgerState()
        self._offset = 0
        self._read = hashlib.sha256()
        self._lock = FileLock(f"{self.path}.lock", timeout=LOCK_TIMEOUT_S, poll_interval=LOCK_POLL_S)
        with self._locked() as file:
            if self._state.genesis is None:
                self._append(file, Genesis(ledger_id or secrets.token_hex(16), identity.public.text))
                sync_folder(self.path.parent)

    def declare(
        self, run_id: str, plan: PrivacyPlan, epsilon: float | None, max_epsilon: float, max_delta: float
    ) -> Spent:
        """Charge a run's whole plan to the budget; the same run and plan again cost nothing.

        Parameters
        ----------
        run_id : str
        plan : PrivacyPlan
        epsilon : float or None
            Of the whole plan at ``plan.delta``, by `shared.privacy.accounting`; None in mode ``none``.
        max_epsilon, max_delta : float
            The partner's budget over all runs; ``math.inf`` for no bound on epsilon (simulations).

        Returns
        -------
        Spent
            By all plans, this one included.

        Guarantees
        ----------
        The epsilons and the deltas of all declared plans each add up to no more than the budget that is
        given here, also where it was lowered since the run was declared.

        Raises
        ------
        BudgetExhaustedError
        ReplayError
            If the run was declared with another plan.
        AccountingError
            If `epsilon` is None although the plan has noise, or the reverse.
        """
        self._write(_declaration(run_id, plan, epsilon, max_epsilon, max_delta))
        return self.spent()

    def check(
        self, reservation: Reservation, plan: PrivacyPlan, epsilon: float | None, max_epsilon: float, max_delta: float
    ) -> None:
        """Raise what `declare`, where the plan has canaries `commit`, and `reserve` would raise now. Writes nothing.

        Guarantees
        ----------
        None for later: another process may spend in between, so that both still check for themselves.
        """
        declaration = _declaration(reservation.run_id, plan, epsilon, max_epsilon, max_delta)
        with self._locked():
            self._state.check_round(declaration, reservation)
        validate(declaration)
        validate(reservation)

    def commit(self, commitment: Commitment) -> None:
        """Bind the run's audit canaries, before the first round that has them; the same again changes nothing.

        Guarantees
        ----------
        A run has one set of canaries, as many as its plan says, which nobody chose after a sum was seen.

        Raises
        ------
        ReplayError
            If the run was not declared, or has other canaries.
        PolicyViolationError
            If the plan has another number of them.
        """
        self._write(commitment)

    def run(self, run_id: str) -> RunState | None:
        """What is recorded of a run; None if it was not declared. To be read, not changed."""
        with self._locked():
            return self._state.runs.get(run_id)

    def reserve(self, reservation: Reservation) -> Reservation:
        """Record a round as spent, before any of its noise is drawn.

        The same request for the same round again returns the reservation that stands: the round's noised
        sum is drawn once and kept.

        Guarantees
        ----------
        No more rounds are reserved than the declared plan has, each with the plan's rate and noise.

        Raises
        ------
        ReplayError
            If the run or its plan was not declared, its canaries were not committed to, the round is below the
            run's last, or was reserved for another request.
        BudgetExhaustedError
            If the plan has no such round left.
        PolicyViolationError
            If rate, noise or releases are not the plan's.
        """
        self._write(reservation)
        return reservation

    def release(self, run_id: str, round_: int, output: str) -> None:
        """Record that the round's noised sum was drawn; `output` is its SHA-256 in hexadecimal.

        Guarantees
        ----------
        A round has one output, ever. It is in no head and in no hash.

        Raises
        ------
        ReplayError
            If the round was not reserved, or has another output.
        """
        self._write(Release(run_id, round_, output))

    def open(self, run_id: str, round_: int, survivors: Collection[str]) -> None:
        """Record the partners over whose sum the round may be opened.

        Guarantees
        ----------
        A round has one set of survivors, ever, of at least the plan's threshold: no two different sums of
        it can be opened with this partner's consent.

        Raises
        ------
        ReplayError
            If nothing was released.
        UnmaskError
            If the round was opened for another set.
        CohortTooSmallError
            If the set is below the threshold.
        """
        self._write(Opened(run_id, round_, tuple(sorted(set(survivors)))))

    def accept_receipt(self, receipt: Receipt, server: Pin) -> None:
        """Keep the server's signature over a head of this ledger; an older one than the last adds nothing.

        Guarantees
        ----------
        Returns only if `server` signed the head and the head is in this chain.

        Raises
        ------
        InvalidSignatureError
        LedgerError
            If the chain does not have that entry: the file was rolled back or forked.
        """
        receipt.verify(server)
        self._write(receipt)

    def hand_over(self, successor: SigningKey) -> None:
        """Record that `successor` signs from the next line on, and go on with it.

        Guarantees
        ----------
        Every line before stays as it is, signed by the key that wrote it; both keys have signed the change.

        Raises
        ------
        LedgerError
            If the key has signed this ledger before.
        """
        with self._locked() as file:
            body = sign_succession(successor, self._state.head)
            self._state.check(body)
            self._append(file, body)
            self._identity = successor

    def released(self, run_id: str, round_: int) -> str | None:
        """SHA-256 of the round's noised sum; None if nothing was released."""
        state = self._round(run_id, round_)
        return None if state is None else state.output

    def opened(self, run_id: str, round_: int) -> tuple[str, ...] | None:
        """The round's survivors; None if it was not opened."""
        state = self._round(run_id, round_)
        return None if state is None else state.survivors

    def head(self) -> LedgerHead:
        """The end of the chain: what the server countersigns. Depends on no data."""
        with self._locked():
            return self._state.head

    def spent(self) -> Spent:
        """What all declared plans cost together."""
        with self._locked():
            return self._state.spent()

    def _round(self, run_id: str, round_: int) -> RoundState | None:
        run = self.run(run_id)
        return None if run is None else run.rounds.get(round_)

    def _write(self, body: Body) -> None:
        with self._locked() as file:
            if self._state.check(body):
                self._append(file, body)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock, with all that others appended read."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock.acquire()
        except (Timeout, OSError) as error:
            raise LedgerError(f"Expected the lock of {self.path} within {LOCK_TIMEOUT_S:g} s.") from error
        with lock:
            # A file that was read before and is gone is not made anew.
            create = 0 if self._offset else os.O_CREAT
            try:
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | create, 0o600)
            except OSError as error:
                raise LedgerError(f"Expected to open {self.path}, got {error.strerror}.") from error
            try:
                self._catch_up(file)
                yield file
            finally:
                os.close(file)

    def _catch_up(self, file: int) -> None:
        """Verify the lines that are new, and that those before are the bytes that were verified."""
        try:
            data = _read_all(file)
        except OSError as error:
            raise LedgerError(f"Expected to read {self.path}, got {error.strerror}.") from error
        if hashlib.sha256(data[: self._offset]).digest() != self._read.digest():
            raise LedgerError(f"Expected the bytes of {self.path} that were read before, got others: it was changed.")
        for line in replay(data, self._offset, self._state, self.path):
            self._read.update(line)
            self._offset += len(line)
        if self._state.genesis is not None and self._state.identity != self._identity.public:
            raise LedgerError(f"Expected {self.path} to be of identity {self._identity.public.text}, got another's.")

    def _append(self, file: int, body: Body) -> None:
        head = self._state.head
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = seal(head.count, time, head.hash, body, self._identity)
        try:
            if os.fstat(file).st_size > self._offset:
                # A line that a crash tore: it was never acknowledged, so nothing depends on it.
                os.ftruncate(file, self._offset)
            if os.write(file, entry.line) != len(entry.line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, self._offset)
                os.fsync(file)
            raise LedgerError(f"Expected to append a line to {self.path}, got {error.strerror}.") from error
        self._state.add(entry)
        self._read.update(entry.line)
        self._offset += len(entry.line)


def _declaration(
    run_id: str, plan: PrivacyPlan, epsilon: float | None, max_epsilon: float, max_delta: float
) -> Declaration:
    bound = None if max_epsilon == math.inf else max_epsilon
    # Through JSON, so that the entry in memory is the entry that will be read.
    told = json.loads(json.dumps(plan.told()))
    return Declaration(run_id, told, plan.digest(), epsilon, plan.delta, bound, max_delta)


def replay(data: bytes, start: int, state: LedgerState, path: Path) -> Iterator[bytes]:
    """Verify the whole lines of ``data[start:]``, add them to `state`, and yield each once it is added.

    What follows the last line feed is a line that a crash tore, unless it holds a whole entry.

    Guarantees
    ----------
    Every line that was added is signed, chained and within the rules at its place.

    Raises
    ------
    LedgerError
        Names `path`, the line and what is wrong. `state` then holds the lines before it.
    """
    while (end := data.find(b"\n", start) + 1) > 0:
        head = state.head
        try:
            entry = parse(data[start:end], head.count, head.hash, state.identity)
            if not state.check(entry.body):
                raise LedgerError("Expected news, got an entry that changes nothing.")
            state.add(entry)
        except VeilrecError as error:
            raise LedgerError(f"{path}, line {head.count + 1}: {error}") from error
        yield entry.line
        start = end
    if _holds_entry(data[start:]):
        raise LedgerError(
            f"{path}, line {state.head.count + 1}: Expected a line feed after the entry, got other bytes."
        )


def _holds_entry(tail: bytes) -> bool:
    """Whether a line without its line feed is a whole entry and more, which no torn write leaves."""
    try:
        _, end = json.JSONDecoder().raw_decode(tail.decode("latin-1"))
    except (ValueError, RecursionError):
        return False
    return bool(end < len(tail))


def _read_all(file: int) -> bytes:
    size, parts = os.fstat(file).st_size, []
    offset = 0
    while offset < size and (part := os.pread(file, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
