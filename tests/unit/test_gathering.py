"""One round's sum, gathered: exact under masks, whoever drops out and whenever, or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gathering_setting import SECRET, STEPS, Federation, Given, How, configured, node, nothing, some_sum

from server.promise import PROMISE_FILE, Promise
from shared.errors import CheckpointError, CohortTooSmallError, ProtocolError
from shared.exchange import Consent
from shared.hazmat.fixed_point import to_ring
from shared.messages import MaskedUpdate
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import sensitivity
from shared.privacy.ledger import LedgerHead
from shared.requests import Contribution
from shared.wire_answers import pack_answer

BARE = {"secure_sum": False}


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Four partners of whom three must survive."""
    return Federation.of(tmp_path, monkeypatch)


# --- exact ----------------------------------------------------------------------------------------


def test_the_opened_total_is_the_sum_of_the_noised_sums_to_the_last_bit(federation: Federation) -> None:
    gathered = federation.attempt(1)
    np.testing.assert_array_equal(gathered.total, federation.noised(1))
    assert (gathered.partners, gathered.answered, gathered.losses) == (4, tuple(map(node, range(4))), ())
    assert federation.heard == [(k, step) for step in STEPS for k in range(4)]


def test_masks_change_no_bit_of_a_total(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = [federation.attempt(number).total for number in (1, 2)]
    bare = Federation.of(tmp_path / "bare", monkeypatch, configured(federation=BARE))
    for number, total in enumerate(masked, start=1):
        np.testing.assert_array_equal(bare.attempt(number).total, total)
    assert {step for _, step in bare.heard} == {"bare"}


@pytest.mark.parametrize("secure_sum", [True, False], ids=["masked", "bare"])
def test_without_noise_a_total_is_that_of_the_clipped_sums_to_one_step_a_partner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure_sum: bool
) -> None:
    config = configured(privacy={"mode": "none"}, federation={"secure_sum": secure_sum})
    federation = Federation.of(tmp_path, monkeypatch, config)
    gathered, step = federation.attempt(1), build_plan(config).step("train")
    exact = np.sum([some_sum(name, 1) for name in federation.partners], axis=0)
    assert np.abs(gathered.total * step - exact).max() < 4 * step


def test_what_a_partner_sends_is_hardly_more_than_its_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 20_000
    federation = Federation.of(tmp_path, monkeypatch, sum_of=lambda name, number: np.zeros(size))
    assert 4 * size < federation.attempt(1).bytes_up < 4.2 * size + 8 * 1024


# --- noise ----------------------------------------------------------------------------------------

WIDE, ROUNDS = 20_000, 4
TOLERANCE = 4 / math.sqrt(2 * WIDE * ROUNDS)
"""Four standard errors of a deviation: a comparison fails with p < 7e-5 for correct code."""


def noise_ratio(federation: Federation, lost: int | None, colluders: tuple[int, ...]) -> float:
    """Deviation of opened noise over that of the plan, once colluders subtracted what they know; over all rounds."""
    if lost is not None:
        federation.faults[lost, "sum"] = "silent"
    plan, square = build_plan(federation.config), 0.0
    for number in range(1, ROUNDS + 1):
        known = [federation.attempt(number).total]
        known += [-federation.drawn[f"partner-{k:03d}", number][0] for k in colluders]
        square += float((np.sum(known, axis=0).astype(np.float64) ** 2).mean()) / ROUNDS
    return math.sqrt(square) / (plan.noise_multiplier * sensitivity(plan.scale("train"), WIDE, 1))


@pytest.mark.parametrize(
    ("lost", "colluders", "shares"),
    [(4, (0,), 3), (4, (), 4), (None, (0,), 4), (None, (), 5)],
    ids=["as billed", "nobody colludes", "all survive", "all survive and nobody colludes"],
)
def test_the_noise_of_an_opened_total_is_what_the_plan_bills_and_never_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int | None, colluders: tuple[int, ...], shares: int
) -> None:
    """n = 5, t = 4, c = 1: t - c shares are left at worst, and make the billed noise."""
    config = configured(federation={"partners": 5, "quorum": 4}, privacy={"colluders": 1})
    federation = Federation.of(tmp_path, monkeypatch, config, lambda name, number: np.zeros(WIDE))
    ratio = noise_ratio(federation, lost, colluders)
    assert ratio / math.sqrt(shares / 3) == pytest.approx(1, abs=TOLERANCE)
    assert ratio > 1 - TOLERANCE


