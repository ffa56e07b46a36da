"""The strategy: what happens in a round, step by step, each step a part of its own.

Flower's loop (``Strategy.start``) calls `configure_train`, sends, and calls `aggregate_train`. Round 1
gathers the prior's sum where the plan has one; all others train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import apply_mean_gradient
from shared.config import RunConfig
from shared.errors import CohortTooSmallError, ProtocolError
from shared.messages import NoisedSum, RoundPlan, Stage
from shared.model.prior import CollaborativePrior, effective_kind, solve, statistics_size, uninformed
from shared.privacy.accounting import epsilon_spent
from shared.privacy.plan import PrivacyPlan
from shared.wire import ERROR, error_name, pack_round, payload_bytes, unpack_update

Observer = Callable[[dict[str, Any]], None]


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
        """Which statistics the prior is made from, given the size of the catalogue."""
        return effective_kind(self.config.prior, self.n_items)

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
    observer : callable
        Called with the record of each round (a line of ``rounds.jsonl``) once its checkpoint is safe.
    """

    def __init__(self, run: Run, checkpoint: Checkpoint, store: CheckpointStore, observer: Observer) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self._store, self._observer = store, observer
        self._offset = checkpoint.round
        self._told_prior: set[int] = set()
        self._bytes_down = 0
        self._began = 0.0

    @property
    def rounds_left(self) -> int:
        """Rounds that `start` has to do."""
        return self.run.rounds - self._offset

    def summary(self) -> None:
        """Nothing: the run folder tells all."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to every partner: the plan of the round, the model, and the prior to whom it is new."""
        number = self._offset + server_round
        self._began = time.monotonic()
        contents = {node: self._content(number, node) for node in wait_for_nodes(grid, self.run.config)}
        self._bytes_down = max(payload_bytes(content) for content in contents.values())
        for node, content in contents.items():
            yield Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=str(number))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the answers and apply the sum; too few of them end the run, and nothing is released."""
        number = self._offset + server_round
        stage = self.run.stage(number)
        replied = [message for message in replies if message.has_content()]
        answered = [message for message in replied if ERROR not in message.content]
        needed = self.run.plan.survivors
        if len(answered) < needed:
            refusals = sorted({error_name(message.content) for message in replied if ERROR in message.content})
            if refusals:
                raise ProtocolError(f"Expected updates >= {needed}, partners refused with {', '.join(refusals)}.")
            raise CohortTooSmallError(f"Expected answers >= {needed} in round {number}, got {len(answered)}.")
        updates, bytes_up = collect(answered, self._expected_size(stage))
        if stage == "train":  # whoever did not answer may not have heard it either
            self._told_prior |= {message.metadata.src_node_id for message in answered}
        total = np.sum([update.values for update in updates], axis=0)
        stddev = math.sqrt(sum(update.noise_stddev**2 for update in updates))
        apply = self._apply_prior if stage == "prior" else self._apply_update
        record = self._record(number, stage, len(updates), bytes_up) | apply(total, stddev, updates)
        record["seconds"] = time.monotonic() - self._began
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

    def _content(self, number: int, node: int) -> RecordDict:
        run, stage = self.run, self.run.stage(number)
        plan = RoundPlan(run.run_id, number, stage, run.config, run.plan, run.catalogue_digest)
        if stage == "prior":
            return pack_round(plan)
        parameters = self.checkpoint.state.parameters.astype(np.float32)
        return pack_round(plan, parameters, None if node in self._told_prior else self._prior())

    def _prior(self) -> CollaborativePrior:
        return self.checkpoint.prior or uninformed(self.run.n_items)

    def _expected_size(self, stage: Stage) -> int:
        if stage == "prior":
            return statistics_size(self.run.prior_kind, self.run.n_items)
        return len(self.checkpoint.state.parameters)

    def _apply_prior(self, total: NDArray[np.float64], stddev: float, _: list[NoisedSum]) -> dict[str, Any]:
        # The sum was clipped to 1 / k_max a user: bring it back to the scale of one user = 1.
        k = self.run.plan.partners_per_user
        prior = solve(self.run.prior_kind, total * k, self.run.n_items, stddev * k)
        self.checkpoint = replace(self.checkpoint, prior=prior)
        return {"update_norm": float(np.linalg.norm(total)), "noise_norm": stddev * math.sqrt(len(total))}

    def _apply_update(self, total: NDArray[np.float64], stddev: float, updates: list[NoisedSum]) -> dict[str, Any]:
        plan = self.run.plan
        steps = plan.local_steps
        divisor = plan.normaliser * steps
        gradient = total / divisor
        state = apply_mean_gradient(self.checkpoint.state, gradient, self.run.config.training)
        self.checkpoint = replace(self.checkpoint, state=state)
        record: dict[str, Any] = {
            "update_norm": float(np.linalg.norm(gradient)),
            "noise_norm": stddev * math.sqrt(steps * len(total)) / divisor,
        }
        losses = [update.loss for update in updates if update.loss is not None]
        if plan.mode == "none" and losses:
            record["loss"] = float(np.mean(losses))
        return record

    def _record(self, number: int, stage: Stage, cohort: int, bytes_up: int) -> dict[str, Any]:
        return {
            "round": number,
            "stage": stage,
            "cohort": cohort,
            "bytes_up": bytes_up,
            "bytes_down": self._bytes_down,
            "epsilon": self.run.epsilon_after(number),
        }


def collect(replies: Iterable[Message], size: int) -> tuple[list[NoisedSum], int]:
    """The updates among replies, in the order of their nodes, and the bytes of the largest."""
    answered = sorted(replies, key=lambda m: m.metadata.src_node_id)
    updates = [unpack_update(m.content, size) for m in answered]
    return updates, max((payload_bytes(m.content) for m in answered), default=0)


def wait_for_nodes(grid: Grid, config: RunConfig, poll_s: float = 0.5) -> list[int]:
    """Wait until all declared partners, or after the time-out at least a quorum of them, are there.

    Raises
    ------
    CohortTooSmallError
        If there are fewer than the quorum in time.
    """
    wanted, deadline = config.federation.partners, time.monotonic() + config.federation.timeout_s
    while True:
        nodes = sorted(grid.get_node_ids())
        late = time.monotonic() > deadline
        if len(nodes) >= wanted or (late and len(nodes) >= config.federation.survivors):
            return nodes
        if late:
            raise CohortTooSmallError(f"Expected partners >= {config.federation.survivors}, got {len(nodes)}.")
        time.sleep(poll_s)
