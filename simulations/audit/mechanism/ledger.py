"""The ledger's rules, on the file itself: what it refuses, that it is on the disk first, and cannot be rewritten."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shared.errors import BudgetExhaustedError, CohortTooSmallError, LedgerError, ReplayError, UnmaskError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger, Reservation, sign_receipt
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.ledger_entries import Genesis, Release, seal
from shared.privacy.plan import Stage
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    check,
    equal,
    exchanged,
    none_of,
    refused,
)

CHECKS: list[Check] = []
RUN, EPSILON, BUDGET, DELTA = "run", 3.0, 8.0, 1e-4
PLAN = REFERENCE
COHORT = ("a", "b", "c")


@check(CHECKS, "a budget that can be overdrawn")
def budgets(setting: Setting) -> Iterator[Finding]:
    """Epsilon and delta of all runs together, to the last unit; a plan counts whole, also while nothing was drawn."""
    ledger, _, _ = _opened(setting)
    ledger.declare(RUN, PLAN, EPSILON, BUDGET, DELTA)
    ledger.declare("second", PLAN, EPSILON, BUDGET, DELTA)
    for name, epsilon, limit in (("epsilon", EPSILON, BUDGET), ("delta", 0.1, 2.5 * PLAN.delta)):
        budget, most = (limit, DELTA) if name == "epsilon" else (BUDGET, limit)
        yield refused(
            f"a third run over the {name} that two have left",
            BudgetExhaustedError,
            partial(ledger.declare, "third", PLAN, epsilon, budget, most),
            "a budget that forgets other runs",
        )
    yield refused(
        "a run under a budget that was lowered since",
        BudgetExhaustedError,
        lambda: ledger.declare(RUN, PLAN, EPSILON, EPSILON, DELTA),
        "a budget that cannot be lowered",
    )
    yield equal("epsilon spent by two runs of 3", ledger.spent().epsilon, 2 * EPSILON, "plans that are not added up")


@check(CHECKS, "more rounds than planned, a second output, or a second set of survivors")
def rounds(setting: Setting) -> Iterator[Finding]:
    """Each round once, as planned, with one output, opened for one set of at least t partners."""
    ledger, _, _ = _opened(setting)
    yield refused("a round of a run without a plan", ReplayError, lambda: ledger.reserve(_asked(1)), "unplanned rounds")
    ledger.declare(RUN, PLAN, EPSILON, BUDGET, DELTA)
    yield refused(
        "a release without a reservation", ReplayError, lambda: _release(ledger, 1), "noise before it is paid"
    )
    ledger.reserve(_asked(1, "prior"))
    yield refused(
        "a second prior", BudgetExhaustedError, lambda: ledger.reserve(_asked(2, "prior")), "one sum more than planned"
    )
    for round_ in range(2, 2 + PLAN.rounds):
        ledger.reserve(_asked(round_))
    over = 2 + PLAN.rounds
    yield refused(
        "a round beyond the plan", BudgetExhaustedError, lambda: ledger.reserve(_asked(over)), "one round more"
    )
    yield refused(
        "another request for a round",
        ReplayError,
        lambda: ledger.reserve(_asked(over - 1, of="x")),
        "two sums of a round",
    )
    yield refused("an earlier round", ReplayError, lambda: ledger.reserve(_asked(2)), "a round that comes back")
    last = over - 1
    yield refused("an opening before its release", ReplayError, lambda: ledger.open(RUN, last, COHORT), "an unpaid sum")
    _release(ledger, last)
    yield refused("a second output", ReplayError, lambda: _release(ledger, last, "other"), "a second output of a round")
    yield refused(
        "survivors below t",
        CohortTooSmallError,
        lambda: ledger.open(RUN, last, COHORT[:2]),
        "less noise than is billed",
    )
    ledger.open(RUN, last, COHORT)
    other = (*COHORT, "d")
    yield refused(
        "other survivors",
        UnmaskError,
        lambda: ledger.open(RUN, last, other),
        "a round opened for two sets of survivors",
    )


@check(CHECKS, "a ledger that was rolled back or rewritten")
def rewritten(setting: Setting) -> Iterator[Finding]:
    """A lost tail, a forged line, a changed byte and a line by another key."""
    ledger, path, key = _opened(setting)
    ledger.declare(RUN, PLAN, EPSILON, BUDGET, DELTA)
    before = path.read_bytes()
    ledger.reserve(_asked(1))
    server = SigningKey.generate()
    receipt = sign_receipt(server, "partner", ledger.head())
    whole = path.read_bytes()
    path.write_bytes(before)
    yield refused("a ledger that lost its tail while open", LedgerError, ledger.head, "a ledger that was rolled back")
    rolled = Ledger(path, key)
    yield refused(
        "a ledger put back, shown the server's receipt",
        LedgerError,
        lambda: rolled.accept_receipt(receipt, server.public),
        "a ledger that was rolled back",
    )
    path.write_bytes(whole.replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0'))
    yield refused(
        "a ledger with another noise in it", LedgerError, lambda: read_ledger(path), "entries that were changed"
    )
    head = json.loads(whole.splitlines()[-1])
    forged = seal(head["index"] + 1, head["time"], head["hash"], Release(RUN, 1, "a" * 64), SigningKey.generate())
    path.write_bytes(whole + forged.line)
    yield refused("a line that another key signed", LedgerError, lambda: read_ledger(path), "lines that anybody signed")
    path.write_bytes(whole)
    yield none_of("lines that a whole ledger lost", 3 - read_ledger(path).head.count, "a check of nothing")


@check(CHECKS, "a head that tells something of the data")
def heads(setting: Setting) -> Iterator[Finding]:
    """The head that the server is told is the same whatever the sum was and however long it took."""
    key = SigningKey.generate()
    seals = [
        seal(3, f"2026-11-22T00:00:0{second}+00:00", "f" * 64, Release(RUN, 1, hashlib.sha256(text).hexdigest()), key)
        for second, text in ((0, b"one sum"), (9, b"another sum"))
    ]
    yield none_of(
        "hashes that hang on the sum or on time", seals[0].hash != seals[1].hash, "a head that covers the sum"
    )
    genesis = [seal(0, "2026-11-22T00:00:00+00:00", "", Genesis(own * 32, key.public.text), key) for own in "ab"]
    yield none_of(
        "ledgers of two ids with one head", genesis[0].hash == genesis[1].hash, "heads that cannot be told apart"
    )


@check(CHECKS, "an entry that is not on the disk when it counts")
def synced(setting: Setting) -> Iterator[Finding]:
    """Every line is written and synced before the operation returns; what adds nothing writes nothing."""
    ledger, _, _ = _opened(setting)
    ledger.declare(RUN, PLAN, EPSILON, BUDGET, DELTA)
    events: list[str] = []
    write, fsync = os.write, os.fsync

    def watched_write(file: int, data: bytes) -> int:
        events.append("write")
        return write(file, data)

    def watched_fsync(file: int) -> None:
        events.append("fsync")
        fsync(file)

    wrong = 0
    with exchanged(os, "write", watched_write), exchanged(os, "fsync", watched_fsync):
        for act in (
            lambda: ledger.reserve(_asked(1)),
            lambda: _release(ledger, 1),
            lambda: ledger.open(RUN, 1, COHORT),
        ):
            events.clear()
            act()
            wrong += events != ["write", "fsync"]
            events.clear()
            act()
            wrong += events != []
    yield none_of("operations of 6 that are not written and synced once", wrong, "an entry that is not synced")


def _opened(setting: Setting) -> tuple[Ledger, Path, SigningKey]:
    key, path = SigningKey.generate(), setting.folder() / "ledger.jsonl"
    return Ledger(path, key), path, key


def _asked(round_: int, stage: Stage = "train", of: str = "") -> Reservation:
    return Reservation.of(PLAN, RUN, round_, stage, hashlib.sha256(f"{round_}{of}".encode()).hexdigest())


def _release(ledger: Ledger, round_: int, text: str = "sum") -> None:
    ledger.release(RUN, round_, hashlib.sha256(text.encode()).hexdigest())
