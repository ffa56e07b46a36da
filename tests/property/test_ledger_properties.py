"""Whatever is done to a ledger: its rules hold, and any change of its bytes is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import COHORT, KEY, PLAN, SERVER, asked, digest, make, whole_round

from shared.errors import LedgerError, VeilrecError
from shared.privacy import ledger_entries
from shared.privacy.ledger import Ledger, Receipt, replay, sign_receipt
from shared.privacy.ledger_audit import read_ledger, verify_ledger
from shared.privacy.ledger_state import LedgerState

calm = settings(deadline=None)
BUDGET, MAX_DELTA = 7.0, 3e-5


@pytest.fixture(scope="module", autouse=True)
def no_disk() -> Iterator[None]:
    """Durability is tested elsewhere; here it would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Receipt]]:
    """The bytes of a ledger with every kind of entry, and the server's receipts for two of its heads."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = make(path)
    receipts = []
    for round_ in (1, 2):
        whole_round(ledger, round_)
        receipts.append(sign_receipt(SERVER, "north", ledger.head()))
        ledger.accept_receipt(receipts[-1], SERVER.public)
    return path.read_bytes(), receipts


def accepts(data: bytes, receipts: list[Receipt]) -> bool:
    """Whether a partner that has this file goes on: the file alone, and the server's receipts."""
    state = LedgerState()
    try:
        for _ in replay(data, 0, state, Path("ledger.jsonl")):
            pass
        for receipt in receipts:
            state.confirm(receipt)
    except LedgerError:
        return False
    return state.genesis is not None


def test_any_byte_that_is_flipped_is_detected(whole: tuple[bytes, list[Receipt]]) -> None:
    data, _ = whole
    assert accepts(data, [])
    unseen = [
        place
        for place in range(len(data))
        if accepts(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :], [])
    ]
    assert unseen == []


@calm
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_byte_that_is_replaced_is_detected(whole: tuple[bytes, list[Receipt]], place: int, value: int) -> None:
    data, _ = whole
    place %= len(data)
    changed = data[:place] + bytes([value]) + data[place + 1 :]
    assert accepts(changed, []) == (changed == data)


