"""The rules of a partner's ledger: what it admits, and what it refuses without a trace."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ledgers import BARE, COHORT, KEY, PLAN, SERVER, asked, digest, flat, make, refused, silent, whole_round

from shared.errors import (
    AccountingError,
    BudgetExhaustedError,
    CohortTooSmallError,
    InvalidSignatureError,
    LedgerError,
    PolicyViolationError,
    ReplayError,
    UnmaskError,
)
from shared.hazmat.signing import SigningKey
from shared.privacy import ledger as ledger_module
from shared.privacy import ledger_entries
from shared.privacy.ledger import Ledger, sign_receipt
from shared.privacy.ledger_audit import read_ledger, verify_ledger
from shared.privacy.ledger_heads import LedgerHead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partner" / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return make(path)


# --- the budget -----------------------------------------------------------------------------------


def test_the_epsilons_and_deltas_of_declared_plans_add_up(ledger: Ledger) -> None:
    spent = ledger.declare("second", PLAN, 4.5, 8.0, 1e-4)
    assert (spent.epsilon, spent.delta, spent.plans) == (7.5, 2e-5, 2)
    assert ledger.spent() == spent


def test_a_plan_over_the_epsilon_that_is_left_is_refused(ledger: Ledger, path: Path) -> None:
    told = r"Expected epsilon <= 5 left of the budget of 8, the plan asks for 5\.01\."
    refused(path, BudgetExhaustedError, told, lambda: ledger.declare("second", PLAN, 5.01, 8.0, 1e-4))
    ledger.declare("second", PLAN, 5.0, 8.0, 1e-4)


def test_a_plan_over_the_delta_that_is_left_is_refused(ledger: Ledger, path: Path) -> None:
    told = r"Expected delta <= 5e-06 left of the budget of 1\.5e-05, the plan asks for 1e-05\."
    refused(path, BudgetExhaustedError, told, lambda: ledger.declare("second", PLAN, 1.0, 8.0, 1.5e-5))


def test_numbers_are_added_as_they_are_written(path: Path) -> None:
    ledger = Ledger(path, KEY)
    assert 0.1 + 0.2 > 0.3  # in binary
    ledger.declare("first", PLAN, 0.1, 0.3, 3e-5)
    ledger.declare("second", PLAN, 0.2, 0.3, 3e-5)
    assert ledger.spent().epsilon == 0.3
    refused(path, BudgetExhaustedError, "epsilon <= 0 left", lambda: ledger.declare("third", PLAN, 1e-12, 0.3, 1.0))


def test_a_run_that_is_declared_again_costs_nothing(ledger: Ledger, path: Path) -> None:
    silent(path, lambda: ledger.declare("run", PLAN, 3.0, 8.0, 1e-4))
    silent(path, lambda: Ledger(path, KEY).declare("run", PLAN, 3.0, 3.0, 1e-5))
    assert ledger.spent().plans == 1


def test_a_run_that_is_declared_with_another_plan_is_refused(ledger: Ledger, path: Path) -> None:
    other = replace(PLAN, noise_multiplier=1.9)
    refused(path, ReplayError, "one plan a run", lambda: ledger.declare("run", other, 3.0, 8.0, 1e-4))


def test_a_budget_that_was_lowered_stops_a_run_that_goes_on(ledger: Ledger, path: Path) -> None:
    refused(path, BudgetExhaustedError, "epsilon <= 2.9 left", lambda: ledger.declare("run", PLAN, 3.0, 2.9, 1e-4))


def test_a_run_that_is_declared_again_for_less_still_counts_what_it_was_declared_for(
    ledger: Ledger, path: Path
) -> None:
    refused(path, BudgetExhaustedError, "epsilon <= 1 left", lambda: ledger.declare("run", PLAN, 0.5, 1.0, 1e-4))


def test_a_run_without_noise_has_no_bound_and_fits_no_budget(ledger: Ledger, path: Path) -> None:
    refused(path, BudgetExhaustedError, "asks for no bound", lambda: ledger.declare("bare", BARE, None, 1e9, 1.0))
    ledger.declare("bare", BARE, None, math.inf, 1.0)
    assert ledger.spent().epsilon == math.inf
    # What was released without noise cannot be taken back: nothing with a budget fits any more.
    refused(path, BudgetExhaustedError, "epsilon <= 0 left", lambda: ledger.declare("third", PLAN, 0.1, 1e9, 1.0))


def test_only_a_plan_without_noise_has_no_epsilon(ledger: Ledger, path: Path) -> None:
    refused(path, AccountingError, "epsilon=none", lambda: ledger.declare("second", PLAN, None, 8.0, 1e-4))
    refused(path, AccountingError, "epsilon=none", lambda: ledger.declare("second", BARE, 1.0, 8.0, 1e-4))


@pytest.mark.parametrize("epsilon", [math.nan, -1.0, math.inf])
@pytest.mark.parametrize("budget", [8.0, math.inf, math.nan])
def test_an_epsilon_that_is_no_number_is_refused(ledger: Ledger, path: Path, epsilon: float, budget: float) -> None:
    before = path.read_bytes()
    with pytest.raises((BudgetExhaustedError, LedgerError)):
        ledger.declare("second", PLAN, epsilon, budget, 1e-4)
    assert path.read_bytes() == before


def test_a_budget_that_is_no_number_admits_nothing(ledger: Ledger, path: Path) -> None:
    refused(path, BudgetExhaustedError, "epsilon", lambda: ledger.declare("second", PLAN, 1.0, math.nan, 1e-4))
    refused(path, BudgetExhaustedError, "delta", lambda: ledger.declare("second", PLAN, 1.0, 8.0, math.nan))


@pytest.mark.parametrize("run_id", ["", "a b", "\x1b[2J", "ü", "a\n", "x" * 201])
def test_a_run_id_that_could_carry_text_is_refused(ledger: Ledger, path: Path, run_id: str) -> None:
    refused(path, LedgerError, "fields of a plan entry", lambda: ledger.declare(run_id, PLAN, 1.0, 8.0, 1e-4))


# --- the rounds -----------------------------------------------------------------------------------


def test_a_round_goes_from_reserve_to_release_to_open(ledger: Ledger) -> None:
    assert ledger.released("run", 1) is None
    assert ledger.reserve(asked(1)) == asked(1)
    assert ledger.released("run", 1) is None
    ledger.release("run", 1, digest("sum"))
    assert (ledger.released("run", 1), ledger.opened("run", 1)) == (digest("sum"), None)
    ledger.open("run", 1, ["d", "c", "b", "a"])
    assert ledger.opened("run", 1) == COHORT
    assert ledger.head().count == 5
    assert ledger.released("another", 1) is None


def test_every_step_of_a_round_again_writes_nothing(ledger: Ledger, path: Path) -> None:
    whole_round(ledger, 1)
    silent(path, lambda: whole_round(ledger, 1))
    silent(path, lambda: whole_round(Ledger(path, KEY), 1))


def test_a_reservation_tells_what_the_plan_says() -> None:
    plan = replace(PLAN, mode="local", local_steps=4)
    train, prior = asked(1, plan=plan), asked(0, "prior", plan=plan)
    assert (train.sampling_rate, train.noise_multiplier, train.releases) == (0.2, 2.0, 4)
    assert (prior.sampling_rate, prior.noise_multiplier, prior.releases) == (1.0, 1.5, 1)
    assert train.plan_digest == plan.digest()


def test_another_request_for_a_reserved_round_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(1))
    refused(path, ReplayError, "same request", lambda: ledger.reserve(asked(1, of="another model")))
    refused(path, ReplayError, "same request", lambda: ledger.reserve(asked(1, "prior")))


def test_a_round_below_the_last_is_refused(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(2))
    ledger.reserve(asked(3))
    for round_ in (1, 2):
        refused(path, ReplayError, "round >= 3", lambda n=round_: ledger.reserve(asked(n)))  # type: ignore[misc]


def test_rounds_beyond_the_plan_are_refused(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(1, "prior"))
    refused(path, BudgetExhaustedError, "at most 1 rounds of stage=prior", lambda: ledger.reserve(asked(2, "prior")))
    for round_ in (2, 3, 9):
        ledger.reserve(asked(round_))
    refused(path, BudgetExhaustedError, "at most 3 rounds of stage=train", lambda: ledger.reserve(asked(10)))


def test_a_plan_without_a_prior_has_no_round_for_it(ledger: Ledger, path: Path) -> None:
    plan = replace(PLAN, prior_noise_multiplier=None)
    ledger.declare("second", plan, 1.0, 8.0, 1e-4)
    wanted = replace(asked(1, "prior", run="second"), plan_digest=plan.digest())
    refused(path, BudgetExhaustedError, "at most 0 rounds of stage=prior", lambda: ledger.reserve(wanted))


def test_a_round_without_its_declared_plan_is_refused(ledger: Ledger, path: Path) -> None:
    refused(path, ReplayError, "a declared run", lambda: ledger.reserve(asked(1, run="second")))
    other = replace(PLAN, noise_multiplier=1.9)
    refused(path, ReplayError, "another plan", lambda: ledger.reserve(asked(1, plan=other)))


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": 0.1},
        {"noise_multiplier": 4.0},
        {"releases": 2},
        {"sampling_rate": 1.0, "noise_multiplier": 1.5},
    ],
)
def test_a_round_with_other_numbers_than_the_plans_is_refused(
    ledger: Ledger, path: Path, change: dict[str, Any]
) -> None:
    wanted = replace(asked(1), **change)
    refused(path, PolicyViolationError, "the plan's rate, noise and releases", lambda: ledger.reserve(wanted))


@pytest.mark.parametrize("request_", ["", "a user's text", "F" * 64, "0" * 63])
def test_a_request_that_is_no_digest_is_refused(ledger: Ledger, path: Path, request_: str) -> None:
    wanted = replace(asked(1), request=request_)
    refused(path, LedgerError, "fields of a reserve entry", lambda: ledger.reserve(wanted))


def test_a_release_needs_its_reserve_and_is_one(ledger: Ledger, path: Path) -> None:
    refused(path, ReplayError, "a reservation before", lambda: ledger.release("run", 1, digest("sum")))
    refused(path, ReplayError, "a reservation before", lambda: ledger.release("another", 1, digest("sum")))
    ledger.reserve(asked(1))
    ledger.release("run", 1, digest("sum"))
    refused(path, ReplayError, "one noised sum", lambda: ledger.release("run", 1, digest("second draw")))


def test_a_round_is_opened_for_one_set_of_survivors(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(1))
    refused(path, ReplayError, "a release before", lambda: ledger.open("run", 1, COHORT))
    ledger.release("run", 1, digest("sum"))
    refused(path, CohortTooSmallError, "survivors >= 4", lambda: ledger.open("run", 1, ("a", "b", "c", "c")))
    ledger.open("run", 1, COHORT)
    silent(path, lambda: ledger.open("run", 1, reversed(COHORT)))  # type: ignore[arg-type]
    for other in ((*COHORT, "e"), ("a", "b", "c", "e"), ("a",)):
        refused(path, UnmaskError, "same survivors", lambda o=other: ledger.open("run", 1, o))  # type: ignore[misc]


def test_a_check_beforehand_refuses_what_would_be_refused_and_writes_nothing(ledger: Ledger, path: Path) -> None:
    silent(path, lambda: ledger.check(asked(1), PLAN, 3.0, 8.0, 1e-4))
    silent(path, lambda: ledger.check(asked(1, run="second"), PLAN, 5.0, 8.0, 1e-4))
    for family, told, wanted, plan, epsilon in (
        (BudgetExhaustedError, "epsilon <= 5 left", asked(1, run="second"), PLAN, 5.1),
        (ReplayError, "one plan a run", asked(1), replace(PLAN, rounds=4), 3.0),
        (ReplayError, "another plan", asked(1, run="second", plan=replace(PLAN, rounds=4)), PLAN, 3.0),
        (PolicyViolationError, "the plan's rate", replace(asked(1, run="second"), releases=2), PLAN, 3.0),
        (LedgerError, "fields of a plan entry", asked(1, run="no id"), PLAN, 3.0),
        (LedgerError, "fields of a reserve entry", replace(asked(1), request="text"), PLAN, 3.0),
    ):
        refused(path, family, told, lambda w=wanted, p=plan, e=epsilon: ledger.check(w, p, e, 8.0, 1e-4))  # type: ignore[misc]
    ledger.reserve(asked(2))
    refused(path, ReplayError, "round >= 2", lambda: ledger.check(asked(1), PLAN, 3.0, 8.0, 1e-4))


def test_two_runs_share_one_ledger_and_not_their_rounds(ledger: Ledger) -> None:
    ledger.declare("second", PLAN, 3.0, 8.0, 1e-4)
    whole_round(ledger, 2)
    ledger.reserve(asked(1, run="second"))
    assert (ledger.released("run", 2), ledger.released("second", 2)) == (digest("sum 2"), None)


# --- receipts -------------------------------------------------------------------------------------


def test_a_countersigned_head_is_kept_once(ledger: Ledger, path: Path) -> None:
    old = sign_receipt(SERVER, "north", ledger.head())
    whole_round(ledger, 1)
    new = sign_receipt(SERVER, "north", ledger.head())
    ledger.accept_receipt(new, SERVER.public)
    silent(path, lambda: ledger.accept_receipt(new, SERVER.public))
    silent(path, lambda: ledger.accept_receipt(old, SERVER.public))
    assert read_ledger(path).countersigned == new.count == 5


@pytest.mark.parametrize(
    "change",
    [{"partner": "south"}, {"count": 1}, {"hash": "0" * 64}, {"signature": "AAAA"}, {"signature": "?"}],
)
def test_a_receipt_that_the_server_did_not_sign_is_refused(ledger: Ledger, path: Path, change: dict[str, Any]) -> None:
    forged = replace(sign_receipt(SERVER, "north", ledger.head()), **change)
    refused(path, InvalidSignatureError, "Expected a signature", lambda: ledger.accept_receipt(forged, SERVER.public))


def test_a_receipt_by_another_server_is_refused(ledger: Ledger, path: Path) -> None:
    receipt = sign_receipt(SigningKey.generate(), "north", ledger.head())
    told = "pinned server key"
    refused(path, InvalidSignatureError, told, lambda: ledger.accept_receipt(receipt, SERVER.public))
    claimed = replace(receipt, server=SERVER.public.text)
    refused(path, InvalidSignatureError, "signature", lambda: ledger.accept_receipt(claimed, SERVER.public))


def test_a_ledger_that_lost_its_tail_is_found_out_by_the_servers_receipt(ledger: Ledger, path: Path) -> None:
    early = path.read_bytes()
    whole_round(ledger, 1)
    receipt = sign_receipt(SERVER, "north", ledger.head())
    path.write_bytes(early)
    reopened = Ledger(path, KEY)  # nothing in the file itself can tell
    refused(path, LedgerError, "rolled back or forked", lambda: reopened.accept_receipt(receipt, SERVER.public))
    with pytest.raises(LedgerError, match="rolled back or forked"):
        verify_ledger(path, receipts=[receipt], accountant=flat)


def test_a_ledger_that_was_forked_is_found_out_by_the_servers_receipt(ledger: Ledger, path: Path) -> None:
    early = path.read_bytes()
    whole_round(ledger, 1)
    receipt = sign_receipt(SERVER, "north", ledger.head())
    path.write_bytes(early)
    fork = Ledger(path, KEY)
    for round_ in (2, 3):
        whole_round(fork, round_)
    assert fork.head().count > receipt.count
    refused(path, LedgerError, "rolled back or forked", lambda: fork.accept_receipt(receipt, SERVER.public))


def test_a_new_ledger_over_the_same_data_is_found_out_by_the_servers_receipt(ledger: Ledger, path: Path) -> None:
    receipt = sign_receipt(SERVER, "north", LedgerHead(1, json.loads(path.read_bytes().splitlines()[0])["hash"]))
    path.unlink()
    fresh = Ledger(path, KEY)
    refused(path, LedgerError, "rolled back or forked", lambda: fresh.accept_receipt(receipt, SERVER.public))


# --- heads tell nothing about data ----------------------------------------------------------------


def _head_after(path: Path, output: str, when: datetime, patch: pytest.MonkeyPatch) -> tuple[LedgerHead, bytes]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return when

    patch.setattr(ledger_module, "datetime", Clock)
    ledger = Ledger(path, KEY, ledger_id="0" * 32)
    ledger.declare("run", PLAN, 3.0, 8.0, 1e-4)
    ledger.reserve(asked(1))
    ledger.release("run", 1, output)
    ledger.open("run", 1, COHORT)
    return ledger.head(), path.read_bytes()


def _heads(tmp_path: Path, patch: pytest.MonkeyPatch) -> tuple[LedgerHead, LedgerHead]:
    early, late = datetime(2026, 11, 22, 10, tzinfo=UTC), datetime(2026, 11, 22, 10, 0, 7, tzinfo=UTC)
    one, bytes_of_one = _head_after(tmp_path / "one", digest("N users"), early, patch)
    other, bytes_of_other = _head_after(tmp_path / "other", digest("N + 1 users"), late, patch)
    assert bytes_of_one != bytes_of_other
    return one, other


def test_the_head_depends_neither_on_the_sum_nor_on_the_time_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = _heads(tmp_path, monkeypatch)
    assert one == other


def test_a_head_that_covers_the_sum_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_entries, "UNCHAINED", "")  # the planted bug
    one, other = _heads(tmp_path, monkeypatch)
    assert one != other


def test_heads_differ_between_ledgers(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "one", KEY).head() != Ledger(tmp_path / "other", KEY).head()


def test_what_is_not_in_the_head_is_still_signed(ledger: Ledger, path: Path) -> None:
    whole_round(ledger, 1)
    data = path.read_bytes()
    path.write_bytes(data.replace(digest("sum 1").encode(), digest("sum 2").encode()))
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 4: Expected signature"):
        Ledger(path, KEY)
