"""A partner's floor: what it lets a coordinator ask for, and the check of a round plan against it.

The limits are the partner's own (``partner.toml``, read by `client.premises`); a plan that arrives with a round
can only be refused by them, never change them. What several runs spend together is the ledger's to check.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.buckets import largest_bucket
from shared.config import DEFAULT_BASE
from shared.errors import PolicyViolationError, VeilrecError
from shared.hazmat.signing import Pin, PinnedKeys, VerifyKey, pin
from shared.messages import RoundPlan
from shared.privacy.plan import Mode, PrivacyPlan

UNLIMITED = sys.maxsize
SMALLEST_COHORT = 3
"""Of real data: in a sum of two each of them knows what the other added."""
DIGEST = re.compile(r"[0-9a-f]{64}")


def _key(value: object) -> VerifyKey:
    if not isinstance(value, str):
        raise ValueError("Expected base64 of an Ed25519 key")
    try:
        return VerifyKey.from_text(value)
    except VeilrecError as error:
        raise ValueError(str(error)) from None


def _pin(value: object) -> Pin:
    if isinstance(value, VerifyKey | PinnedKeys):
        return value
    if not isinstance(value, list):
        return _key(value)
    try:
        return pin(_key(each) for each in value)
    except VeilrecError as error:
        raise ValueError(str(error)) from None


PinnedKey = Annotated[Pin, BeforeValidator(_pin)]
"""A `Pin`, read from the text of a key, or from a list of two while a party changes its own."""
Limit = Annotated[int, Field(ge=0)]
# `strict` would refuse TOML's lists as tuples; what they hold is still read strictly.
Modes = Annotated[tuple[Mode, ...], Field(min_length=1, strict=False)]
RealModes = Annotated[tuple[Literal["distributed", "local"], ...], Field(min_length=1, strict=False)]
Bases = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class Policy(BaseModel):
    """What a partner allows. The defaults allow everything: they are those of simulated data.

    Attributes
    ----------
    max_epsilon : float
        Over all runs on the partner's data, at user level; the plan of one run must fit in it too.
    max_delta : float
    min_cohort : int
        The least partners in a sum whose shares of noise add up (mode ``distributed``): with buckets, in each of them.
    min_colluders : int
        The least partners against whom the noise must hold although they know their own shares of it (mode
        ``distributed``). Every partner knows its own share, so that 0 bounds only what outsiders learn.
    min_partners_per_user : int
        The least number of partners at which the plan must take one person to be known.
    max_buckets : int
        The most sums that a round may be split into. Epsilon is the same, but a partner's own total hides among
        fewer others, and other ones in every round. Real data: 1, unless it says otherwise.
    modes : tuple of {"distributed", "local", "none"}
    max_rounds : int
        Training rounds of a run.
    bases : tuple of str or None
        Names of base models, or SHA-256 of their weights. None allows all.
    max_lora_rank, max_adapted_layers, max_item_rank, max_head_rank : int
        The largest adapter.
    max_events, max_history, max_microbatch : int
        The most that is computed at once: a round that runs out of memory tells something about the data.
    allow_audit_canaries : bool
        Whether a plan may have the partner add audit canaries to its sums.
    server_key : Pin or None
        The coordinator's, pinned; two keys while it changes its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    max_epsilon: Annotated[float, Field(gt=0)] = math.inf
    max_delta: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_cohort: Annotated[int, Field(ge=1)] = 1
    min_colluders: Limit = 0
    min_partners_per_user: Annotated[int, Field(ge=1)] = 1
    max_buckets: Annotated[int, Field(ge=1)] = UNLIMITED
    modes: Modes = ("distributed", "local", "none")
    max_rounds: Limit = UNLIMITED
    bases: Bases | None = None
    max_lora_rank: Limit = UNLIMITED
    max_adapted_layers: Limit = UNLIMITED
    max_item_rank: Limit = UNLIMITED
    max_head_rank: Limit = UNLIMITED
    max_events: Limit = UNLIMITED
    max_history: Limit = UNLIMITED
    max_microbatch: Limit = UNLIMITED
    allow_audit_canaries: bool = True
    server_key: PinnedKey | None = None


class RealPolicy(Policy):
    """The policy of real data: no mode ``none``, and what matters most has to be written down."""

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_delta: Annotated[float, Field(gt=0, lt=1)]
    min_cohort: Annotated[int, Field(ge=SMALLEST_COHORT)]
    max_buckets: Annotated[int, Field(ge=1)] = 1
    modes: RealModes = ("distributed", "local")
    max_rounds: Limit = 200
    bases: Bases = (DEFAULT_BASE,)
    max_lora_rank: Limit = 64
    max_adapted_layers: Limit = 6
    max_item_rank: Limit = 0
    max_head_rank: Limit = 64
    max_events: Limit = 200
    max_history: Limit = 5000
    max_microbatch: Limit = 512
    allow_audit_canaries: bool = False
    server_key: PinnedKey


@dataclass(frozen=True, slots=True)
class Facts:
    """What the partner itself knows, against which a plan is held.

    Attributes
    ----------
    simulated : bool
        From ``partner.toml``.
    peers : int
        Partners with pinned keys, itself included.
    epsilon : float or None
        Of the whole plan, by the partner's own accountant; None in mode ``none``.
    base_sha256 : str or None
        Of the plan's base model as it lies on the partner's disk; None where that is not known.
    """

    simulated: bool
    peers: int
    epsilon: float | None
    base_sha256: str | None = None