def test_a_signature_that_is_not_checked_lets_a_flipped_byte_through(
    whole: tuple[bytes, list[Receipt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The planted bug; the time of an entry is covered by nothing else.
    monkeypatch.setattr(ledger_entries.VerifyKey, "verify", lambda *_: None)
    data, _ = whole
    assert accepts(data.replace(b'"time":"20', b'"time":"21', 1), [])


@calm
@given(cut=st.integers(0, 10**6))
def test_a_tail_that_is_missing_is_detected_by_the_receipts(whole: tuple[bytes, list[Receipt]], cut: int) -> None:
    data, receipts = whole
    cut %= len(data)
    countersigned = b"".join(data.splitlines(keepends=True)[: receipts[-1].count])
    assert accepts(data[:cut], receipts) == (cut >= len(countersigned))


def _shuffled(lines: list[bytes], kind: str, one: int, other: int) -> list[bytes]:
    changed = list(lines)
    if kind == "drop":
        del changed[one]
    elif kind == "repeat":
        changed.insert(other, lines[one])
    else:
        changed[one], changed[other] = changed[other], changed[one]
    return changed


@calm
@given(kind=st.sampled_from(["drop", "repeat", "swap"]), one=st.integers(0, 9), other=st.integers(0, 9))
def test_lines_that_are_dropped_repeated_or_swapped_are_detected(
    whole: tuple[bytes, list[Receipt]], kind: str, one: int, other: int
) -> None:
    data, receipts = whole
    lines = data.splitlines(keepends=True)
    assert len(lines) == 10
    changed = _shuffled(lines, kind, one, other)
    # The last line is that receipt itself: without it nothing is lost that anyone was told.
    unharmed = changed == lines or (kind == "drop" and one == 9)
    assert accepts(b"".join(changed), receipts) == unharmed


@calm
@given(at=st.integers(1, 7), rounds=st.integers(0, 2))
def test_a_fork_is_detected_by_the_receipts(whole: tuple[bytes, list[Receipt]], at: int, rounds: int) -> None:
    data, receipts = whole
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(b"".join(data.splitlines(keepends=True)[:at]))
        fork = Ledger(path, KEY)
        fork.declare("another", PLAN, 1.0, 8.0, 1e-4)
        for round_ in range(rounds):
            fork.reserve(asked(round_, run="another"))
            fork.release("another", round_, digest(round_))
            fork.open("another", round_, COHORT)
        assert accepts(path.read_bytes(), [])
        assert not accepts(path.read_bytes(), receipts)
        with pytest.raises(LedgerError, match="rolled back or forked"):
            fork.accept_receipt(receipts[-1], SERVER.public)


# --- any order of operations ----------------------------------------------------------------------

runs = st.sampled_from(["one", "two"])
rounds = st.integers(1, 3)
texts = st.sampled_from(["x", "y"])
operation = st.one_of(
    st.tuples(st.just("declare"), runs, st.sampled_from([1.0, 2.5, 3.5]), st.booleans()),
    st.tuples(st.just("reserve"), runs, rounds, texts),
    st.tuples(st.just("prior"), runs, rounds, texts),
    st.tuples(st.just("release"), runs, rounds, texts),
    st.tuples(st.just("open"), runs, rounds, st.sampled_from([COHORT, (*COHORT, "e"), COHORT[:2]])),
    st.tuples(st.just("round"), runs, rounds),
    st.tuples(st.just("receipt")),
    st.tuples(st.just("reopen")),
)


def _apply(ledger: Ledger, step: tuple[object, ...]) -> None:
    match step:
        case "declare", str(run), float(epsilon), bool(other):
            plan = replace(PLAN, rounds=2) if other else PLAN
            ledger.declare(run, plan, epsilon, BUDGET, MAX_DELTA)
        case "reserve", str(run), int(round_), str(text):
            ledger.reserve(asked(round_, run=run, of=text))
        case "prior", str(run), int(round_), str(text):
            ledger.reserve(asked(round_, "prior", run=run, of=text))
        case "release", str(run), int(round_), str(text):
            ledger.release(run, round_, digest(text))
        case "open", str(run), int(round_), tuple(names):
            ledger.open(run, round_, names)
        case "round", str(run), int(round_):
            ledger.reserve(asked(round_, run=run, of="x"))
            ledger.release(run, round_, digest("x"))
            ledger.open(run, round_, COHORT)
        case ("receipt",):
            ledger.accept_receipt(sign_receipt(SERVER, "north", ledger.head()), SERVER.public)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(operation, min_size=10, max_size=60))
def test_after_any_operations_the_ledger_is_within_its_rules(steps: list[tuple[object, ...]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        ledger = Ledger(path, KEY)
        for step in [("declare", "one", 2.5, False), *steps]:
            before = path.read_bytes()
            if step[0] == "reopen":
                ledger = Ledger(path, KEY)
            try:
                _apply(ledger, step)
            except VeilrecError:
                assert step[0] == "round" or path.read_bytes() == before  # a round is three operations
            assert path.read_bytes().startswith(before)
            assert (ledger.spent().epsilon <= BUDGET) and (ledger.spent().delta <= MAX_DELTA)
        report = verify_ledger(path, KEY.public, SERVER.public, accountant=lambda plan, rounds: 0.0)
        assert report == replace(
            read_ledger(path), runs=tuple(replace(run, recomputed_epsilon=0.0) for run in report.runs)
        )
        assert report.head == ledger.head() == Ledger(path, KEY).head()
        for run in report.runs:
            assert run.opened <= run.released <= run.reserved <= run.planned


@calm
@given(epsilons=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=8))
def test_the_plans_that_are_admitted_never_add_up_to_more_than_the_budget(epsilons: list[float]) -> None:
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl", KEY)
        admitted = []
        for number, epsilon in enumerate(epsilons):
            try:
                ledger.declare(f"run-{number}", PLAN, epsilon, BUDGET, 1.0)
            except VeilrecError:
                assert sum(admitted) + epsilon > BUDGET - 1e-9
                continue
            admitted.append(epsilon)
        assert sum(admitted) <= BUDGET + 1e-9
