"""The partner's agent: what it answers was paid for first, and is paid for once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partner_setting import (
    CONFIG,
    ITEMS,
    LOCAL,
    NAME,
    NO_PRIOR,
    PEERS,
    Federation,
    changed,
    entries,
    keys,
    paid,
    refused,
)

from client import agent as agent_module
from client import privatize
from client.agent import PartnerAgent
from client.learner import Learner
from client.run_folder import RunFolder
from shared.errors import (
    BudgetExhaustedError,
    InvalidSignatureError,
    LedgerError,
    ReplayError,
    UnmaskError,
)
from shared.exchange import Consent, Consents, KeyOffer, Opening, Outbox
from shared.hazmat.signing import SigningKey
from shared.messages import NoisedSum, RoundPlan
from shared.privacy.ledger import Ledger, Receipt, sign_receipt
from shared.requests import (
    ConsentRequest,
    Contribution,
    Model,
    OpenRequest,
    SharesRequest,
    SumRequest,
)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.of(tmp_path)


# --- what is paid, and when -----------------------------------------------------------------------

Log = list[tuple[str, str]]


def watch(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> Log:
    """What the ledger's last line on the disk was when noise was drawn, a sum kept, and a vector masked."""
    log: Log = []

    def spy(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def spied(*given: Any, **named: Any) -> Any:
            log.append((name, entries(federation)[-1]))
            return real(*given, **named)

        monkeypatch.setattr(owner, name, spied)

    spy(privatize, "skellam")
    spy(RunFolder, "keep_sum")
    spy(agent_module, "mask")
    return log


def check_paid_first(log: Log) -> None:
    assert log == [("skellam", "reserve"), ("keep_sum", "reserve"), ("mask", "release")]


def test_noise_is_drawn_after_reserve_and_nothing_leaves_before_release(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = watch(federation, monkeypatch)
    play = federation.play()
    play.to(SumRequest)
    assert log == [] and entries(federation) == ["genesis"]
    play.finish()
    check_paid_first(log)
    assert entries(federation) == ["genesis", "plan", "reserve", "release", "open"]


def test_an_agent_that_draws_before_it_pays_would_be_caught(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(self: PartnerAgent, order: RoundPlan, model: Model) -> NoisedSum:
        noised = self.learner.noised_statistics(order)
        self.ledger.declare(order.run_id, order.plan, 6.9, 12.0, 1e-4)
        self.ledger.reserve(self._reservation(order))
        self.ledger.release(order.run_id, order.round, self._folder("run").keep_sum(order.request, noised))
        return noised

    log = watch(federation, monkeypatch)
    monkeypatch.setattr(PartnerAgent, "_noised_sum", hasty)
    federation.play().finish()
    with pytest.raises(AssertionError):
        check_paid_first(log)


def test_an_answer_carries_the_ledger_s_head_after_the_release(federation: Federation) -> None:
    play = federation.play()
    play.to(ConsentRequest)
    answer = play.answers[-1]
    assert isinstance(answer, Contribution)
    head = json.loads(federation.ledger_file.read_bytes().splitlines()[-1])
    assert head["kind"] == "release"
    assert (answer.name, answer.head.count, answer.head.hash) == (NAME, head["index"] + 1, head["hash"])


def test_where_the_release_cannot_be_written_nothing_leaves(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LedgerError("Expected to append a line, got no space.")

    play = federation.play()
    play.to(SumRequest)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "release", full)
        with pytest.raises(LedgerError):
            play.step()
    with pytest.raises(ReplayError):
        play.step()
    assert len(play.answers) == 2


def test_every_exchange_may_be_answered_by_another_process(federation: Federation) -> None:
    order = federation.order()
    play = federation.play(order)  # a new agent for each
    total = play.finish()
    assert [type(answer) for answer in play.answers] == [KeyOffer, Outbox, Contribution, Consent, Opening]
    released = federation.agent().ledger.released("run", 1)
    folder = RunFolder(federation.folder / "runs" / "run")
    kept, state = folder.kept_sum(order.request, str(released)), folder.state()
    assert kept is not None
    assert state is not None and state.session is None  # nothing of the session stays on the disk
    np.testing.assert_array_equal(total, kept.values)


def test_a_round_asked_again_is_the_same_noised_sum_and_costs_nothing(federation: Federation) -> None:
    first = federation.play().finish()
    before = paid(federation)
    # The noise comes from the system: no second draw would be the same.
    np.testing.assert_array_equal(federation.play().finish(), first)
    assert paid(federation) == before


def test_a_bare_round_asked_again_is_the_same_noised_sum_and_costs_nothing(tmp_path: Path) -> None:
    federation = Federation.of(tmp_path, config=changed(CONFIG, LOCAL))
    ask = federation.bare(federation.order())
    first = federation.agent().answer(ask)
    before = paid(federation)
    second = federation.agent().answer(federation.bare(federation.order()))
    assert isinstance(first, Contribution) and isinstance(second, Contribution)
    np.testing.assert_array_equal(first.update.values, second.update.values)
    refused(federation, ReplayError, "Expected a new attempt", federation.ask(ask))
    assert paid(federation) == before
    assert not first.update.masked and first.update.loss is None


def test_two_runs_draw_noise_of_their_own(tmp_path: Path) -> None:
    federation = Federation.of(tmp_path, max_epsilon=20.0)
    first = federation.play().finish()
    assert not np.array_equal(federation.play(federation.order(run_id="other")).finish(), first)


def test_a_crash_after_the_reservation_does_not_pay_twice(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> NoisedSum:
        raise RuntimeError("out of memory")

    play = federation.play()
    play.to(SumRequest)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "noised_statistics", crash)
        with pytest.raises(RuntimeError):
            play.step()
    assert entries(federation) == ["genesis", "plan", "reserve"]
    refused(federation, ReplayError, "current attempt", play.step)
    federation.play().finish()
    assert entries(federation) == ["genesis", "plan", "reserve", "release", "open"]


def test_a_round_that_crashed_before_its_release_is_drawn_again_to_the_bit(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn anew, a coordinator that makes rounds crash could ask again and again; without a seed, too."""
    assert federation.config.seed is None
    drawn: list[NoisedSum] = []
    keep = RunFolder.keep_sum

    def crash_once(self: RunFolder, request: str, noised: NoisedSum) -> str:
        drawn.append(noised)
        if len(drawn) == 1:
            raise RuntimeError("no space left")
        return keep(self, request, noised)

    monkeypatch.setattr(RunFolder, "keep_sum", crash_once)
    first = federation.play()
    first.to(SumRequest)
    with pytest.raises(RuntimeError):
        first.step()
    secret = federation.folder / "runs" / "run" / "secret"
    assert secret.stat().st_mode & 0o077 == 0
    federation.play().finish()
    np.testing.assert_array_equal(drawn[0].values, drawn[1].values)
    assert not secret.exists()


@pytest.mark.parametrize("how", ["gone", "changed", "of another request"])
def test_a_released_sum_that_is_not_there_any_more_is_not_drawn_again(federation: Federation, how: str) -> None:
    order = federation.order()
    drawn = federation.play(order).finish()
    folder = RunFolder(federation.folder / "runs" / "run")
    if how == "gone":
        (federation.folder / "runs" / "run" / "sum").unlink()
    elif how == "changed":
        folder.keep_sum(order.request, NoisedSum(drawn + 1))
    else:
        folder.keep_sum("0" * 64, NoisedSum(drawn))
    play = federation.play()
    play.to(SumRequest)
    refused(federation, LedgerError, "Expected the noised sum of round 1", play.step)


def test_another_request_for_a_round_that_was_drawn_is_refused(federation: Federation) -> None:
    federation.play().finish()
    refused(federation, ReplayError, "Expected the same request", keys(federation, federation.order(model_digest="a")))


def test_a_round_is_opened_for_one_set_of_survivors_in_all_attempts(federation: Federation) -> None:
    federation.play(delivering=PEERS[:2]).finish()
    for delivering in (PEERS, PEERS[1:]):
        play = federation.play(delivering=delivering)
        asked = play.to(ConsentRequest)
        refused(federation, UnmaskError, "Expected the same survivors", play.step)
        # The session is over.
        refused(federation, ReplayError, "current attempt", federation.ask(asked))
        opening = OpenRequest(play.attempt, Consents(()))
        refused(federation, ReplayError, "current attempt", federation.ask(opening))
    assert len(federation.play(delivering=PEERS[:2]).finish()) == ITEMS


# --- budgets and receipts -------------------------------------------------------------------------


def test_a_second_run_starts_from_what_the_first_has_spent(federation: Federation) -> None:
    federation.play().finish()
    told = r"Expected epsilon <= 5\.169\d+ left of the budget of 12, the plan asks for 6\.830\d+"
    refused(federation, BudgetExhaustedError, told, keys(federation, federation.order(run_id="second")))
    small = federation.order(1, "train", run_id="second", config=changed(CONFIG, NO_PRIOR))
    keys(federation, small)()  # epsilon 1.87


def test_a_budget_that_another_run_spends_in_between_is_spent(federation: Federation) -> None:
    plays = [federation.play(federation.order(run_id=run_id)) for run_id in ("one", "two")]
    for play in plays:
        play.to(SumRequest)
    plays[0].finish()
    refused(federation, BudgetExhaustedError, "left of the budget of 12", plays[1].step)


def receipt(federation: Federation, answer: object) -> Receipt:
    assert isinstance(answer, Contribution)
    return sign_receipt(federation.server, NAME, answer.head)


def test_a_ledger_that_was_rolled_back_is_found_out_by_the_receipt(federation: Federation) -> None:
    earlier = federation.ledger_file.read_bytes()
    play = federation.play()
    play.finish()
    shown = receipt(federation, play.answers[2])
    federation.play(receipt=shown).finish()  # nothing is wrong with the ledger yet
    assert entries(federation)[-1] == "receipt"
    federation.ledger_file.write_bytes(earlier)
    again = federation.play(federation.order(run_id="again"), receipt=shown)
    again.to(SharesRequest)  # without the receipt it looks like a new one
    refused(federation, LedgerError, "rolled back or forked", again.step)


def test_a_bare_round_shows_the_receipt_too(tmp_path: Path) -> None:
    federation = Federation.of(tmp_path, config=changed(CONFIG, LOCAL))
    earlier = federation.ledger_file.read_bytes()
    shown = receipt(federation, federation.agent().answer(federation.bare(federation.order())))
    federation.ledger_file.write_bytes(earlier)
    ask = federation.bare(federation.order(run_id="again"), receipt=shown)
    refused(federation, LedgerError, "rolled back or forked", federation.ask(ask))


def test_a_receipt_that_another_signed_is_refused(federation: Federation) -> None:
    head = federation.agent().ledger.head()
    play = federation.play(receipt=sign_receipt(SigningKey.generate(), NAME, head))
    play.to(SharesRequest)
    refused(federation, InvalidSignatureError, "pinned server key", play.step)