Rule = tuple[bool, str, object, str]
"""Whether it holds, the key, what was asked, what is allowed."""


def check(policy: Policy, facts: Facts, asked: RoundPlan) -> None:
    """Refuse a round plan that is below the floor; to be called before anything is spent.

    Two things are left to others: that the plan is the one that follows from its configuration
    (``build_plan``), and what earlier runs have spent (the ledger). The declared population is not limited:
    it divides sums that are noised already, and the noise covers whatever lattice follows from it.

    Raises
    ------
    PolicyViolationError
        Names the first key that is not allowed, what was asked and what is allowed.
    """
    for holds, key, value, allowed in (*_rules_of_real_data(facts, asked), *_rules(policy, facts, asked)):
        if not holds:
            raise PolicyViolationError(f"Expected {key} {allowed}, got {value!r}.")


def _rules_of_real_data(facts: Facts, asked: RoundPlan) -> list[Rule]:
    """What no policy can allow."""
    if facts.simulated:
        return []
    config, plan = asked.config, asked.plan
    return [
        (config.simulation is False, "simulation", config.simulation, "= False for real data"),
        (config.seed is None, "seed", config.seed, "= None for real data"),
        (plan.mode != "none", "privacy.mode", plan.mode, "other than none for real data"),
        (plan.masked or plan.mode != "distributed", "masked", plan.masked, "= True for real data in mode distributed"),
    ]


def _rules(policy: Policy, facts: Facts, asked: RoundPlan) -> list[Rule]:
    """What the policy limits, and what holds for every plan."""
    plan, model = asked.plan, asked.config.model
    shared = plan.mode == "distributed"
    prior_rounds = 0 if plan.prior_noise_multiplier is None else 1
    return [
        _among("privacy.mode", plan.mode, policy.modes),
        _most("epsilon", math.inf if facts.epsilon is None else facts.epsilon, policy.max_epsilon),
        _most("delta", plan.delta, policy.max_delta),
        _least("survivors", plan.survivors, policy.min_cohort if shared else 1),
        # Of all whom a sum may meet, not of those that the plan names: else it could be opened in several cohorts.
        _least("survivors", plan.survivors, (_meets(facts, plan) + plan.colluders) // 2 + 1 if plan.masked else 1),
        _most("buckets", plan.buckets, policy.max_buckets),
        # All who are pinned are dealt out: with another number the largest bucket would not be the plan's.
        _least("partners", plan.partners, 1 if plan.buckets == 1 else facts.peers),
        _least("colluders", plan.colluders, policy.min_colluders if shared else 0),
        _least("partners_per_user", plan.partners_per_user, policy.min_partners_per_user),
        _most("partners", plan.partners, UNLIMITED if facts.simulated and not facts.peers else facts.peers),
        _most("rounds", plan.rounds, policy.max_rounds),
        # The accountant counts so many rounds: one more would be free.
        _least("round", asked.round, 1),
        _most("round", asked.round, prior_rounds + plan.rounds),
        _among("stage", asked.stage, ("prior",) if asked.round <= prior_rounds else ("train",)),
        _above_zero("sampling_rate", plan.sampling_rate),
        _most("sampling_rate", plan.sampling_rate, 1.0),
        _above_zero("clip_norm", plan.clip_norm),
        _base(model.base, facts.base_sha256, policy.bases),
        _most("model.lora_rank", model.lora_rank, policy.max_lora_rank),
        _most("model.adapted_layers", model.adapted_layers, policy.max_adapted_layers),
        _most("model.item_rank", model.item_rank, policy.max_item_rank),
        _most("model.head_rank", model.head_rank, policy.max_head_rank),
        _most("model.max_events", model.max_events, policy.max_events),
        _most("model.max_history", model.max_history, policy.max_history),
        _most("training.microbatch", asked.config.training.microbatch, policy.max_microbatch),
        _most("audit.canaries", plan.canaries, UNLIMITED if policy.allow_audit_canaries else 0),
    ]


def _meets(facts: Facts, plan: PrivacyPlan) -> int:
    """Partners with whom one sum of this partner may share a roster, in all attempts at a round together."""
    return largest_bucket(facts.peers, plan.buckets)


# Every comparison is one that not-a-number fails.


def _most(key: str, asked: float, limit: float) -> Rule:
    return asked <= limit, key, asked, f"<= {limit}"


def _least(key: str, asked: int, limit: int) -> Rule:
    return asked >= limit, key, asked, f">= {limit}"


def _above_zero(key: str, asked: float) -> Rule:
    return 0 < asked < math.inf, key, asked, "finite and > 0"


def _among(key: str, asked: str, allowed: tuple[str, ...]) -> Rule:
    return asked in allowed, key, asked, f"in [{', '.join(allowed)}]"


def _base(name: str, sha256: str | None, allowed: tuple[str, ...] | None) -> Rule:
    """By name or by digest; but a name that reads like an allowed digest is not that model."""
    named = [base for base in allowed or () if not DIGEST.fullmatch(base)]
    holds = allowed is None or name in named or sha256 in allowed
    return holds, "model.base", name, f"in [{', '.join(allowed or ())}]"
