"""The configuration of a run: one frozen typed tree, extra keys forbidden.

Everything here is public: it is sent to every partner with every round. Nothing may be set from a
partner's data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shared.buckets import LEAST_BUCKETS, largest_bucket, least_sums, smallest_bucket, why_not
from shared.errors import ConfigError
from shared.exchange import SMALLEST_COHORT

DEFAULT_BASE = "all-MiniLM-L6-v2"

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
LoraTarget = Literal[
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
ALL_LINEAR: tuple[LoraTarget, ...] = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


class _Tree(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Tree):
    """The recommender: which BERT, which part of it is trained, how scores are made.

    Attributes
    ----------
    base : str
        Name or path of a Hugging Face BERT; the default ships in a package and is pinned by SHA-256.
    adapted_layers : int
        The top layers that read behaviour and carry LoRA; the layers below read text and are frozen.
    lora_rank, lora_alpha, lora_targets
        As in PEFT's ``LoraConfig``.
    head_rank : int
        Rank of W - I in the score ``tau cos(W h, e)``.
    item_rank : int
        Width of the learned item-ID vectors; 0 leaves them out (under privacy they cost noise).
    max_events : int
        The events of a user that are read at once: the newest ones.
    max_history : int
        The events of a user that a partner keeps for training and statistics.
    rating_max : float
        The best rating of the scale that the partners use.
    max_tokens : int
        Word pieces of a text.
    temperature : float
        tau, at the start if it is learned by the head.
    """

    base: str = DEFAULT_BASE
    adapted_layers: Positive = 2
    lora_rank: Positive = 8
    lora_alpha: Positive = 16
    lora_targets: tuple[LoraTarget, ...] = ALL_LINEAR
    head_rank: Annotated[int, Field(ge=0)] = 16
    item_rank: Annotated[int, Field(ge=0)] = 0
    max_events: Positive = 50
    max_history: Positive = 1000
    rating_max: Annotated[float, Field(gt=0)] = 5.0
    max_tokens: Positive = 64
    temperature: Annotated[float, Field(gt=0, le=1000)] = 15.0


ITEM_RANK, MOST_LEARNED_ITEMS = 64, 20_000


def learned_item_rank(n_items: int) -> int:
    """`ModelConfig.item_rank` without noise; none for a large catalogue: every gradient holds all of its items."""
    return ITEM_RANK if n_items <= MOST_LEARNED_ITEMS else 0


class PriorConfig(_Tree):
    """The collaborative prior: closed forms of one private sum, before the first training round.

    Attributes
    ----------
    kind : str
        ``hybrid`` (EASE and, without noise, next-item ridge; where a federation's public size does not allow it,
        what `shared.model.prior.effective_kind` says), ``popularity`` alone or ``none``.
    max_items : int
        Catalogues above this size sum a sketch: the whole matrix grows with the square of the items.
    epsilon_share : float
        The part of epsilon that the sum may spend alone; the rounds get what is left.
    decay : float
        Weight of an event by its age in events, when ranking and in what is learned of next items: what happened last
        tells most of what comes next.
    history_decay : float
        The same of an item in a user's part of the co-occurrences.
    max_targets : int
        The newest events of a user that count as next items.
    ease_ridge, next_ridge : float
        Ridge weights without noise, in users.
    next_weight : float
        Weight of the next-item ridge beside EASE, both scaled to root mean square 1.
    weight, popularity_weight : float
        Weights of the calibrated item-to-item score and of popularity in the logits.
    training_share : float
        The part of what a history adds to the prior's logits that the model is trained on top of. 1 trains it to add
        to the prior; 0 trains it beside the prior, as a second opinion.
    """

    kind: Literal["hybrid", "popularity", "none"] = "hybrid"
    max_items: Positive = 3000
    epsilon_share: Share = 0.8
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    history_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_targets: Positive = 20
    ease_ridge: Annotated[float, Field(gt=0)] = 20.0
    next_ridge: Annotated[float, Field(gt=0)] = 20.0
    next_weight: Annotated[float, Field(ge=0)] = 1.0
    weight: float = 1.2
    popularity_weight: float = 0.9
    training_share: Annotated[float, Field(ge=0, le=1)] = 1.0


class TrainingConfig(_Tree):
    """Rounds and optimisers.

    Attributes
    ----------
    rounds : int
        Training rounds (the round of the prior's sum comes before them).
    sampling_rate : float
        q: the public probability with which a user takes part in a step (Poisson sampling).
    local_steps, local_learning_rate
        Steps of DP-SGD that a partner takes in a round; more than one only in ``local`` mode.
    server_optimizer : str
        ``adam`` or ``average`` (plain averaging of the partners' updates).
    microbatch : int
        Users whose gradients are held in memory at once. Has no effect on the result's meaning.
    precision : str
        ``auto`` computes in bfloat16 where a partner's hardware has it; with noise only where it was also
        tried out that a user's gradient has the same bits in every batch
        (`client.training.UserGradients.rows_stand_alone`).
    drop_events : float
        Chance with which an event of a history is left out of a training pass (regularisation).
    dropout : float
        Of hidden states in training. Its masks hang on a user's place in a batch: only without noise.
    average_from : float
        The released adapter is the mean of the iterates from this share of the rounds on
        (post-processing, free of privacy cost); 1 releases the last iterate.
    """

    rounds: Annotated[int, Field(ge=0)] = 60
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    local_steps: Positive = 1
    local_learning_rate: Annotated[float, Field(gt=0)] = 0.5
    server_optimizer: Literal["adam", "average"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    beta1: Share = 0.9
    beta2: Share = 0.99
    microbatch: Positive = 64
    precision: Literal["auto", "float32"] = "auto"
    drop_events: Share = 0.1
    dropout: Share = 0.0
    average_from: Annotated[float, Field(gt=0, le=1)] = 0.75


class PrivacyConfig(_Tree):
    """What is asked of the mechanism; `shared.privacy.plan` turns it into a plan with noise.

    Attributes
    ----------
    mode : str
        ``distributed``, ``local`` or ``none`` (only in simulations).
    epsilon, delta : float
        The target at user level, for all rounds together.
    clip_norm : float
        C, of one user's gradient.
    noise_multiplier : float, optional
        Fixes the noise of the training rounds instead of calibrating it to `epsilon`.
    population : int
        N0: the declared, never measured, number of users of the federation. 0 in a simulation means
        that the simulator declares it.
    partners_per_user : int
        The most partners that hold the same person; every partner clips to C divided by it.
    colluders : int
        Partners that may subtract their own noise from the sum.
    """

    mode: Literal["distributed", "local", "none"] = "distributed"
    epsilon: Annotated[float, Field(gt=0)] = 8.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.5
    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    population: Annotated[int, Field(ge=0)] = 0
    partners_per_user: Positive = 1
    colluders: Annotated[int, Field(ge=0)] = 0


class FederationConfig(_Tree):
    """Partners, quorum and time-outs.

    Attributes
    ----------
    partners : int
    quorum : int
        The answers that a sum needs: with buckets, that of each bucket. 0 means all partners, or as many as the
        smallest bucket has.
    timeout_s : float
    secure_sum : bool
        Mask every partner's sum, so that the coordinator sees the total alone. Needs three partners;
        in ``distributed`` mode real data never leave without it.
    buckets : int
        Sums that a round is split into (`shared.buckets`): 1, or at least three, of at least three partners each.
        Every bucket's sum is opened and has all of the plan's noise, so that the total has about that many times as
        much variance.
    combine : str
        What the coordinator makes of the buckets' sums: their plain ``sum``, or, coordinate by coordinate, their
        ``median`` or ``trimmed_mean``, which a minority of poisoned buckets moves little; or the ``screened`` sum,
        which leaves out what lies apart (`server.screening`).
    """

    partners: Positive = 4
    quorum: Annotated[int, Field(ge=0)] = 0
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    secure_sum: bool = True
    buckets: Positive = 1
    combine: Literal["sum", "median", "trimmed_mean", "screened"] = "sum"

    @model_serializer(mode="wrap")
    def _told(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run without buckets keeps the text, and so the id, that it had before there were any.
        told: dict[str, Any] = write(self)
        if self.buckets == 1 and self.combine == "sum":
            told.pop("buckets", None)
            told.pop("combine", None)
        return told

    @property
    def masked(self) -> bool:
        """Whether sums are masked: with fewer than three partners a sum tells each of them the other's part."""
        return self.secure_sum and self.partners >= 3

    @property
    def survivors(self) -> int:
        """The answers that a sum needs: the quorum, or all of the smallest bucket where none is set."""
        return self.quorum or smallest_bucket(self.partners, self.buckets)

    @property
    def least(self) -> int:
        """The partners without whom no round can be: those that a sum needs, or `LEAST_BUCKETS` sums."""
        return self.survivors * least_sums(self.buckets)


class AuditConfig(_Tree):
    """What a run carries for its audit.

    Attributes
    ----------
    canaries : int
        Synthetic audit users at every partner, each a random direction of the clip norm's length
        (`client.audit_canaries`); 0 leaves them out. They act as noise: a partner with real data has to allow them.
    """

    canaries: Annotated[int, Field(ge=0)] = 0


class RunConfig(_Tree):
    """The whole tree; what `run.json` and every round plan are made from."""

    seed: Annotated[int, Field(ge=0)] | None = 0
    simulation: bool = True
    model: ModelConfig = ModelConfig()
    prior: PriorConfig = PriorConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    federation: FederationConfig = FederationConfig()
    audit: AuditConfig = AuditConfig()

    @model_serializer(mode="wrap")
    def _told(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run without canaries keeps the text, and so the id and the seeded noise, that it had before there were any.
        told: dict[str, Any] = write(self)
        if self.audit == AuditConfig():
            told.pop("audit", None)
        return told

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        fed, priv = self.federation, self.privacy
        if fed.survivors > fed.partners:
            raise ValueError(f"federation.quorum={fed.quorum} is above federation.partners={fed.partners}")
        if wrong := _wrong_buckets(fed, priv.colluders):
            raise ValueError(wrong)
        if priv.mode == "distributed" and priv.colluders >= fed.survivors:
            raise ValueError(f"privacy.colluders={priv.colluders} leaves no honest noise share of {fed.survivors}")
        if fed.buckets == 1 and fed.masked and 2 * fed.survivors <= fed.partners + priv.colluders:
            raise ValueError(f"federation.quorum={fed.survivors} must be above half of partners and colluders together")
        if not self.simulation and priv.mode == "distributed" and not fed.masked:
            raise ValueError("federation.secure_sum and three partners are needed by privacy.mode=distributed")
        if self.training.local_steps > 1 and priv.mode == "distributed":
            raise ValueError("training.local_steps above 1 needs privacy.mode=local or none")
        if self.training.dropout and priv.mode != "none":
            raise ValueError("training.dropout needs privacy.mode=none: a user must not change what others drop")
        if self.audit.canaries and not self.training.rounds:
            raise ValueError("audit.canaries needs training.rounds: the prior's sum has none")
        if self.audit.canaries and fed.buckets > 1:
            raise ValueError("audit.canaries needs federation.buckets=1: what is made of buckets is not their sum")
        if not self.simulation and self.seed is not None:
            raise ValueError("seed is only allowed in simulations: noise that can be reproduced protects nobody")
        if not self.simulation and priv.mode == "none":
            raise ValueError("privacy.mode=none is only allowed in simulations")
        if not self.simulation and priv.population == 0:
            raise ValueError("privacy.population must be declared outside simulations")
        return self


def parse_config(text: str, source: str = "configuration") -> RunConfig:
    """Read a `RunConfig` from JSON; empty text means the defaults.

    Raises
    ------
    ConfigError
        Names the first wrong key and what was expected.
    """
    try:
        return RunConfig.model_validate_json(text or "{}")
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first(error)}") from None


def load_config(path: Path) -> RunConfig:
    """Read a `RunConfig` from a JSON file.

    Raises
    ------
    ConfigError
        If the file is absent, is not JSON, or holds a wrong key or value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}). Expected a JSON file.") from None
    return parse_config(text, str(path))


def _wrong_buckets(fed: FederationConfig, colluders: int) -> str:
    """What is wrong with the buckets of a configuration; empty if nothing is."""
    if reason := why_not(fed.partners, fed.buckets, fed.masked):
        return f"federation.{reason}"
    if fed.buckets == 1:
        alone = f"federation.combine={fed.combine} needs federation.buckets of at least {LEAST_BUCKETS}"
        return "" if fed.combine == "sum" else alone
    smallest, largest = (size(fed.partners, fed.buckets) for size in (smallest_bucket, largest_bucket))
    if not SMALLEST_COHORT <= fed.survivors <= smallest:
        return f"federation.quorum={fed.quorum} must be from {SMALLEST_COHORT} to {smallest}: of each bucket"
    if 2 * fed.survivors <= largest + colluders:
        return (
            f"federation.quorum={fed.survivors} must be above half of a bucket's {largest} and all "
            f"privacy.colluders={colluders} together: they may all be in one bucket"
        )
    return ""


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "configuration"
    return f"{where}: {first['msg']}"