def test_one_colluder_more_than_the_plan_provides_for_is_seen_in_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(federation={"partners": 5, "quorum": 4}, privacy={"colluders": 1})
    federation = Federation.of(tmp_path, monkeypatch, config, lambda name, number: np.zeros(WIDE))
    assert noise_ratio(federation, 4, (0, 1)) < 0.9


def test_a_share_that_was_forgotten_is_seen_in_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: one partner draws no noise."""
    config = configured(federation={"partners": 5, "quorum": 4}, privacy={"colluders": 1})
    federation = Federation.of(tmp_path, monkeypatch, config, lambda name, number: np.zeros(WIDE))
    draw = Given.noised_gradients

    def forget(self: Given, *told: Any, **named: Any) -> Any:
        noised = draw(self, *told, **named)
        if self.premises.name == "partner-002":
            noised.values[:] = 0
        return noised

    monkeypatch.setattr(Given, "noised_gradients", forget)
    assert noise_ratio(federation, 4, (0,)) < 0.9


# --- partners that drop out -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "silent", "confused"])
@pytest.mark.parametrize("step", STEPS)
def test_a_round_does_without_a_partner_that_is_lost_at_any_exchange(
    federation: Federation, step: str, how: How
) -> None:
    federation.faults[2, step] = how
    federation.confusion = pack_answer(Consent("partner-002", b""))
    if step == "consent" and how == "confused":
        federation.confusion = pack_answer(Consent("partner-001", b""))  # in another's name
    gathered = federation.attempt(1)
    delivered = step in ("consent", "open")  # then its vector is in the sum
    np.testing.assert_array_equal(gathered.total, federation.noised(1, *(() if delivered else (2,))))
    assert gathered.partners == 3 + delivered
    assert (node(2) in gathered.answered) == delivered
    # It was lost for one round, not for good.
    federation.faults.clear()
    again = federation.attempt(2)
    np.testing.assert_array_equal(again.total, federation.noised(2))
    assert again.partners == 4


def test_a_partner_that_was_lost_has_paid_if_it_was_asked_for_its_sum_and_not_before(federation: Federation) -> None:
    paid = {}
    for number, step in enumerate(STEPS, start=1):
        federation.faults = {(2, step): "silent"}
        federation.attempt(number)
        run = federation.ledger(2)
        paid[step] = (run.reserved, run.released, run.opened) if run else (0, 0, 0)
    assert paid == {"keys": (0, 0, 0), "shares": (0, 0, 0), "sum": (1, 1, 0), "consent": (2, 2, 1), "open": (3, 3, 2)}
    whole = federation.ledger(0)
    assert whole is not None
    assert (whole.reserved, whole.released, whole.opened) == (5, 5, 5)


@pytest.mark.parametrize("how", ["raises", "silent"])
@pytest.mark.parametrize("step", [*STEPS, "bare"])
def test_below_the_quorum_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, how: How
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation={"secure_sum": step != "bare"}))
    federation.faults = {(k, step): how for k in (1, 3)}
    error, told = {
        "raises": (ProtocolError, "Expected answers >= 3, partners refused with VeilrecError."),
        "silent": (CohortTooSmallError, "Expected answers >= 3 in round 1, got 2."),
    }[how]
    with pytest.raises(error) as caught:
        federation.attempt(1)
    assert str(caught.value) == told
    assert SECRET not in repr((caught.value.__cause__, caught.value.__context__))


# --- a round that is asked again ------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_round_that_failed_and_is_asked_again_opens_the_same_sum_for_the_same_spend(
    federation: Federation, step: str
) -> None:
    federation.faults = {(k, step): "silent" for k in (1, 3)}
    with pytest.raises(CohortTooSmallError):
        federation.attempt(1)
    federation.faults.clear()
    gathered = federation.attempt(1)
    np.testing.assert_array_equal(gathered.total, federation.noised(1))
    for k in range(4):
        run, drawn = federation.ledger(k), federation.drawn[f"partner-{k:03d}", 1]
        assert run is not None
        assert (run.reserved, run.released, run.opened, len(drawn)) == (1, 1, 1, 1)


def test_a_round_that_was_consented_to_for_one_set_is_never_opened_for_another(federation: Federation) -> None:
    """The difference of the two sums would be one partner's own."""
    federation.faults = {(k, "open"): "silent" for k in (1, 3)}  # too late to go back: all have consented
    with pytest.raises(CohortTooSmallError):
        federation.attempt(1)
    federation.faults = {(2, "sum"): "silent"}
    with pytest.raises(CohortTooSmallError, match="Expected the survivors of the first attempt, 1 are missing"):
        federation.attempt(1)
    forgotten = federation.root / "checkpoints" / PROMISE_FILE
    kept = forgotten.read_bytes()
    forgotten.unlink()  # a coordinator that does not keep to it is refused
    with pytest.raises(ProtocolError, match="refused with UnmaskError"):
        federation.attempt(1)
    federation.faults.clear()
    forgotten.write_bytes(kept)
    assert federation.attempt(1).partners == 4


