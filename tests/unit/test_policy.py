"""The partner's floor: one case a rule, at the limit and just below it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
from pydantic import ValidationError

from client import policy as policy_module
from client.policy import Facts, Policy, RealPolicy, check
from shared.config import DEFAULT_BASE, ModelConfig, RunConfig, TrainingConfig
from shared.errors import PolicyViolationError
from shared.hazmat.signing import SigningKey
from shared.messages import RoundPlan
from shared.privacy.plan import PrivacyPlan

DIGEST = "ab" * 32
SERVER = SigningKey.generate().public

FLOOR = RealPolicy(
    max_epsilon=8.0,
    max_delta=1e-5,
    min_cohort=3,
    min_colluders=1,
    max_rounds=10,
    bases=(DEFAULT_BASE, DIGEST),
    max_lora_rank=8,
    max_adapted_layers=2,
    max_item_rank=4,
    server_key=SERVER,
)
FACTS = Facts(simulated=False, peers=4, epsilon=8.0)
CONFIG = RunConfig.model_validate(
    {
        "simulation": False,
        "seed": None,
        "model": {"lora_rank": 8, "adapted_layers": 2, "item_rank": 4},
        "privacy": {"population": 1000},
    }
)
PLAN = PrivacyPlan(
    mode="distributed",
    delta=1e-5,
    sampling_rate=1.0,
    population=1000,
    clip_norm=0.5,
    noise_multiplier=2.0,
    prior_noise_multiplier=None,
    rounds=10,
    local_steps=1,
    partners=4,
    survivors=3,
    colluders=1,
    masked=True,
    partners_per_user=1,
    max_events=100,
)
"""At the floor in every respect."""
LOCAL = replace(PLAN, mode="local", masked=False, survivors=1, colluders=0, partners=4)
Values = dict[str, Any]


def forged(plan: PrivacyPlan, **values: Any) -> PrivacyPlan:
    """A plan that its own checks would not let through, as if it had been made otherwise."""
    other = copy.copy(plan)
    for key, value in values.items():
        object.__setattr__(other, key, value)
    return other


def asked(plan: PrivacyPlan = PLAN, config: RunConfig = CONFIG, number: int = 10, stage: str = "train") -> RoundPlan:
    """A round plan; what the policy does not read is left empty."""
    read: Values = {"config": config, "plan": plan, "round": number, "stage": stage}
    return RoundPlan(**{each.name: read.get(each.name, "") for each in fields(RoundPlan)})


@dataclass(frozen=True)
class Case:
    """One thing that differs from a plan that is just allowed."""

    key: str
    told: str
    plan: Values = field(default_factory=dict)
    model: Values = field(default_factory=dict)
    config: Values = field(default_factory=dict)
    facts: Values = field(default_factory=dict)
    round: int = 10
    stage: str = "train"
    policy: Policy = FLOOR

    def check(self) -> None:
        """Ask for it."""
        model = CONFIG.model.model_copy(update=self.model)
        config = CONFIG.model_copy(update={**self.config, "model": model})
        check(
            self.policy,
            replace(FACTS, **self.facts),
            asked(forged(PLAN, **self.plan), config, self.round, self.stage),
        )


PERMISSIVE = Policy()
BUCKETS: Values = {"partners": 10, "buckets": 3}
MANY = FLOOR.model_copy(update={"max_buckets": 3})
CASES = [
    # What no policy can allow for real data.
    Case("simulation", "got True", config={"simulation": True}, policy=PERMISSIVE),
    Case("seed", "got 0", config={"seed": 0}, policy=PERMISSIVE),
    Case("privacy.mode", "got 'none'", plan={"mode": "none"}, facts={"epsilon": None}, policy=PERMISSIVE),
    Case("masked", "got False", plan={"masked": False}),
    # The policy's limits.
    Case("privacy.mode", "in [local], got 'distributed'", policy=FLOOR.model_copy(update={"modes": ("local",)})),
    Case("epsilon", "<= 8.0, got 8.01", facts={"epsilon": 8.01}),
    Case("epsilon", "<= 8.0, got nan", facts={"epsilon": math.nan}),
    Case("epsilon", "<= 8.0, got inf", facts={"epsilon": None}),
    Case("delta", "<= 1e-05, got 2e-05", plan={"delta": 2e-5}),
    Case("survivors", ">= 4, got 3", policy=FLOOR.model_copy(update={"min_cohort": 4})),
    Case("colluders", ">= 1, got 0", plan={"colluders": 0}),
    Case("partners_per_user", ">= 2, got 1", policy=FLOOR.model_copy(update={"min_partners_per_user": 2})),
    Case("partners", "<= 4, got 5", plan={"partners": 5}),
    Case("partners", "<= 0, got 4", facts={"peers": 0}),
    Case("rounds", "<= 10, got 11", plan={"rounds": 11}),
    Case("round", ">= 1, got 0", round=0, stage="prior"),
    Case("round", "<= 10, got 11", round=11),
    Case("stage", "in [train], got 'prior'", stage="prior"),
    Case("stage", "in [train], got 'prior'", plan={"prior_noise_multiplier": 2.0}, round=2, stage="prior"),
    Case("stage", "in [prior], got 'train'", plan={"prior_noise_multiplier": 2.0}, round=1),
    Case("sampling_rate", "<= 1.0, got 1.01", plan={"sampling_rate": 1.01}),
    Case("sampling_rate", "finite and > 0, got 0.0", plan={"sampling_rate": 0.0}),
    Case("sampling_rate", "finite and > 0, got nan", plan={"sampling_rate": math.nan}),
    Case("clip_norm", "finite and > 0, got inf", plan={"clip_norm": math.inf}),
    Case("clip_norm", "finite and > 0, got nan", plan={"clip_norm": math.nan}),
    Case("clip_norm", "finite and > 0, got 0.0", plan={"clip_norm": 0.0}),
    Case("model.base", f"in [{DEFAULT_BASE}, {DIGEST}], got 'other'", model={"base": "other"}),
    Case("model.base", "got 'other'", model={"base": "other"}, facts={"base_sha256": "cd" * 32}),
    Case("model.base", f"got '{DIGEST}'", model={"base": DIGEST}),
    Case("model.lora_rank", "<= 8, got 9", model={"lora_rank": 9}),
    Case("model.adapted_layers", "<= 2, got 3", model={"adapted_layers": 3}),
    Case("model.item_rank", "<= 4, got 5", model={"item_rank": 5}),
    Case("model.head_rank", "<= 64, got 65", model={"head_rank": 65}),
    Case("model.max_events", "<= 200, got 201", model={"max_events": 201}),
    Case("model.max_history", "<= 5000, got 5001", model={"max_history": 5001}),
    Case("training.microbatch", "<= 512, got 513", config={"training": TrainingConfig(microbatch=513)}),
    Case("audit.canaries", "<= 0, got 1", plan={"canaries": 1}),
    # Three of seven pinned partners: one sum could be opened in two cohorts that share nobody else.
    Case("survivors", ">= 5, got 3", facts={"peers": 7}),
    # In buckets a sum meets the members of one bucket alone: three of them are enough, and no fewer.
    Case(
        "survivors", ">= 4, got 3", plan=BUCKETS, facts={"peers": 10}, policy=MANY.model_copy(update={"min_cohort": 4})
    ),
    Case("survivors", ">= 4, got 3", plan={**BUCKETS, "colluders": 3}, facts={"peers": 10}, policy=MANY),
    Case("survivors", ">= 4, got 3", plan={**BUCKETS, "partners": 15}, facts={"peers": 15}, policy=MANY),
    Case("buckets", "<= 1, got 3", plan=BUCKETS, facts={"peers": 10}),
    Case("partners", ">= 11, got 10", plan={**BUCKETS}, facts={"peers": 11}, policy=MANY),
]


def refused(case: Case) -> bool:
    try:
        case.check()
    except PolicyViolationError:
        return True
    return False


def test_a_plan_exactly_at_the_floor_is_allowed() -> None:
    check(FLOOR, FACTS, asked())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.key} {case.told}")
def test_what_is_below_the_floor_is_refused_by_name(case: Case) -> None:
    with pytest.raises(PolicyViolationError) as error:
        case.check()
    told = str(error.value)
    assert told.startswith(f"Expected {case.key} ") and told.removesuffix(".").endswith(case.told)


def test_every_rule_is_needed_and_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop one rule after the other: each time a case that must be refused slips through."""
    assert all(refused(case) for case in CASES)
    for name in ("_rules", "_rules_of_real_data"):
        whole = getattr(policy_module, name)
        given = (FACTS, asked()) if name == "_rules_of_real_data" else (FLOOR, FACTS, asked())
        for dropped in range(len(whole(*given))):

            def without(*arguments: Any, whole: Any = whole, dropped: int = dropped) -> Any:
                rules = whole(*arguments)
                return [*rules[:dropped], *rules[dropped + 1 :]]

            with monkeypatch.context() as patch:
                patch.setattr(policy_module, name, without)
                assert not all(refused(case) for case in CASES), f"no case needs rule {dropped} of {name}"


