"""Rung 0: the installed mechanism passes, a planted bug fails it, and so does a run whose records were changed.

That every check fails on a bug that is planted for it is shown by ``tests/mutations``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from client import app, learner, privatize
from server import strategy
from shared.config import ModelConfig, RunConfig
from shared.errors import ConfigError, LedgerError
from shared.messages import ClippedSum, NoisedSum
from shared.model.behaviour import BehaviourStage
from shared.privacy import accounting
from shared.privacy.accounting import build_plan
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import RungResult, Verdict
from simulations.audit.mechanism.checks import REFERENCE, Check, Finding, Setting, near, none_of, run_check
from simulations.audit.mechanism.registry import SUBJECTS, all_checks, named
from simulations.audit.mechanism.rehearsal import GivenLearner, config_like
from simulations.audit.rungs.mechanism import NAME, mechanism_rung, planted

BARE = replace(REFERENCE, mode="none", noise_multiplier=0.0, prior_noise_multiplier=0.0, colluders=0)
MUTATIONS = Path(__file__).parents[1] / "mutations"


@pytest.fixture
def tiny(tiny_model: ModelConfig) -> RunConfig:
    return RunConfig(model=tiny_model)


def failing(result: RungResult) -> list[str]:
    return [one.name for one in result.measurements if not one.holds]


# --- the rung


@pytest.mark.soak
def test_the_installed_mechanism_passes_under_a_plan_that_it_was_not_written_for(tiny: RunConfig) -> None:
    """Right code fails once in 5,000 runs: the false alarms of all statistics add up to less than 2e-4."""
    plan = replace(REFERENCE, partners=7, survivors=5, colluders=2, population=9000, sampling_rate=0.15, clip_norm=0.2)
    result = mechanism_rung(plan, tiny, None, seed=3)
    assert (result.name, result.verdict, failing(result)) == (NAME, Verdict.PASS, [])
    assert result.power == 1.0 and result.epsilon_lower_bound is None
    assert 0 < result.facts["false_alarm"] < 2e-4
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert RungResult.from_json(told).measurements == result.measurements
    assert {each["name"] for each in told["facts"]["checks"]} == {each.name for each in all_checks()}


@pytest.mark.slow
def test_a_plan_without_noise_fails_in_the_one_number_that_says_so(tiny: RunConfig) -> None:
    """The code is looked at all the same, under the reference plan."""
    without = [one for one in all_checks() if not one.name.startswith("refusals.")]
    result = mechanism_rung(BARE, tiny, None, seed=0, checks=without)
    assert result.verdict is Verdict.FAIL
    assert failing(result) == ["[noise.there] noise multiplier of the audited plan"]


def test_a_plan_without_noise_is_no_pass(tiny: RunConfig) -> None:
    result = mechanism_rung(BARE, tiny, None, seed=0, checks=[named("noise.there"), named("noise.deviation")])
    assert result.verdict is Verdict.FAIL and "noise multiplier" in result.why
    assert len(failing(result)) == 1 < len(result.measurements)


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("lost", [2.0, 4.0])
def test_noise_that_is_lost_fails_the_rung(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, mode: Any, lost: float
) -> None:
    skellam = privatize.skellam
    monkeypatch.setattr(privatize, "skellam", lambda source, at, n, variance: skellam(source, at, n, variance / lost))
    plan = replace(REFERENCE, mode=mode, colluders=0)
    checks = [named(f"noise.{name}") for name in ("deviation", "empty", "fresh", "steps")]
    result = mechanism_rung(plan, tiny, None, seed=0, checks=checks)
    assert result.verdict is Verdict.FAIL
    found = {name.partition("]")[0] for name in failing(result)}
    assert found == {"[noise.deviation", "[noise.empty"}  # it is fresh, and there is too little of it


def test_the_plan_that_is_audited_is_the_one_whose_noise_is_looked_at(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that shows under that plan alone."""
    share = PrivacyPlan.share_variance

    def small_for_many(plan: PrivacyPlan, stage: Any, size: int) -> float:
        return share(plan, stage, size) / (4 if plan.partners > 20 else 1)

    monkeypatch.setattr(PrivacyPlan, "share_variance", small_for_many)
    checks = [named("noise.deviation")]
    assert mechanism_rung(REFERENCE, tiny, None, 0, checks=checks).verdict is Verdict.PASS
    many = replace(REFERENCE, partners=40, survivors=30)
    assert mechanism_rung(many, tiny, None, 0, checks=checks).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "plan",
    [
        replace(REFERENCE, partners=1, survivors=1, colluders=0, masked=False),
        replace(REFERENCE, partners=2, survivors=2, colluders=0, masked=False, mode="local", local_steps=3),
        replace(REFERENCE, partners=100, survivors=70, colluders=10, population=10**6),
        replace(REFERENCE, partners=9, survivors=3, colluders=0, buckets=3),
        replace(REFERENCE, canaries=4, sampling_rate=1.0),
    ],
    ids=["one partner", "local", "a hundred", "buckets", "canaries"],
)
def test_a_federation_can_be_rehearsed_for_every_plan(plan: PrivacyPlan) -> None:
    setting = Setting(plan, RunConfig(), 0, Path())
    config = config_like(setting.noisy, seed=0)
    played = build_plan(config)
    for name in ("mode", "sampling_rate", "population", "clip_norm", "noise_multiplier", "partners_per_user"):
        assert getattr(played, name) == getattr(plan, name)
    assert played.partners <= 10 and played.local_steps == plan.local_steps
    assert played.colluders * plan.partners <= plan.colluders * played.partners + plan.partners


