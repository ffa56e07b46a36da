"""The strategy: what happens in a round, step by step, each step a part of its own.

Flower's loop (``Strategy.start``) calls `configure_train`, sends, and calls `aggregate_train`. Round 1
gathers the prior's sum where the plan has one; all others train.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from server.admission import Admission
from server.checkpoint import Checkpoint, CheckpointStore
from server.combine import combined, described
from server.gathering import BareGathering, Exchanges, Gathered, Gathering, MaskedGathering
from server.optimizer import apply_mean_gradient
from server.patience import SIMULATED, Patience
from server.promise import Promise
from server.receipts import ReceiptBook
from server.transcript import TranscriptBook
from shared.config import RunConfig
from shared.errors import CohortTooSmallError, ProtocolError
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan, model_digest
from shared.model.prior import CollaborativePrior, effective_kind, solve, statistics_size, uninformed
from shared.privacy.accounting import epsilon_spent
from shared.privacy.plan import PrivacyPlan, Stage
from shared.requests import Model, Request
from shared.wire import pack_request, payload_bytes

Observer = Callable[[dict[str, Any]], None]
Witness = Callable[[int, Stage, Gathered], None]
"""Is shown the opened sums of every round, by its number and stage: an audit that re-runs a training."""


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same over a run."""

    run_id: str
    config: RunConfig
    plan: PrivacyPlan
    n_items: int
    catalogue_digest: str

    @property
    def prior_kind(self) -> str:
        """Which statistics the prior is made from, given items, declared users and noise."""
        return effective_kind(self.config.prior, self.plan, self.n_items)

    @property
    def prior_rounds(self) -> int:
        """1 if the first round gathers the prior's sum, else 0."""
        return 0 if self.prior_kind == "none" else 1

    @property
    def rounds(self) -> int:
        """All rounds, the prior's included."""
        return self.prior_rounds + self.plan.rounds

    def stage(self, number: int) -> Stage:
        """What round `number` (from 1) does."""
        return "prior" if number <= self.prior_rounds else "train"

    def epsilon_after(self, number: int) -> float | None:
        """Epsilon spent by the end of round `number`."""
        return epsilon_spent(self.plan, max(0, number - self.prior_rounds))


