"""Epsilon: published values, one composition over the whole run, calibration, and failing closed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from accounting_setting import DELTA, VECTORS, Published, config_of, mixture, plan_of, spent
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import FederationConfig, PriorConfig, RunConfig
from shared.errors import AccountingError
from shared.privacy import accounting
from shared.privacy.accounting import build_plan, epsilon_rows, epsilon_spent
from shared.privacy.plan import PrivacyPlan

ROWS = [pytest.param(row, id=f"q={row['q']} T={row['T']} z={row['z']}") for row in VECTORS["rows"]]
SECTION_3 = ROWS[:5]


# --- published figures


@pytest.mark.parametrize("row", ROWS)
def test_a_plan_spends_the_published_epsilon(row: dict[str, Any]) -> None:
    assert spent(plan_of(row["q"], row["T"], row["z"])) == row["pld"].about()


@pytest.mark.parametrize("row", ROWS)
def test_the_cross_check_is_the_published_rdp_or_a_little_above(row: dict[str, Any]) -> None:
    # Fewer orders than the publisher used can only give a larger bound; far out they give up to a fifth more.
    rdp = accounting._rdp(((row["q"], row["z"], row["T"]),), DELTA)
    slack = row["rdp"].half_a_step + 1e-3 * row["rdp"]
    assert row["rdp"] - 2 * slack <= rdp <= row["rdp"] * (1.2 if row["rdp"] > 50 else 1.03) + slack


@pytest.mark.parametrize("row", SECTION_3)
def test_exchanging_a_user_costs_the_published_replace_one_epsilon(row: dict[str, Any]) -> None:
    world = accounting._worlds(plan_of(row["q"], row["T"], row["z"]), row["T"])[0]
    assert accounting._replaced(world, DELTA) == row["pld_replace_one"].about()


@pytest.mark.parametrize("row", SECTION_3)
def test_without_amplification_the_published_rdp_is_found(row: dict[str, Any]) -> None:
    rdp = accounting._rdp(((1.0, row["z"], row["T"]),), DELTA)
    assert rdp == Published(str(row["rdp_no_amplification"])).about()


def test_full_participation_is_the_exact_gaussian_mechanism() -> None:
    told = VECTORS["full_participation"]
    assert spent(plan_of(told["q"], told["T"], told["z"])) == told["exact"].about()


@pytest.mark.parametrize("k", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_partners_that_sample_together_and_do_not_share_the_clip_norm_cost_what_was_published(k: int) -> None:
    told = VECTORS["shared_users"]
    assert spent(plan_of(told["q"], told["T"], told["z"] / k)) == told["correlated"][str(k)].about()


@pytest.mark.parametrize("k", [1, 10, 50])
def test_sampling_events_instead_of_users_would_cost_what_was_published(k: int) -> None:
    told = VECTORS["group_sizes"]
    published = Published(str(told["pld"][str(k)]))
    assert mixture(k, told["q"], told["T"], told["z"], 1.0, 1e-3 if k == 1 else 1e-2) == published.about()
    if k == 1:
        assert spent(plan_of(told["q"], told["T"], told["z"])) == published.about()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_user_at_several_partners_is_covered_however_they_sample(k: int) -> None:
    told = VECTORS["shared_users"]
    q, times, z = told["q"], told["T"], told["z"]
    plan = replace(plan_of(q, times, z), partners_per_user=k)
    reported = spent(plan)
    assert mixture(k, q, times, z, 1.0) == told["independent"][str(k)].about()
    assert mixture(k, q, times, z, plan.partner_clip_norm / plan.clip_norm) <= reported
    assert spent(replace(plan, partners_per_user=1)) <= reported  # all k partners toss one coin


def test_lost_shares_and_colluders_cost_what_was_published_and_planned_shares_do_not() -> None:
    told = VECTORS["noise_shares"]
    federation = FederationConfig(partners=10, quorum=7)
    training = {"rounds": told["T"], "sampling_rate": told["q"]}
    plan = build_plan(
        config_of(
            told["target"],
            DELTA,
            training=training,
            privacy={"colluders": 2},
            federation=federation,
            prior=PriorConfig(kind="none"),
        )
    )
    naive = replace(plan, survivors=10, colluders=0)

    def epsilon(shares_of: PrivacyPlan, honest: int) -> float:
        variance = honest * shares_of.share_variance("train", 300_000)
        whole = plan.share_variance("train", 300_000) * (plan.survivors - plan.colluders)
        return spent(replace(plan, noise_multiplier=plan.noise_multiplier * math.sqrt(variance / whole)))

    assert epsilon(naive, 7) == told["naive_three_dropped"].about()
    assert epsilon(naive, 5) == told["naive_three_dropped_two_collude"].about()
    assert epsilon(plan, 7 - 2) == told["worst_case"].about()
    assert epsilon(plan, 10) == told["all_stay"].about()


# --- one composition


def test_one_accountant_over_all_rounds_reports_a_quarter_of_the_sum_of_the_rounds() -> None:
    told = VECTORS["composition"]
    whole = spent(plan_of(told["q"], 500, told["z"]))
    summed = 10 * spent(plan_of(told["q"], 50, told["z"], delta=1e-6))
    assert whole == pytest.approx(told["one_accountant"], abs=0.02)  # published with PRV: 0.01 above PLD
    assert summed == pytest.approx(told["summed"], abs=0.2)


def test_a_round_of_several_local_steps_counts_every_step() -> None:
    plan = replace(plan_of(0.05, 20, 1.0), mode="local", local_steps=10)
    assert spent(plan) == spent(plan_of(0.05, 200, 1.0))
    assert spent(plan, 7) == spent(plan_of(0.05, 70, 1.0))


def test_the_prior_and_the_rounds_compose_above_each_and_below_their_sum() -> None:
    both, prior, rounds = plan_of(0.1, 20, 1.5, prior=2.0), plan_of(0.1, 0, 1.5, prior=2.0), plan_of(0.1, 20, 1.5)
    assert max(spent(prior), spent(rounds)) + 0.05 < spent(both) < spent(prior) + spent(rounds)
    assert spent(both, 0) == spent(prior)


def test_a_run_that_releases_nothing_spends_nothing() -> None:
    assert spent(plan_of(0.1, 0, 1.0)) == 0.0


def test_the_prior_alone_is_one_gaussian_mechanism() -> None:
    # Balle and Wang (ICML 2018), theorem 8: the exact delta of N(0, z^2) at sensitivity 1.
    from scipy.stats import norm

    z = 1.889
    epsilon = spent(plan_of(0.1, 0, 1.0, prior=z))
    exact = norm.cdf(0.5 / z - epsilon * z) - math.exp(epsilon) * norm.cdf(-0.5 / z - epsilon * z)
    assert 0.99e-5 < exact <= 1e-5


def test_the_larger_of_the_two_worlds_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the two is made the larger in turn.
    plan = replace(plan_of(0.1, 10, 1.0), partners_per_user=4)
    for larger in (10, 40):
        monkeypatch.setattr(accounting, "_spent", lambda world, _, n=larger: 2.0 if world[0].times == n else 1.0)
        assert epsilon_spent(plan, 10) == 2.0


def test_without_privacy_there_is_no_epsilon() -> None:
    plan = build_plan(config_of(1.0, 1e-5, privacy={"mode": "none"}))
    assert plan.noise_multiplier == 0.0 and plan.prior_noise_multiplier == 0.0
    assert epsilon_spent(plan, plan.rounds) is None


# --- calibration


@pytest.mark.parametrize(
    ("epsilon", "delta", "k", "training"),
    [
        (3.0, 1e-6, 1, {"rounds": 20}),
        (8.0, 1e-5, 2, {"rounds": 10}),
        (1.0, 1e-5, 1, {"rounds": 10, "sampling_rate": 1.0}),
        (2.0, 1e-6, 1, {"rounds": 0}),
    ],
)
def test_calibration_hits_the_target_and_never_exceeds_it(
    epsilon: float, delta: float, k: int, training: dict[str, Any]
) -> None:
    plan = build_plan(config_of(epsilon, delta, training=training, privacy={"partners_per_user": k}))
    assert epsilon * 0.995 <= spent(plan) <= epsilon


def test_calibration_without_a_prior_spends_all_on_the_rounds() -> None:
    plan = build_plan(config_of(3.0, 1e-5, prior=PriorConfig(kind="none")))
    assert plan.prior_noise_multiplier is None
    assert 3.0 * 0.995 <= spent(plan) <= 3.0


def test_the_prior_spends_at_most_its_share() -> None:
    plan = build_plan(config_of(4.0, 1e-5, prior=PriorConfig(epsilon_share=0.5)))
    assert 2.0 * 0.99 <= spent(plan, 0) <= 2.0
    assert 4.0 * 0.995 <= spent(plan) <= 4.0


def test_a_fixed_noise_multiplier_is_kept() -> None:
    plan = build_plan(config_of(4.0, 1e-5, privacy={"noise_multiplier": 3.5}))
    assert plan.noise_multiplier == 3.5


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(AccountingError, match=r"Expected prior\.epsilon_share"):
        build_plan(config_of(3.0, 1e-5, prior=PriorConfig(epsilon_share=0.0)))


def test_the_plan_follows_from_the_public_configuration_alone() -> None:
    config = config_of(3.0, 1e-5, federation=FederationConfig(partners=7, quorum=5), privacy={"colluders": 2})
    plan = build_plan(config)
    assert plan == build_plan(RunConfig.model_validate_json(config.model_dump_json()))
    assert (plan.survivors, plan.colluders, plan.max_events) == (5, 2, config.model.max_history)
    assert (plan.unit, plan.adjacency, plan.accountant) == ("user", "add-or-remove", "pld")


def test_a_plan_is_built_once_for_a_configuration() -> None:
    # Every agent builds it in every round, to compare it with the server's.
    config = config_of(3.0, 1e-5)
    assert build_plan(config) is build_plan(RunConfig.model_validate_json(config.model_dump_json()))


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("masked", [True, False])
def test_masks_and_who_adds_the_noise_change_no_epsilon(mode: Any, masked: bool) -> None:
    plan = plan_of(0.1, 10, 1.5, prior=2.0)
    assert spent(replace(plan, mode=mode, masked=masked)) == spent(plan)


# --- rows


def test_every_row_names_its_unit_and_its_adjacency_and_only_the_headline_is_the_headline() -> None:
    plan = plan_of(0.05, 20, 1.5, prior=2.0)
    rows = {row.name: row for row in epsilon_rows(plan)}
    assert rows["headline"].epsilon == spent(plan) and rows["prior alone"].epsilon == spent(plan, 0)
    assert all(row.delta == plan.delta and row.note for row in rows.values())
    assert {row.adjacency for row in rows.values()} == {"add-or-remove", "replace-one"}
    assert [name for name, row in rows.items() if row.unit == "event"] == ["one event"]
    assert rows["one event"].epsilon == rows["replace-one"].epsilon
    headline = rows["headline"].epsilon
    assert rows["prior alone"].epsilon < headline
    for name in ("replace-one", "RDP, Gaussian", "RDP, Skellam", "no amplification"):
        assert rows[name].epsilon > headline
    assert rows["no amplification"].epsilon > rows["RDP, Skellam"].epsilon


def test_rows_of_a_plan_without_prior_or_without_privacy() -> None:
    assert "prior alone" not in {row.name for row in epsilon_rows(plan_of(0.05, 5, 1.5))}
    assert epsilon_rows(replace(plan_of(0.05, 5, 1.5), mode="none")) == ()


def test_without_sampling_the_rows_with_and_without_amplification_are_one() -> None:
    rows = {row.name: row.epsilon for row in epsilon_rows(plan_of(1.0, 5, 3.0))}
    assert rows["no amplification"] == rows["RDP, Skellam"] == pytest.approx(rows["RDP, Gaussian"], rel=0.02)


# --- failing closed


@pytest.mark.parametrize("broken", [1e9, math.inf, math.nan])
def test_a_broken_headline_accountant_is_noticed(monkeypatch: pytest.MonkeyPatch, broken: float) -> None:
    monkeypatch.setattr(accounting, "_pld", lambda *_: broken)
    with pytest.raises(AccountingError, match="Expected PLD <= RDP"):
        epsilon_spent(plan_of(0.1, 10, 1.0), 10)


@pytest.mark.parametrize(("check", "factor"), [("_rdp", 0.8), ("_skellam_rdp", 0.6)])
def test_a_cross_check_below_the_headline_is_noticed(
    monkeypatch: pytest.MonkeyPatch, check: str, factor: float
) -> None:
    true = getattr(accounting, check)
    monkeypatch.setattr(accounting, check, lambda events, delta: factor * true(events, delta))
    with pytest.raises(AccountingError, match="Expected PLD <= RDP"):
        epsilon_spent(plan_of(0.05, 200, 1.0), 200)


# --- monotony (Hypothesis; few examples and a coarse grid, an accountant takes a while)

few = settings(max_examples=6, deadline=None)
rates, noises = st.floats(0.01, 0.3), st.floats(1.2, 5.0)


@few
@given(q=rates, z=noises, rounds=st.integers(1, 30), more=st.integers(1, 30))
def test_more_rounds_never_spend_less(q: float, z: float, rounds: int, more: int) -> None:
    assert accounting._coarse(plan_of(q, rounds, z)) <= accounting._coarse(plan_of(q, rounds + more, z)) + 1e-6


@few
@given(q=rates, z=noises, factor=st.floats(1.05, 2.0))
def test_more_noise_and_rarer_sampling_never_spend_more(q: float, z: float, factor: float) -> None:
    # Up to the discretisation: 1e-3 a release, of which the pessimistic rounding keeps a part.
    here = accounting._coarse(plan_of(q, 10, z)) + 1e-2
    assert accounting._coarse(plan_of(q, 10, z * factor)) <= here
    assert accounting._coarse(plan_of(q / factor, 10, z)) <= here


@few
@given(q=rates, z=noises, rounds=st.integers(0, 20), prior=st.one_of(st.none(), noises), k=st.integers(1, 3))
def test_the_headline_is_below_both_cross_checks_on_every_plan(
    q: float, z: float, rounds: int, prior: float | None, k: int
) -> None:
    plan = replace(plan_of(q, rounds, z, prior=prior), partners_per_user=k)
    for world in accounting._worlds(plan, rounds):
        headline = accounting._spent(world, plan.delta)
        assert 0.0 <= headline <= accounting._quote(world, plan.delta, accounting._rdp) * 1.001 + 1e-4
        assert headline <= accounting._skellam(world, plan.delta) * 1.001 + 1e-4