# --- checks


def test_a_base_model_that_is_not_here_is_no_finding() -> None:
    config = RunConfig(model=ModelConfig(base="somebody/else"))
    with pytest.raises(ConfigError, match="somebody/else"):
        mechanism_rung(REFERENCE, config, None, 0, checks=[named("gradients.one_row")])


def test_checks_have_names_of_their_own_and_say_what_they_catch() -> None:
    checks = all_checks()
    assert len({one.name for one in checks}) == len(checks) >= 50
    assert {one.name.partition(".")[0] for one in checks} == set(SUBJECTS)
    assert all(len(one.catches) > 10 for one in checks)
    assert all(named(one.name) is one for one in checks)
    for unknown in ("noise.none", "none.noise", "noise", ""):
        with pytest.raises(ConfigError, match="Expected a check of the mechanism"):
            named(unknown)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(REFERENCE, RunConfig(), 0, tmp_path)


def test_a_mechanism_that_refuses_what_is_in_order_is_a_finding_and_a_broken_program_is_none(setting: Setting) -> None:
    def ended_by(error: Exception) -> Check:
        def look(_: Setting) -> Iterator[Finding]:
            yield none_of("bugs", 0, "a bug")
            raise error

        return Check("x.y", "a refusal", look)

    outcome = run_check(ended_by(LedgerError("no")), setting)
    assert not outcome.holds
    assert [one.name for one in outcome.broken] == ["x.y: what is in order is done, errors (LedgerError)"]
    for error in (AttributeError(), KeyError(), AssertionError()):
        with pytest.raises(type(error)):
            run_check(ended_by(error), setting)


def test_a_check_that_finds_nothing_holds_nothing(setting: Setting) -> None:
    assert not run_check(Check("x.y", "nothing", lambda _: iter(())), setting).holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_hold_and_can_be_told(value: float) -> None:
    told = near("x", value, 0.0, 1.0, "a bug").measurement
    assert not told.holds and told.value == pytest.approx(np.finfo(float).max)


def test_the_false_alarm_of_a_statistic_is_that_of_five_standard_errors() -> None:
    finding = near("x", 1.0, 1.0, 0.1, "a bug", comparisons=3)
    assert finding.measurement.expected == "1 ± 0.5"
    assert finding.false_alarm == pytest.approx(3 * 5.733e-7, rel=1e-3)
    assert not near("x", 1.501, 1.0, 0.1, "a bug").measurement.holds


# --- planted bugs