class VeilrecStrategy(Strategy):
    """Sum what partners send, make the prior or move the model, keep a checkpoint.

    Parameters
    ----------
    run : Run
    checkpoint : Checkpoint
        Where to begin: the start of the run, or its last whole round.
    store : CheckpointStore
    admission : Admission
        The coordinator's key and the partners' identities.
    receipts : ReceiptBook
    observer : callable
        Called with the record of each round (a line of ``rounds.jsonl``) once its checkpoint is safe.
    patience : Patience
    transcripts : TranscriptBook, optional
        Keeps what is public of each round's sums.
    witness : callable, optional
    """

    def __init__(
        self,
        run: Run,
        checkpoint: Checkpoint,
        store: CheckpointStore,
        admission: Admission,
        receipts: ReceiptBook,
        observer: Observer,
        patience: Patience = SIMULATED,
        transcripts: TranscriptBook | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self._store, self._admission, self._receipts, self._observer = store, admission, receipts, observer
        self._patience, self._transcripts, self._witness = patience, transcripts, witness
        self._signed: SignedPlan | None = None
        self._offset = checkpoint.round
        self._names: dict[int, str] = {}
        self._told_prior: set[int] = set()
        self._gathering: Gathering | None = None
        self._bytes_down = 0
        self._began = 0.0
        self._awaited = run.config.federation.partners

    @property
    def rounds_left(self) -> int:
        """Rounds that `start` has to do."""
        return self.run.rounds - self._offset

    def go_on(self) -> None:
        """Begin to count anew after the last whole round: Flower's loop counts from 1 each time it is started."""
        self._offset = self.checkpoint.round

    def summary(self) -> None:
        """Nothing: the run folder tells all."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages that ask every partner for its sum: with masks, after the exchanges of keys and shares."""
        number = self._offset + server_round
        self._began = time.monotonic()
        nodes = wait_for_nodes(grid, self.run.config, self._patience, self._awaited)
        self._awaited = len(nodes)
        order = self._order(number)
        signed = SignedPlan(order.text(), self._admission.key.sign(ROUND_PLAN, order.text().encode()))
        self._signed = signed
        promise = Promise(self._store.folder, self.run.run_id, number)
        exchanges = Exchanges(
            order, grid, self._admission, self._receipts, self._names, promise, self._patience.exchange_s
        )
        kind = MaskedGathering if self.run.plan.masked else BareGathering
        self._gathering = kind(exchanges, signed, nodes, self._expected_size(order.stage))
        parameters = self._parameters  # one copy for all
        models = {node: self._model(order.stage, node, parameters) for node in nodes}
        return self._packed(exchanges, self._gathering.requests(models))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Open the sum and apply it; too few answers end the run, and nothing is released."""
        number = self._offset + server_round
        stage = self.run.stage(number)
        if self._gathering is None or self._signed is None:
            raise ProtocolError("Expected requests before answers.")
        gathered = self._gathering.finish(replies)
        if self._witness is not None:
            self._witness(number, stage, gathered)
        if stage == "train":  # whoever did not answer may not have heard it either
            self._told_prior |= set(gathered.answered)
        apply = self._apply_prior if stage == "prior" else self._apply_update
        record = self._record(number, stage, gathered) | apply(gathered)
        record["seconds"] = time.monotonic() - self._began
        if self._transcripts is not None:
            self._transcripts.keep(number, self._signed, gathered.sums, record)
        self.checkpoint = replace(self.checkpoint, round=number, records=[*self.checkpoint.records, record])
        self._store.save(self.checkpoint)
        self._observer(record)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: metrics of a partner's users do not leave its premises."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked."""
        return None

    def _order(self, number: int) -> RoundPlan:
        run, stage = self.run, self.run.stage(number)
        digest = "" if stage == "prior" else model_digest(self._parameters, self._prior())
        attempt = secrets.token_hex(16)
        return RoundPlan(run.run_id, number, stage, run.config, run.plan, run.catalogue_digest, digest, attempt)

    def _packed(self, exchanges: Exchanges, requests: Mapping[int, Request]) -> Iterator[Message]:
        """Messages one at a time, when the grid asks for them: of ten thousand partners all of them are gigabytes."""
        self._bytes_down = 0
        for node, request in requests.items():
            content = pack_request(request)
            self._bytes_down = max(self._bytes_down, payload_bytes(content))
            yield from exchanges.messages({node: content})

    def _model(self, stage: Stage, node: int, parameters: NDArray[np.float32]) -> Model:
        """What a node is told of the model: the parameters, and the prior if it is new to it."""
        if stage == "prior":
            return Model()
        return Model(parameters, None if node in self._told_prior else self._prior())

    @property
    def _parameters(self) -> NDArray[np.float32]:
        return self.checkpoint.state.parameters.astype(np.float32)

    def _prior(self) -> CollaborativePrior:
        return self.checkpoint.prior or uninformed(self.run.n_items)

    def _expected_size(self, stage: Stage) -> int:
        if stage == "prior":
            return statistics_size(self.run.prior_kind, self.run.n_items)
        return len(self.checkpoint.state.parameters)

    def _apply_prior(self, gathered: Gathered) -> dict[str, Any]:
        plan = self.run.plan
        total, stddev = self._in_units("prior", gathered)
        # The sum was clipped to 1 / k_max a user: bring it back to the scale of one user = 1.
        k = plan.partners_per_user
        prior = solve(
            self.run.prior_kind,
            total * k,
            self.run.n_items,
            stddev * k,
            config=self.run.config.prior,
            population=plan.population,
        )
        self.checkpoint = replace(self.checkpoint, prior=prior)
        return {"update_norm": float(np.linalg.norm(total)), "noise_norm": stddev * math.sqrt(len(total))}

    def _apply_update(self, gathered: Gathered) -> dict[str, Any]:
        plan = self.run.plan
        total, stddev = self._in_units("train", gathered)
        divisor = plan.normaliser * plan.local_steps
        gradient = total / divisor
        state = apply_mean_gradient(self.checkpoint.state, gradient, self.run.config.training)
        self.checkpoint = replace(self.checkpoint, state=state)
        noise_norm = stddev * math.sqrt(plan.local_steps * len(total)) / divisor
        record: dict[str, Any] = {"update_norm": float(np.linalg.norm(gradient)), "noise_norm": noise_norm}
        if plan.mode == "none" and gathered.losses:
            record["loss"] = float(np.mean(gathered.losses))
        return record

    def _in_units(self, stage: Stage, gathered: Gathered) -> tuple[NDArray[np.float64], float]:
        """The sum in units of the clip norm's scale, and the standard deviation of one release's noise in it."""
        plan, step = self.run.plan, self.run.plan.step(stage)
        if gathered.buckets:
            prior = self.run.prior_kind, self.run.n_items
            return combined(gathered.buckets, plan, stage, self.run.config.federation.combine, prior)
        stddev = step * math.sqrt(gathered.partners * plan.share_variance(stage, len(gathered.total)))
        return step * gathered.total.astype(np.float64), stddev

    def _record(self, number: int, stage: Stage, gathered: Gathered) -> dict[str, Any]:
        buckets = {"buckets": described(gathered.buckets, self.run.plan, stage)} if gathered.buckets else {}
        return {
            "round": number,
            "stage": stage,
            "cohort": gathered.partners,
            "bytes_up": gathered.bytes_up,
            "bytes_down": self._bytes_down,
            "epsilon": self.run.epsilon_after(number),
            **buckets,
        }


def wait_for_nodes(
    grid: Grid, config: RunConfig, patience: Patience, awaited: int | None = None, poll_s: float = 0.5
) -> list[int]:
    """Wait for the partners that are awaited: for a quorum as long as it takes to gather, then a while for the rest.

    Parameters
    ----------
    awaited : int, optional
        As many as there were in the last attempt: who was lost is not waited for in every round. All by default.

    Raises
    ------
    CohortTooSmallError
        If there are fewer than the quorum in time.
    """
    quorum = config.federation.least
    wanted = max(quorum, config.federation.partners if awaited is None else awaited)
    deadline = time.monotonic() + (patience.gather_s or config.federation.timeout_s)
    until = math.inf
    while True:
        nodes = sorted(grid.get_node_ids())
        now = time.monotonic()
        if len(nodes) >= quorum:
            until = min(until, deadline, now + patience.grace_s)
        if len(nodes) >= wanted or now >= until:
            return nodes
        if now > deadline:
            raise CohortTooSmallError(f"Expected partners >= {quorum}, got {len(nodes)}.")
        time.sleep(poll_s)