def test_every_limit_of_the_policy_has_a_case() -> None:
    # A signature, not a plan, answers to the key. Nothing is tighter than no canaries and one bucket; they have cases.
    limits = set(Policy.model_fields) - {"server_key", "allow_audit_canaries", "max_buckets"}
    tighter: Values = {"max_epsilon": 7.9, "max_delta": 9e-6, "min_cohort": 4, "min_colluders": 2, "modes": ("local",)}
    tighter |= {"max_rounds": 9, "bases": ("other",), "max_lora_rank": 7, "max_adapted_layers": 1, "max_item_rank": 3}
    tighter |= {
        "min_partners_per_user": 2,
        "max_head_rank": 15,
        "max_events": 49,
        "max_history": 999,
        "max_microbatch": 63,
    }
    assert limits == tighter.keys()
    for key, value in tighter.items():
        with pytest.raises(PolicyViolationError):
            check(FLOOR.model_copy(update={key: value}), FACTS, asked())


def test_a_base_model_may_be_allowed_by_the_digest_of_its_weights() -> None:
    Case("", "", model={"base": "some/path"}, facts={"base_sha256": DIGEST}).check()


def test_cohort_and_colluders_are_of_shares_of_noise_so_they_do_not_bind_local_noise() -> None:
    check(FLOOR, FACTS, asked(LOCAL))


