"""From clipped sums to what may leave: the lattice, noise shares, masks, and bugs planted in each.

Seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import plans
import pytest
from numpy.typing import NDArray

from client import privatize
from client.privatize import NOISE_ROOM, add_noise_share, leave_bare, mask
from shared.errors import PolicyViolationError, ProtocolError, SensitivityError
from shared.hazmat.fixed_point import from_ring, room, to_ring
from shared.hazmat.randomness import Randomness, SeededRandomness, SystemRandomness
from shared.messages import ClippedSum, MaskedUpdate, NoisedSum
from shared.privacy.lattice import sensitivity
from shared.privacy.plan import PrivacyPlan, Stage
from shared.wire_answers import pack_answer
from simulations.benchmarks.secure_sum import Federation

PLAN = replace(plans.PLAN, sampling_rate=0.3, partners_per_user=1)
AddShare = Callable[[ClippedSum, PrivacyPlan, Stage, Randomness, str], NoisedSum]
D = 20_000


# --- noise


def zeros(d: int = D, clip_norm: float = 0.5) -> ClippedSum:
    return ClippedSum(np.zeros(d), clip_norm)


def shares(add: AddShare, plan: PrivacyPlan, stage: Stage, partners: int, at: str = "run/1") -> NDArray[np.int64]:
    """The noise of some partners, in lattice steps: zero is on the lattice, so that nothing is rounded."""
    clip = 1.0 if stage == "prior" else plan.clip_norm
    return np.array(
        [
            add(zeros(clip_norm=clip), plan, stage, SeededRandomness(4, f"partner-{k}"), at).values
            for k in range(partners)
        ]
    )


def billed(plan: PrivacyPlan, stage: Stage, d: int = D) -> float:
    """The noise of a sum in steps: z times what one user moves it, rounding included."""
    return plan.multiplier(stage) * sensitivity(plan.scale(stage), d, plan.partners_per_user)


def check_total_noise(add: AddShare, stage: Stage, plan: PrivacyPlan = PLAN) -> None:
    """The shares of any ``survivors - colluders`` partners sum to the billed deviation, +- 5 / sqrt(2 d).

    Each of the 3 + 1 comparisons fails with p < 6e-7 for correct code.
    """
    noise = shares(add, plan, stage, 4)
    for honest in ([0, 1, 2], [1, 2, 3], [0, 2, 3]):
        assert abs(noise[honest].sum(axis=0).std() / billed(plan, stage) - 1) < 5 / math.sqrt(2 * D)
    everyone = billed(plan, stage) * math.sqrt(4 / 3)
    assert abs(noise.sum(axis=0).std() / everyone - 1) < 5 / math.sqrt(2 * D)


def check_shares_are_fresh(add: AddShare) -> None:
    """No correlation across partners, rounds and stages: 66 pairs at 5.5 standard errors, p < 3e-6."""
    rows = [shares(add, PLAN, "train", 4, at) for at in ("run/1", "run/2")]
    rows.append(shares(add, PLAN, "prior", 4, "run/0"))
    correlations = np.corrcoef(np.concatenate(rows)) - np.eye(12)
    assert np.abs(correlations).max() < 5.5 / math.sqrt(D)


@pytest.mark.parametrize("stage", ["prior", "train"])
@pytest.mark.parametrize("population", [1000, 10**9], ids=["fine lattice", "coarse lattice"])
def test_the_shares_of_the_honest_partners_sum_to_the_noise_of_the_plan(stage: Stage, population: int) -> None:
    plan = replace(PLAN, population=population)
    check_total_noise(add_noise_share, stage, plan)
    clip = 1.0 if stage == "prior" else plan.clip_norm
    assert billed(plan, stage) * plan.step(stage) > plan.multiplier(stage) * clip  # never below z C


def test_on_a_coarse_lattice_the_noise_covers_what_rounding_adds() -> None:
    """With three steps a clip norm, rounding 20,000 coordinates moves a sum further than a user does."""
    coarse = replace(PLAN, population=10**9)
    assert coarse.scale("train") < 8
    assert billed(coarse, "train") * coarse.step("train") > 10 * coarse.noise_multiplier * coarse.clip_norm


def test_shares_are_fresh_for_every_partner_round_and_stage() -> None:
    check_shares_are_fresh(add_noise_share)


def test_shares_of_the_system_source_are_never_the_same() -> None:
    first, second = (add_noise_share(zeros(50), PLAN, "train", SystemRandomness(), "one context") for _ in range(2))
    assert not np.array_equal(first.values, second.values)


def silent_partner(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    """A planted bug: one partner sends its sum as it is, and says that it added noise."""
    noised = add_noise_share(clipped, plan, stage, source, context)
    silent = source.read(8, "") == SeededRandomness(4, "partner-2").read(8, "")
    return replace(noised, values=np.zeros_like(noised.values)) if silent else noised


def share_of_all_partners(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    """A planted bug: colluders are not provided for."""
    return add_noise_share(clipped, replace(plan, colluders=0), stage, source, context)


def share_of_those_asked(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    """A planted bug: noise for all who were asked, of whom one may drop out."""
    return add_noise_share(clipped, replace(plan, survivors=plan.partners), stage, source, context)


def same_every_round(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    return add_noise_share(clipped, plan, stage, source, "fixed")


def same_for_all(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    return add_noise_share(clipped, plan, stage, SeededRandomness(4, "everyone"), context)


@pytest.mark.parametrize("broken", [silent_partner, share_of_all_partners, share_of_those_asked, same_for_all])
def test_a_planted_loss_of_noise_is_caught(broken: AddShare) -> None:
    with pytest.raises(AssertionError):
        check_total_noise(broken, "train")


@pytest.mark.parametrize("broken", [same_every_round, same_for_all])
def test_a_planted_reuse_of_noise_is_caught(broken: AddShare) -> None:
    with pytest.raises(AssertionError):
        check_shares_are_fresh(broken)


def test_noise_that_the_source_code_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privatize, "skellam", lambda source, context, n, variance: np.zeros(n, dtype=np.int64))
    with pytest.raises(AssertionError):
        check_total_noise(add_noise_share, "train")


def test_noise_that_forgets_the_reach_of_rounding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivacyPlan, "share_variance", lambda plan, stage, size: plan.scale(stage) ** 2 * 4 / 3)
    with pytest.raises(AssertionError):
        check_total_noise(add_noise_share, "train", replace(PLAN, population=10**9))


def test_the_noise_does_not_depend_on_the_data() -> None:
    rng = np.random.default_rng(0)
    users = rng.normal(size=(11, D)) * 0.5 / math.sqrt(D)
    source = SeededRandomness(4, "p")
    noise = add_noise_share(zeros(), PLAN, "train", source, "c").values
    for n in (10, 11):
        total = users[:n].sum(axis=0)
        noised = add_noise_share(ClippedSum(total, 0.5), PLAN, "train", source, "c")
        assert np.abs(noised.values - noise - total / PLAN.step("train")).max() < 1  # the same noise; one rounding


def test_a_user_moves_the_lattice_by_no_more_than_the_sensitivity_says() -> None:
    """The same dither for both sums, as an adversary would have it; 200 pairs, each fails with p <= 1e-12."""
    plan, rng = replace(PLAN, mode="none", noise_multiplier=0.0, population=10**9), np.random.default_rng(1)
    for trial in range(200):
        user = rng.normal(size=400) * (rng.random(400) < 0.05 + 0.95 * rng.random())  # few coordinates, or all
        user *= plan.clip_norm / np.linalg.norm(user)
        others, source = rng.normal(size=400), SeededRandomness(trial, "p")
        with_user, without = (
            add_noise_share(ClippedSum(total, 0.5), plan, "train", source, "c").values
            for total in (others + user, others)
        )
        assert np.linalg.norm(with_user - without) <= sensitivity(plan.scale("train"), 400, 1)


def test_an_empty_sample_is_noise_alone() -> None:
    noise = add_noise_share(zeros(), PLAN, "train", SeededRandomness(4, "p"), "c").values
    share = math.sqrt(PLAN.share_variance("train", D))
    assert abs(noise.std() / share - 1) < 5 / math.sqrt(2 * D)  # p < 6e-7


# --- the lattice and the ring


@pytest.mark.parametrize("clip_norm", [1e-4, 0.5, 300.0])
def test_values_are_whole_steps_of_a_lattice_that_no_data_touch(clip_norm: float) -> None:
    """Without noise: within one step of the sum, whatever the unit; the step is public, and small beside C."""
    plan = replace(PLAN, clip_norm=clip_norm, mode="none", noise_multiplier=0.0)
    total = np.random.default_rng(0).normal(size=1000) * clip_norm
    noised = add_noise_share(ClippedSum(total, clip_norm), plan, "train", SeededRandomness(1, "p"), "c")
    assert noised.values.dtype == np.int64
    assert np.abs(noised.values * plan.step("train") - total).max() < plan.step("train")
    assert plan.step("train") < clip_norm / 1000


@pytest.mark.parametrize("partners", [1, 3, 5, 50])
def test_a_sum_that_does_not_fit_is_cut_off_before_the_noise_and_none_of_the_noise_is_lost(partners: int) -> None:
    plan = replace(PLAN, partners=partners, survivors=partners, colluders=0, masked=partners > 2)
    huge = ClippedSum(np.array([1e30, -1e30, 0.0]), 0.5)
    source = SeededRandomness(1, "p")
    noised = add_noise_share(huge, plan, "train", source, "c").values
    noise = add_noise_share(zeros(3), plan, "train", source, "c").values
    half = room(partners) // 2
    np.testing.assert_array_equal(noised - noise, [half, -half, 0])
    np.testing.assert_array_equal(from_ring(to_ring(noised, partners)), noised)
    assert partners * np.abs(noised).max() < 2**31


def test_noise_that_does_not_fit_in_the_ring_is_refused() -> None:
    """It would wrap around, or be cut off and be less than was billed."""
    most = room(PLAN.partners) / 2 / NOISE_ROOM  # standard deviations of a share
    fits = most / sensitivity(PLAN.scale("train"), 4, 1) * math.sqrt(3)
    add_noise_share(zeros(4), replace(PLAN, noise_multiplier=0.999 * fits), "train", SystemRandomness(), "c")
    with pytest.raises(PolicyViolationError, match="Expected noise that fits in the ring"):
        add_noise_share(zeros(4), replace(PLAN, noise_multiplier=1.001 * fits), "train", SystemRandomness(), "c")


# --- masks


def opened(rings: dict[str, NDArray[np.int64]], plan: PrivacyPlan) -> tuple[NDArray[np.int64], dict[str, MaskedUpdate]]:
    """The sum of noised sums under the real masks of all partners, and what each of them sent."""
    federation = Federation.of(len(rings), plan.survivors)
    sessions = federation.sessions(bytes(32))
    server = federation.coordinator(bytes(32), len(next(iter(rings.values()))))
    roster = server.roster([session.offer() for session in sessions.values()])
    inboxes = server.inboxes([session.share(roster) for session in sessions.values()])
    sent = {}
    for (name, session), noised in zip(sessions.items(), rings.values(), strict=True):
        session.receive(inboxes[name])
        sent[name] = mask(NoisedSum(noised, loss=None), plan, session)
    survivors = server.survivors({name: update.values for name, update in sent.items()})
    consents = server.consents([session.consent(survivors) for session in sessions.values()])
    return server.open([sessions[name].open(consents) for name in server.live]), sent


def test_the_opened_total_is_the_sum_of_the_clipped_sums_to_one_step_a_partner() -> None:
    plan = replace(PLAN, mode="none", noise_multiplier=0.0)
    rng = np.random.default_rng(2)
    sums = {f"p{k}": rng.normal(size=500) * 3 for k in range(5)}
    noised = {
        name: add_noise_share(ClippedSum(total, 0.5), plan, "train", SeededRandomness(1, name), "c").values
        for name, total in sums.items()
    }
    total, sent = opened(noised, plan)
    np.testing.assert_array_equal(total, sum(noised.values()))  # masks change nothing, to the last bit
    error = np.abs(total * plan.step("train") - np.sum(list(sums.values()), axis=0))
    assert error.max() < 5 * plan.step("train")
    assert all(update.masked for update in sent.values())


def test_what_leaves_under_masks_tells_nothing_of_the_sum() -> None:
    """Two sums that could not be less alike, both uniform in the ring once masked; each check fails with p < 1e-6."""
    low, high = np.zeros(D, dtype=np.int64), np.full(D, 10**8, dtype=np.int64)
    for noised in (low, high):
        _, sent = opened(dict.fromkeys("abcde", noised), PLAN)
        for update in sent.values():
            uniform = update.values * 2.0**-32
            assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * D)
            bins = np.bincount((update.values >> np.uint32(28)).astype(np.int64), minlength=16)
            assert ((bins - D / 16) ** 2 / (D / 16)).sum() < 62  # chi-square with 15 degrees of freedom, p < 1e-6


def test_a_plan_with_masks_lets_nothing_leave_without_them() -> None:
    noised = NoisedSum(np.arange(4))
    with pytest.raises(PolicyViolationError, match="masked=true"):
        leave_bare(noised, PLAN)
    bare = leave_bare(noised, replace(PLAN, masked=False))
    assert bare.values.dtype == np.uint32
    assert (bare.masked, from_ring(bare.values).tolist()) == (False, [0, 1, 2, 3])


@pytest.mark.parametrize("unsent", [zeros(3), NoisedSum(np.zeros(3, dtype=np.int64)), np.zeros(3), None])
def test_no_other_link_of_the_chain_can_be_sent(unsent: Any) -> None:
    with pytest.raises(ProtocolError, match="Expected an answer of one of the exchanges"):
        pack_answer(unsent)


# --- what is refused, and what never leaves


@pytest.mark.parametrize(
    ("stage", "clip_norm", "k"),
    [
        ("train", 0.5000001, 1),
        ("train", 0.5, 2),
        ("train", 0.0, 1),
        ("train", -0.5, 1),
        ("train", math.nan, 1),
        ("train", math.inf, 1),
        ("prior", 1.001, 1),
        ("prior", 1.0, 3),
    ],
)
@pytest.mark.parametrize("mode", ["distributed", "local", "none"])
def test_a_sum_clipped_to_another_norm_is_refused(stage: Stage, clip_norm: float, k: int, mode: Any) -> None:
    plan = replace(PLAN, partners_per_user=k, mode=mode)
    with pytest.raises(SensitivityError, match=f"Expected 0 < clip_norm <= .* for stage={stage}"):
        add_noise_share(zeros(4, clip_norm), plan, stage, SystemRandomness(), "c")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_noise_cannot_hide_is_refused(value: float) -> None:
    with pytest.raises(SensitivityError, match="Expected finite values"):
        add_noise_share(ClippedSum(np.array([0.0, value]), 0.5), PLAN, "train", SystemRandomness(), "c")


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_a_sum_clipped_as_the_plan_says_is_accepted(k: int) -> None:
    plan = replace(PLAN, partners_per_user=k)
    add_noise_share(zeros(4, plan.partner_clip_norm), plan, "train", SystemRandomness(), "c")
    add_noise_share(zeros(4, 1.0 / k), plan, "prior", SystemRandomness(), "c")


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_the_loss_stays_where_it_was_measured(mode: Any) -> None:
    clipped = ClippedSum(np.zeros(4), 0.5, private_loss=3.25)
    noised = add_noise_share(clipped, replace(PLAN, mode=mode), "train", SystemRandomness(), "c")
    assert noised.loss is None
    assert "3.25" not in repr(clipped)


def test_without_privacy_the_sum_has_no_noise_and_its_loss_says_so() -> None:
    plan = replace(PLAN, mode="none", noise_multiplier=0.0)
    noised = add_noise_share(ClippedSum(np.array([1.0, 2.0]), 0.5, 3.25), plan, "train", SystemRandomness(), "c")
    assert (noised.values * plan.step("train")).tolist() == [1.0, 2.0]  # both are on the lattice
    assert noised.loss == 3.25
