"""Sums of buckets under masks, a coordinator that lies about them, and the noise of each.

Partners, agents, keys, ledgers and the coordinator's gathering are real; only what a partner learns from is given.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bucket_setting import NAMES, NINE, TEN, TWELVE, members, others, partner
from gathering_setting import Federation, configured, node, some_sum
from numpy.typing import NDArray

import server.gathering
from client.masking_rules import check_bucket
from server.combine import combined, described
from server.gathering import Gathered
from shared.buckets import LEAST_BUCKETS, assign, own_bucket
from shared.errors import (
    CohortTooSmallError,
    ConfigError,
    LedgerError,
    PolicyViolationError,
    ProtocolError,
    UnmaskError,
)
from shared.exchange import KeyOffer, Roster
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.lattice import sensitivity
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.plan import PrivacyPlan
from shared.requests import KeysRequest
from shared.wire import parse_plan

# --- sums under masks -----------------------------------------------------------------------------


def opened(federation: Federation, gathered: Gathered, number: int) -> None:
    """Check every bucket's sum, to the last bit, against the noised sums that its members drew."""
    dealt = members(federation, number)
    for bucket, told in zip(gathered.buckets, gathered.sums, strict=True):
        inside = [name for name in dealt[bucket.number] if name in told.survivors]
        assert tuple(inside) == told.survivors and bucket.partners == len(inside)
        assert {offer.name for offer in told.roster} <= set(dealt[bucket.number])
        exact = np.sum([federation.drawn[name, number][0] for name in inside], axis=0)
        np.testing.assert_array_equal(bucket.total, exact)
    np.testing.assert_array_equal(gathered.total, np.sum([b.total for b in gathered.buckets], axis=0))
    assert gathered.partners == sum(bucket.partners for bucket in gathered.buckets)


def test_each_bucket_opens_the_sum_of_its_own_members_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TEN))
    for number in (1, 2):
        gathered = federation.attempt(number)
        assert [bucket.number for bucket in gathered.buckets] == [0, 1, 2] and gathered.partners == 10
        opened(federation, gathered, number)
    assert [step for at, step in federation.heard if at == 0][:5] == ["keys", "shares", "sum", "consent", "open"]
    assert federation.heard[:10] == [(k, "keys") for k in range(10)]  # all buckets in the same exchange
    assert members(federation, 1) != members(federation, 2)
    for k in range(10):
        (run,) = read_ledger(federation.ledger_file(k)).runs
        assert (run.reserved, run.released, run.opened) == (2, 2, 2)
        assert run.epsilon == epsilon_spent(build_plan(federation.config), 6)


def test_without_buckets_there_is_one_sum_and_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = Federation.of(tmp_path, monkeypatch).attempt(1)
    assert gathered.buckets == () and len(gathered.sums) == 1


@pytest.mark.parametrize(
    "step", ["keys", "open", *(pytest.param(step, marks=pytest.mark.slow) for step in ("sum", "consent"))]
)
def test_a_bucket_that_falls_short_is_out_of_the_round_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TWELVE))
    lost = members(federation, 1)[1][0]
    federation.faults = {(partner(lost), step): "silent"}
    gathered = federation.attempt(1)
    assert [bucket.number for bucket in gathered.buckets] == [0, 2, 3]
    opened(federation, gathered, 1)
    np.testing.assert_array_equal(gathered.total, federation.noised(1, *others(federation, 1, (lost,))))
    federation.faults.clear()
    assert len(federation.attempt(2).buckets) == 4


def test_with_fewer_than_three_buckets_left_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TWELVE))
    first, second = (members(federation, 1)[number][0] for number in (0, 1))
    federation.faults = {(partner(name), "sum"): "silent" for name in (first, second)}
    with pytest.raises(CohortTooSmallError, match="Expected at least 3 partners before step=consents, got 2"):
        federation.attempt(1)
    assert not any(step in ("consent", "open") for _, step in federation.heard)
    assert LEAST_BUCKETS == 3