def test_the_table_of_planted_bugs_is_that_of_the_mutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails: ``python tests/mutations/mutations.py`` writes it anew."""
    monkeypatch.syspath_prepend(str(MUTATIONS))
    import mutations

    assert mutations.PLANTED.read_text(encoding="utf-8") == mutations.table()
    assert [row["bug"] for row in planted()] == [mutation.name for mutation in mutations.MUTATIONS]


def test_every_planted_bug_has_a_check_that_exists_and_most_checks_have_a_bug() -> None:
    rows = planted()
    assert len(rows) >= 77 and all(row["rung"] and row["check"] for row in rows)
    used = {named(row["check"]).name for row in rows if row["rung"] == NAME}
    assert len(used) >= 35


Plant = Callable[[pytest.MonkeyPatch], None]


def more_noise_where_users_are(patch: pytest.MonkeyPatch) -> None:
    add = learner.add_noise_share

    def added(clipped: ClippedSum, plan: PrivacyPlan, *rest: Any) -> NoisedSum:
        noised = add(clipped, plan, *rest)
        more = 1000 if clipped.values.any() and plan.mode != "none" else 0
        return replace(noised, values=noised.values + more)

    patch.setattr(learner, "add_noise_share", added)


def even_noise(patch: pytest.MonkeyPatch) -> None:
    skellam = privatize.skellam
    patch.setattr(privatize, "skellam", lambda *given: 2 * (skellam(*given) // 2))


def centred_scores(patch: pytest.MonkeyPatch) -> None:
    score = BehaviourStage.score

    def centred(self: BehaviourStage, hidden: Any, catalogue: Any) -> Any:
        logits = score(self, hidden, catalogue)
        return logits - 0.1 * logits.mean(0, keepdim=True)

    patch.setattr(BehaviourStage, "score", centred)


def half_an_epsilon(patch: pytest.MonkeyPatch) -> None:
    spent = accounting._spent
    patch.setattr(accounting, "_spent", lambda world, delta: spent(world, delta) / 2)


def less_noise(patch: pytest.MonkeyPatch) -> None:
    share = PrivacyPlan.share_variance
    patch.setattr(PrivacyPlan, "share_variance", lambda plan, stage, size: share(plan, stage, size) * 3 / 4)


def a_failed_round_given_back(patch: pytest.MonkeyPatch) -> None:
    draw = GivenLearner.noised_gradients

    def given_back(self: GivenLearner, order: Any, *rest: Any, **named: Any) -> NoisedSum:
        if order.round in self.fail_in:
            ledger = self.premises.ledger_file
            ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(True)[:-1]))
        return draw(self, order, *rest, **named)

    patch.setattr(GivenLearner, "noised_gradients", given_back)


def a_step_that_is_not_of_sums_alone(patch: pytest.MonkeyPatch) -> None:
    apply = strategy.apply_mean_gradient
    patch.setattr(strategy, "apply_mean_gradient", lambda state, g, config: apply(state, 1.01 * g, config))


def a_metric_that_grows(patch: pytest.MonkeyPatch) -> None:
    pack, answers = app.pack_answer, list[int]()

    def packed(answer: Any) -> RecordDict:
        answers.append(1)
        content = pack(answer)
        content["metrics"] = MetricRecord({"u" * len(answers): 1})
        return content

    patch.setattr(app, "pack_answer", packed)


PLANTED: dict[str, tuple[str, Plant]] = {
    "noise.apart": ("noise that hangs on the data", more_noise_where_users_are),
    "lattice.whole": ("noise without its lowest bit", even_noise),
    "gradients.coupling": ("users that are coupled", centred_scores),
    "accountant.exact": ("half of epsilon told", half_an_epsilon),
    "accountant.audited": ("half of epsilon told", half_an_epsilon),
    "rounds.killed": ("noise for four instead of three", less_noise),
    "buckets.opened": ("noise for four instead of three", less_noise),
    "rounds.failed": ("a failed round that is given back", a_failed_round_given_back),
    "rounds.stateless": ("a step that is not of opened sums alone", a_step_that_is_not_of_sums_alone),
    "wire.listed": ("a metric that is sent", a_metric_that_grows),
    "wire.sizes": ("a size that tells something", a_metric_that_grows),
}
"""Of the checks that no mutation names: bugs of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_check_that_no_mutation_names_finds_a_bug_too(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    setting = Setting(REFERENCE, tiny, 1, tmp_path)
    assert run_check(named(name), setting).holds
    PLANTED[name][1](monkeypatch)
    assert not run_check(named(name), setting).holds


def test_every_check_was_seen_to_fail() -> None:
    """By a mutation, by a bug above, by a record that was changed, or (the kit's attacks) in ``tests/evil_server``."""
    seen = {row["check"] for row in planted()} | set(PLANTED) | {"noise.there"}
    rest = {one.name for one in all_checks()} - seen
    assert all(name.startswith(("records.", "refusals.")) for name in rest), rest
