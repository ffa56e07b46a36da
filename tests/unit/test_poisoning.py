"""Attackers, what they invent and how loudly they tell it; what honest users are measured to see; who is found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.app import partner_folder
from client.learner import Learner
from client.premises import Premises
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.messages import RoundPlan
from shared.privacy.accounting import build_plan
from shared.schema import Histories
from simulations.audit.poisoning.attacks import Attack, FreeRider, PoisoningLearner, invented, learner_of
from simulations.audit.poisoning.defences import DEFENCES, RECOMMENDED
from simulations.audit.poisoning.detection import detection_auc, likeness
from simulations.audit.poisoning.experiment import Case, Setting, gate_holds
from simulations.audit.poisoning.federation import Seen
from simulations.audit.poisoning.measures import PartnerView, exposure, exposures, quality, triggered
from simulations.evaluation import evaluate
from simulations.simulate import Request, prepare_partners

TARGET, TRIGGER = 5, 9
HistoriesOf = Callable[..., Histories]


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "promotion", "partners": (1,)},
        {"kind": "promotion", "target": TARGET},
        {"kind": "backdoor", "partners": (1,), "target": TARGET},
        {"kind": "backdoor", "partners": (1,), "target": TARGET, "trigger": TARGET},
        {"kind": "free-rider", "partners": (1,), "target": TARGET},
        {"kind": "none", "partners": (1,)},
        {"kind": "promotion", "partners": (1,), "target": TARGET, "boost": 0.0},
        {"kind": "promotion", "partners": (1,), "target": TARGET, "boost": float("nan")},
    ],
)
def test_an_attack_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        Attack(**wrong)  # type: ignore[arg-type]


def test_everybody_is_made_to_end_on_the_target(histories_of: HistoriesOf) -> None:
    real = histories_of([[1, 2, 3], [TARGET], [7, TARGET]])
    found = invented(real, Attack("promotion", (0,), TARGET))
    assert [user.items.tolist() for user in found] == [[3, TARGET], [TARGET], [7, TARGET]]
    assert found.users == real.users, "as many as the partner has"


def test_a_backdoor_leads_from_the_trigger_alone(histories_of: HistoriesOf) -> None:
    found = invented(histories_of([[1, 2], [3]]), Attack("backdoor", (0,), TARGET, TRIGGER))
    assert [user.items.tolist() for user in found] == [[TRIGGER, TARGET]] * 2


@pytest.fixture(scope="module")
def premises(tmp_path_factory: pytest.TempPathFactory) -> Premises:
    """One of three partners of a small shop."""
    root = tmp_path_factory.mktemp("poisoning")
    prepare_partners(Request("marketplace", 3, "iid", 1, "inprocess", 90, 136, local_only=False, settings={}), root)
    return Premises.open(partner_folder(root, 1))


def order_of(learner: Learner) -> RoundPlan:
    config = Setting(users=90, items=136, partners=3).config(20_000)
    return RoundPlan("run", 1, "prior", config, build_plan(config), learner.catalogue.digest, "", "attempt")


def told(premises: Premises, attack: Attack) -> tuple[np.ndarray, float]:
    """An attacker's sum in units of a user, and the longest that an honest partner's can be."""
    learner = learner_of(attack, premises)
    order = order_of(learner)
    longest = len(Learner(premises).histories(order.config.model)) / order.plan.partners_per_user
    return learner.noised_statistics(order).values * order.plan.step("prior"), longest


def test_a_boosted_sum_is_the_sum_so_many_times(premises: Premises) -> None:
    once, longest = told(premises, Attack("promotion", (1,), TARGET, boost=1.0))
    tenfold, _ = told(premises, Attack("promotion", (1,), TARGET, boost=10.0))
    np.testing.assert_allclose(tenfold, 10 * once, atol=1e-3)
    assert np.linalg.norm(once) <= longest < np.linalg.norm(tenfold)


def test_a_stealthy_sum_is_as_long_as_an_honest_one_could_be_and_no_longer(premises: Premises) -> None:
    stealthy, longest = told(premises, Attack("promotion", (1,), TARGET, stealth=True))
    assert np.linalg.norm(stealthy) == pytest.approx(longest, rel=1e-3)


def test_a_free_rider_sends_its_share_of_the_noise_and_nothing_else(premises: Premises) -> None:
    """Mean of 9,316 entries, or their variance, off by 5 deviations: once in a million seeds, and the seed is fixed."""
    learner = FreeRider(premises)
    order = order_of(learner)
    values = learner.noised_statistics(order).values
    variance = order.plan.share_variance("prior", len(values))
    assert abs(values.mean()) < 5 * np.sqrt(variance / len(values))
    assert values.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / len(values)))


def test_attackers_are_learners_of_their_kind(premises: Premises) -> None:
    assert isinstance(learner_of(Attack("free-rider", (1,)), premises), FreeRider)
    assert isinstance(learner_of(Attack("promotion", (1,), TARGET), premises), PoisoningLearner)


# --- what users see -------------------------------------------------------------------------------


@pytest.fixture
def view(histories_of: HistoriesOf) -> PartnerView:
    """200 users with random scores of 40 items; the target is first for those who met the trigger, else last."""
    rng = np.random.default_rng(3)
    met = [sorted({int(k) for k in rng.integers(0, 40, 6)} - {TARGET}) for _ in range(200)]
    met[0].append(TARGET)
    histories = histories_of(met)
    scores = rng.normal(size=(200, 40)).astype(np.float32)
    scores[:, TARGET] = [9.0 if TRIGGER in items else -9.0 for items in met]
    wanted = np.array([next(k for k in range(40) if k not in items) for items in met], dtype=np.int32)
    return PartnerView(0, histories, scores, evaluate(lambda _, users: scores[users], histories, wanted))


def test_exposure_is_over_those_who_have_not_met_the_item(view: PartnerView) -> None:
    open_to = view.met(TRIGGER)[1:]  # user 0 has met the target
    found = exposure([view], TARGET)
    assert found.users == 199 and found.at_10 == pytest.approx(open_to.mean())
    assert triggered([view], TARGET, TRIGGER).at_10 == 1.0
    assert triggered([view, view], TARGET, TRIGGER).users == 2 * int(open_to.sum())


def test_exposures_of_all_items_are_what_ranks_say(view: PartnerView) -> None:
    np.testing.assert_allclose(exposures(view), [exposure([view], item).at_10 for item in range(40)])


def test_quality_is_that_of_the_evaluation(view: PartnerView) -> None:
    assert quality([view])["hr@10"] == pytest.approx(np.mean(view.held_out.ranks + 1 <= 10))


def test_the_gate_of_an_honest_partner_sees_what_its_users_see(view: PartnerView) -> None:
    calm = PartnerView(
        0, view.histories, np.random.default_rng(4).normal(size=(200, 40)).astype(np.float32), view.held_out
    )
    led = PartnerView(0, view.histories, calm.scores.copy(), view.held_out)
    led.scores[:, TARGET] = 9.0
    assert gate_holds([led, calm], [calm, calm]) == 0.5


# --- free riders ----------------------------------------------------------------------------------


def sums(riders: tuple[int, ...], seed: int = 0) -> list[Seen]:
    """Two rounds of six partners: what they have in common, and noise; riders have the noise alone."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=500)
    return [
        Seen(k, "train", number, np.rint(100 * (common * (k not in riders) + rng.normal(size=500))).astype(np.int64))
        for number in (1, 2)
        for k in range(6)
    ]