def test_a_bucket_that_was_consented_to_is_opened_for_these_survivors_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 partners in 4 buckets, one of four: it may lose one, and is bound to whoever was there first."""
    federation = Federation.of(tmp_path, monkeypatch, configured(federation={**TWELVE, "partners": 13}))
    dealt = members(federation, 1)
    (large,) = (number for number, bucket in enumerate(dealt) if len(bucket) == 4)
    away, back = (partner(name) for name in dealt[large][:2])
    elsewhere = [partner(dealt[number][0]) for number in range(4) if number != large][:2]
    federation.faults = {(away, "sum"): "silent", **{(k, "open"): "silent" for k in elsewhere}}
    with pytest.raises(CohortTooSmallError):
        federation.attempt(1)  # all four have consented; two of them cannot be opened
    federation.faults = {(back, "sum"): "silent"}
    gathered = federation.attempt(1)  # who was away is not let in instead: the others of the bucket would be bared
    assert [bucket.number for bucket in gathered.buckets] == [n for n in range(4) if n != large]
    federation.faults.clear()
    again = federation.attempt(1)
    assert [bucket.partners for bucket in again.buckets] == [3, 3, 3, 3]
    opened(federation, again, 1)
    assert {len(drawn) for drawn in federation.drawn.values()} == {1}


def test_a_round_with_buckets_goes_on_although_every_message_finds_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=NINE))
    federation.forgetful = True
    opened(federation, federation.attempt(1), 1)


def test_a_coordinator_that_registered_other_partners_than_it_plans_with_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TEN))
    federation.admission.identities.pop("partner-009")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"as many registered partners as federation\.partners=10"):
        federation.attempt(1)


# --- a coordinator that lies ----------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["two are exchanged", "another round's", "by name"])
def test_a_roster_with_somebody_of_another_bucket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=NINE))

    def lying(run_id: str, number: int, names: Any, buckets: int) -> tuple[tuple[str, ...], ...]:
        if lie == "another round's":
            return assign(run_id, number + 1, names, buckets)
        if lie == "by name":
            return tuple(tuple(sorted(names)[at::buckets]) for at in range(buckets))
        first, second, third = assign(run_id, number, names, buckets)
        return (second[0], *first[1:]), (first[0], *second[1:]), third

    monkeypatch.setattr(server.gathering, "assign", lying)
    with pytest.raises(ProtocolError, match=r"partners refused with UnmaskError\."):
        federation.attempt(1)
    assert not federation.drawn and not any(step == "sum" for _, step in federation.heard)


def ask(federation: Federation, order: RoundPlan, name: str = "partner-000") -> Any:
    signed = SignedPlan(order.text(), federation.admission.key.sign(ROUND_PLAN, order.text().encode()))
    return federation.partners[name].agent.answer(KeysRequest(signed))


@pytest.mark.parametrize("other", [{"buckets": 1, "survivors": 6}, {"survivors": 4, "partners": 12}], ids=str)
def test_a_plan_with_other_buckets_than_its_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TEN))
    order = federation.order(1)
    with pytest.raises(PolicyViolationError, match="follows from the configuration"):
        ask(federation, replace(order, plan=replace(order.plan, **other)))


def test_a_plan_for_fewer_partners_than_are_pinned_is_refused_with_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who are pinned are dealt out: the thresholds of the plan would be those of smaller buckets."""
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TEN))
    federation.config = configured(federation=NINE)
    with pytest.raises(PolicyViolationError, match="Expected partners >= 10, got 9"):
        ask(federation, federation.order(1))


def test_a_noised_sum_that_was_kept_meets_no_partners_that_were_pinned_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle in the middle of a round that replaces one partner deals all of them anew."""
    federation = Federation.of(tmp_path, monkeypatch, configured(federation=TEN))
    agent, order = federation.partners["partner-000"].agent, federation.order(1)
    agent._noised_sum(order, federation.model)
    agent._noised_sum(federation.order(1), federation.model)  # asked again: the same one
    dealt = own_bucket("run", 1, agent.premises.peers, 3, "partner-000")
    peers = dict(agent.premises.peers)
    for at in range(100):  # a newcomer whose name deals partner-000 to others
        renamed = {(f"new-{at}" if name == "partner-009" else name): pin for name, pin in peers.items()}
        if own_bucket("run", 1, renamed, 3, "partner-000") != dealt:
            break
    agent.premises = replace(agent.premises, peers=renamed)
    with pytest.raises(LedgerError, match="which was released, to be kept"):
        agent._noised_sum(federation.order(1), federation.model)
    assert len(federation.drawn["partner-000", 1]) == 1


def test_the_check_of_a_roster_names_how_many_are_foreign() -> None:
    roster = Roster(tuple(KeyOffer(name, b"", b"", b"") for name in NAMES[:4]))
    check_bucket(roster, NAMES[:5])
    with pytest.raises(UnmaskError, match="got 2 of another"):
        check_bucket(roster, NAMES[:2])


def test_a_plan_with_buckets_crosses_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Federation.of(tmp_path, monkeypatch, configured(federation=TEN)).order(1)
    assert parse_plan(order.text()) == order and order.plan.buckets == 3


# --- noise ----------------------------------------------------------------------------------------

WIDE, ROUNDS = 10_000, 2
TOLERANCE = 4.5 / math.sqrt(2 * WIDE * ROUNDS)
"""Four and a half standard errors of a deviation: eight comparisons fail with p < 6e-5 for correct code."""


def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Ten partners without users, in buckets of 3, 3 and 4; t = 3, c = 1."""
    config = configured(federation=TEN, privacy={"colluders": 1})
    return Federation.of(tmp_path, monkeypatch, config, lambda name, number: np.zeros(WIDE))