def test_the_rounds_of_a_plan_with_a_prior_are_one_more() -> None:
    plan = replace(PLAN, prior_noise_multiplier=2.0)
    check(FLOOR, FACTS, asked(plan, number=1, stage="prior"))
    check(FLOOR, FACTS, asked(plan, number=11))
    with pytest.raises(PolicyViolationError, match="Expected round <= 11, got 12"):
        check(FLOOR, FACTS, asked(plan, number=12))


def test_simulated_data_with_nothing_written_allow_a_seed_and_no_privacy() -> None:
    simulated = Facts(simulated=True, peers=0, epsilon=None)
    plan = replace(PLAN, mode="none", masked=False, noise_multiplier=0.0, partners=50, survivors=1, rounds=100)
    config = RunConfig(model=ModelConfig(base="any", lora_rank=512, item_rank=64), seed=3)
    check(Policy(), simulated, asked(plan, config, number=100))


def test_simulated_data_are_held_to_what_is_written() -> None:
    simulated = replace(FACTS, simulated=True)
    with pytest.raises(PolicyViolationError, match="Expected epsilon <= 3"):
        check(Policy(max_epsilon=3.0), simulated, asked())
    with pytest.raises(PolicyViolationError, match="Expected partners <= 3"):
        check(Policy(), replace(simulated, peers=3), asked())


def test_the_policy_of_real_data_cannot_name_the_mode_none() -> None:
    with pytest.raises(ValidationError, match="modes"):
        RealPolicy.model_validate({**FLOOR.model_dump(), "server_key": SERVER, "modes": ("none",)})


def test_buckets_are_for_real_data_that_say_so_and_three_of_each_are_enough() -> None:
    assert RealPolicy.model_fields["max_buckets"].default == 1
    plan = replace(PLAN, **BUCKETS)
    check(MANY, replace(FACTS, peers=10), asked(plan))
    check(Policy(), replace(FACTS, peers=10, simulated=True), asked(plan))


def test_audit_canaries_are_added_to_real_data_only_where_the_partner_says_so() -> None:
    assert not RealPolicy.model_fields["allow_audit_canaries"].default
    check(FLOOR.model_copy(update={"allow_audit_canaries": True}), FACTS, asked(replace(PLAN, canaries=5)))


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        FLOOR.max_epsilon = 100.0