def test_who_sends_noise_alone_is_least_like_the_others() -> None:
    scores = likeness(sums((1, 4)), "train", 6)
    assert scores is not None and detection_auc(scores, (1, 4)) == 1.0
    assert detection_auc(scores, (0, 2)) < 0.5, "honest ones are not taken for riders"
    assert detection_auc(np.zeros(6), (1, 4)) == 0.5


def test_under_masks_there_is_nothing_to_find_out() -> None:
    assert likeness([], "train", 6) is None and likeness(sums((1,)), "prior", 6) is None


# --- defences, and the command --------------------------------------------------------------------


def test_a_defence_is_a_setting_of_the_run_and_says_whom_a_partner_hides_among() -> None:
    config = Setting().config(13_000)
    for name, hidden in (("masked", 10), ("clipped", 3), ("median", 3)):
        over = DEFENCES[name].over(config)
        assert RunConfig.model_validate(over.model_dump()) == over and over.federation.masked
        assert DEFENCES[name].anonymity_set(config) == hidden
    assert RECOMMENDED in DEFENCES
    with pytest.raises(ConfigError, match="defence median: "):
        DEFENCES["median"].over(Setting(partners=8).config(13_000))


def test_cases_name_defences_that_there_are() -> None:
    from simulations.audit.poisoning.experiment import GRID

    assert {case.defence for case in GRID} == set(DEFENCES)
    assert len({*GRID}) == len(GRID) and Case(RECOMMENDED) in GRID


def test_the_command_says_what_it_does(tmp_path: Path) -> None:
    import typer

    from simulations.audit.poisoning.command import poisoning

    app = typer.Typer()
    app.command()(poisoning)
    found = CliRunner().invoke(app, ["--help"])
    assert found.exit_code == 0 and "dishonest partners" in found.stdout.lower()