def ratio(federation: Federation, rounds: list[Gathered], members: int, colluders: int) -> float:
    """Deviation of the noise opened in buckets of so many, once colluders took theirs off, over that of the plan."""
    squares = []
    for number, gathered in enumerate(rounds, start=1):
        for bucket, told in zip(gathered.buckets, gathered.sums, strict=True):
            known = [federation.drawn[name, number][0] for name in told.survivors[:colluders]]
            left = (bucket.total - np.sum(known, axis=0, initial=0.0)).astype(np.float64)
            squares += [float((left**2).mean())] if bucket.partners == members else []
    plan = build_plan(federation.config)
    return math.sqrt(np.mean(squares)) / (plan.noise_multiplier * sensitivity(plan.scale("train"), WIDE, 1))


def test_every_bucket_alone_has_the_noise_that_the_plan_bills_and_never_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of variance 1 / (t - c) = 1 / 2, of which m are in a sum and m - c are left; at worst 2, as billed."""
    federation = silent(tmp_path, monkeypatch)
    rounds = [federation.attempt(number) for number in range(1, ROUNDS + 1)]
    for size in (3, 4):
        for colluders in (0, 1):
            found = ratio(federation, rounds, size, colluders)
            assert found / math.sqrt((size - colluders) / 2) == pytest.approx(1, abs=TOLERANCE)
            assert found > 1 - TOLERANCE
    # Nor does one bucket's noise tell of another's: three pairs below 4.5 / sqrt(d), p < 3e-5.
    rows = np.array([bucket.total for bucket in rounds[0].buckets])
    assert np.abs(np.corrcoef(rows) - np.eye(3)).max() < 4.5 / math.sqrt(WIDE)


def test_noise_that_was_calibrated_for_the_whole_is_seen_in_every_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: shares as if the survivors of all buckets were in one sum."""
    federation, share = silent(tmp_path, monkeypatch), PrivacyPlan.share_variance
    monkeypatch.setattr(PrivacyPlan, "share_variance", lambda *told: share(*told) / 3)
    gathered = federation.attempt(1)
    assert ratio(federation, [gathered], 3, 1) < 0.7 and ratio(federation, [gathered], 4, 1) < 0.8


def test_without_noise_the_buckets_add_up_to_the_clipped_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(privacy={"mode": "none"}, federation=TEN)
    federation = Federation.of(tmp_path, monkeypatch, config)
    gathered, step = federation.attempt(1), build_plan(config).step("train")
    exact = np.sum([some_sum(name, 1) for name in federation.partners], axis=0)
    assert np.abs(gathered.total * step - exact).max() < 10 * step
    assert gathered.answered == tuple(map(node, range(10)))


@pytest.mark.parametrize("boost", [1, 100])
def test_a_partner_that_poisons_its_sum_behind_masks_is_outvoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boost: float
) -> None:
    """One of nine pushes the other way; nobody sees its sum, and the median of the buckets is the honest direction."""
    honest = some_sum("everybody", 1) / 10  # about 0.8 long: what six or seven users at the clip norm 0.5 can do

    def poisoned(name: str, number: int) -> NDArray[np.float64]:
        return -boost * honest if name == "partner-004" else honest

    config = configured(privacy={"mode": "none"}, federation=NINE)
    federation, plan = Federation.of(tmp_path, monkeypatch, config, poisoned), build_plan(config)
    gathered = federation.attempt(1)
    total, _ = combined(gathered.buckets, plan, "train", "median")
    np.testing.assert_allclose(total, 9 * honest, atol=9 * 4 * plan.step("train"))
    plain, _ = combined(gathered.buckets, plan, "train", "sum")
    assert plain @ honest < 0.8 * (total @ honest)
    exact = gathered.total * plan.step("train")
    np.testing.assert_allclose(exact, (8 - boost) * honest, atol=9 * 4 * plan.step("train"))
    clipped = [line["clipped"] for line in described(gathered.buckets, plan, "train")]
    assert sorted(clipped) == [False, False, boost == 100]