def test_whoever_was_too_late_for_the_first_opening_is_left_out_of_the_next_attempt(federation: Federation) -> None:
    """Else a round with a quorum could never end: those that consented once consent to nobody else."""
    federation.faults = {(2, "sum"): "silent", (1, "open"): "silent", (3, "open"): "silent"}
    with pytest.raises(CohortTooSmallError):
        federation.attempt(1)
    federation.faults.clear()
    gathered = federation.attempt(1)
    assert gathered.partners == 3
    np.testing.assert_array_equal(gathered.total, federation.noised(1, 2))
    assert federation.attempt(2).partners == 4  # the next round is bound to nobody


def test_a_promise_that_was_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / PROMISE_FILE).write_text('{"run_id": "r", "round": 1}')
    with pytest.raises(CheckpointError, match="Expected the survivors of a round"):
        Promise(tmp_path, "r", 1)


def test_a_round_goes_on_although_every_message_finds_a_new_process(federation: Federation) -> None:
    """As under Flower. The state of a round is on the partners' disks."""
    federation.forgetful = True
    for number in (1, 2):
        np.testing.assert_array_equal(federation.attempt(number).total, federation.noised(number))


# --- answers that do not fit ----------------------------------------------------------------------


def contribution(name: str, size: int) -> Contribution:
    values = to_ring(np.ones(size, dtype=np.int64), 4)
    return Contribution(name, MaskedUpdate(values, masked=True), LedgerHead(1, "0" * 64))


def test_a_masked_vector_of_another_size_is_done_without(federation: Federation) -> None:
    federation.faults[2, "sum"] = "confused"
    federation.confusion = pack_answer(contribution("partner-002", federation.size + 1))
    gathered = federation.attempt(1)
    assert gathered.partners == 3
    np.testing.assert_array_equal(gathered.total, federation.noised(1, 2))


def test_a_bare_vector_of_another_size_ends_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=BARE), nothing)
    federation.faults[2, "bare"] = "confused"
    federation.confusion = pack_answer(contribution("partner-002", federation.size + 1))
    with pytest.raises(ProtocolError, match=f"Expected updates of {federation.size} values"):
        federation.attempt(1)


def test_a_node_cannot_answer_for_another(federation: Federation) -> None:
    """Which node is which partner is learnt once, from a signed offer."""
    federation.attempt(1)
    federation.faults[2, "sum"] = "confused"
    federation.confusion = pack_answer(contribution("partner-001", federation.size))
    gathered = federation.attempt(2)
    np.testing.assert_array_equal(gathered.total, federation.noised(2, 2))
