"""What the coordinator does in a round: with sums, answers, refusals and silence."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.admission import Admission
from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState
from server.patience import SIMULATED, Patience
from server.receipts import ReceiptBook
from server.strategy import Run, VeilrecStrategy, wait_for_nodes
from shared.config import FederationConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import CohortTooSmallError, ProtocolError
from shared.hazmat.fixed_point import to_ring
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, MaskedUpdate
from shared.privacy.accounting import build_plan
from shared.privacy.ledger import LedgerHead
from shared.privacy.plan import Mode, Stage
from shared.requests import BareRequest, Contribution
from shared.wire import parse_plan, unpack_request
from shared.wire_answers import pack_answer
from shared.wire_frames import pack_error
from simulations.federation import InProcessGrid

CONFIG = RunConfig(
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=2, sampling_rate=0.5, learning_rate=0.1, server_optimizer="average"),
    privacy=PrivacyConfig(mode="none", population=8, partners_per_user=2),
    federation=FederationConfig(partners=3, quorum=2, timeout_s=0.2, secure_sum=False),
)
"""Sums in the open: what the strategy does with a sum does not hang on how it was gathered (`test_gathering`)."""
ITEMS, SIZE = 3, 2
STEP: dict[str, float] = {stage: build_plan(CONFIG).step(stage) for stage in ("prior", "train")}
KEY = SigningKey.generate()
ADMISSION = Admission(KEY, {f"partner-{k:03d}": SigningKey.generate().public for k in range(3)})
Answer = Callable[[int, int, str], "RecordDict | Contribution | None"]
"""What a partner says: (partner, round, stage) to the content of its answer, None for silence."""


def run_of(config: RunConfig, mode: Mode) -> Run:
    plan = build_plan(config)
    if mode != "none":  # all users in every round: such a plan is accounted for in no time
        plan = replace(plan, mode=mode, sampling_rate=1.0, noise_multiplier=9.0, prior_noise_multiplier=9.0)
    return Run("run", config, plan, ITEMS, "digest")


def sent(stage: Stage, *values: float, loss: float | None = None) -> Contribution:
    """An update over a whole number of lattice steps; the relay fills the partner's name in."""
    steps = np.array(values) / STEP[stage]
    assert (steps == np.round(steps)).all()
    return Contribution("", MaskedUpdate(to_ring(steps.astype(np.int64), 3), False, loss), LedgerHead(1, "0" * 64))


def honest(partner: int, number: int, stage: str) -> Contribution:
    if stage == "prior":
        return sent("prior", 4.0, 2.0, 1.0)
    return sent("train", 1.0 + partner, -0.5 * number, loss=float(partner))


class Silent(InProcessGrid):
    """A grid on which some answers never come."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [m for m in super().pull_messages(message_ids) if m.content]


class Harness:
    """A strategy over partners that answer as they are told to; `seen` is what they were sent."""

    def __init__(self, folder: Path, answer: Answer = honest, config: RunConfig = CONFIG, mode: Mode = "none") -> None:
        self.store, self.records = CheckpointStore(folder), list[dict[str, Any]]()
        self.seen: list[tuple[int, int, str, bool, bool]] = []
        self.attempts: list[str] = []
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            request = unpack_request(message.content)
            assert isinstance(request, BareRequest)
            KEY.public.verify(ROUND_PLAN, request.signed.text.encode(), request.signed.signature)
            plan, model = parse_plan(request.signed.text), request.model
            partner = int(str(context.node_config["partition-id"]))
            self.seen.append((partner, plan.round, plan.stage, model.parameters is not None, model.prior is not None))
            self.attempts.append(plan.attempt)
            told = answer(partner, plan.round, plan.stage)
            if isinstance(told, Contribution):
                told = pack_answer(replace(told, name=f"partner-{partner:03d}"))
            return Message(RecordDict() if told is None else told, reply_to=message)

        self.grid = Silent(app, range(config.federation.partners), folder)
        begin = Checkpoint("run", 0, ServerState.start(np.zeros(SIZE, dtype=np.float32)), None, [])
        self.book = ReceiptBook(folder / "receipts.json")
        self.run = run_of(config, mode)
        found = self.store.load("run") or begin
        self.strategy = VeilrecStrategy(self.run, found, self.store, ADMISSION, self.book, self.records.append)

    def go(self) -> Checkpoint:
        self.strategy.start(self.grid, ArrayRecord(), num_rounds=self.strategy.rounds_left, timeout=1)
        return self.strategy.checkpoint


def test_the_strategy_descends_by_the_sum_over_the_declared_population(tmp_path: Path) -> None:
    final = Harness(tmp_path).go()
    # Three partners send 1 + 2 + 3 in each of two rounds, q N0 = 4, learning rate 0.1.
    np.testing.assert_allclose(final.state.parameters, [-0.1 * 2 * 6 / 4, 0.1 * 0.5 * (2 + 3) * 3 / 4])


def test_the_prior_comes_back_to_the_scale_of_one_user(tmp_path: Path) -> None:
    """Two partners may hold a user, so each clipped to a half: the sum counts double."""
    prior = Harness(tmp_path).go().prior
    assert prior is not None
    mass = 2 * 3 * np.array([4.0, 2.0, 1.0])
    logs = np.log(mass + mass.mean() * 0.05)
    np.testing.assert_allclose(prior.popularity, logs - logs.mean(), rtol=1e-5)


def test_the_record_of_a_round_is_what_the_contract_names(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    final = harness.go()
    assert harness.records == final.records
    assert [(r["round"], r["stage"], r["cohort"]) for r in final.records] == [
        (1, "prior", 3),
        (2, "train", 3),
        (3, "train", 3),
    ]
    assert {"seconds", "bytes_up", "bytes_down", "epsilon"} <= set(final.records[-1])
    assert final.records[-1]["loss"] == pytest.approx(1.0)
    assert "loss" not in final.records[0]
    assert final.records[-1]["epsilon"] is None
    json.dumps(final.records)


def test_a_loss_is_never_recorded_in_a_private_mode(tmp_path: Path) -> None:
    answers = sent("prior", 4.0, 2.0, 1.0), sent("train", 1.0, 1.0, loss=9.0)  # a partner that tells it all the same
    harness = Harness(tmp_path, lambda p, n, stage: answers[stage == "train"], mode="distributed")
    final = harness.go()
    assert not any("loss" in record for record in final.records)
    epsilons = [record["epsilon"] for record in final.records]
    assert epsilons == sorted(epsilons) and epsilons[0] > 0
    share = harness.run.plan.share_variance("prior", ITEMS)
    assert final.records[0]["noise_norm"] == pytest.approx(STEP["prior"] * math.sqrt(3 * share * ITEMS))


def test_every_partner_gets_the_prior_once_and_the_model_in_every_training_round(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.go()
    assert harness.seen == [
        *((partner, 1, "prior", False, False) for partner in range(3)),
        *((partner, 2, "train", True, True) for partner in range(3)),
        *((partner, 3, "train", True, False) for partner in range(3)),
    ]


def test_a_run_without_a_prior_begins_with_training(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"prior": PriorConfig(kind="none")})
    harness = Harness(tmp_path, lambda p, n, stage: sent("train", 1.0, 1.0), config)
    assert harness.go().prior is None
    assert [seen[1:3] for seen in harness.seen[::3]] == [(1, "train"), (2, "train")]


def test_a_partner_that_stays_silent_is_done_without(tmp_path: Path) -> None:
    final = Harness(tmp_path, lambda p, n, stage: None if p == 1 else honest(p, n, stage)).go()
    assert [record["cohort"] for record in final.records] == [2, 2, 2]
    assert final.state.parameters[0] == pytest.approx(-0.1 * 2 * 4 / 4)


def test_a_partner_that_missed_the_prior_gets_it_when_it_is_back(tmp_path: Path) -> None:
    harness = Harness(tmp_path, lambda p, n, stage: None if (p, n) == (1, 2) else honest(p, n, stage))
    harness.go()
    assert [seen[4] for seen in harness.seen if seen[:2] == (1, 3)] == [True]
    assert [seen[4] for seen in harness.seen if seen[:2] == (0, 3)] == [False]


def test_too_few_answers_end_the_run_and_nothing_of_the_round_is_kept(tmp_path: Path) -> None:
    harness = Harness(tmp_path, lambda p, n, stage: None if p > 0 and n == 3 else honest(p, n, stage))
    with pytest.raises(CohortTooSmallError, match="Expected answers >= 2 in round 3, got 1"):
        harness.go()
    kept = harness.store.load("run")
    assert kept is not None
    assert (kept.round, kept.state.steps, len(kept.records), len(harness.records)) == (2, 1, 2, 2)


def refusing(least: int) -> Answer:
    """Partners from number `least` on refuse."""
    return lambda p, n, stage: pack_error("PolicyViolationError") if p >= least else honest(p, n, stage)


def test_a_quorum_goes_on_without_a_partner_that_refuses(tmp_path: Path) -> None:
    final = Harness(tmp_path, refusing(2)).go()
    assert [record["cohort"] for record in final.records] == [2, 2, 2]


def test_too_many_refusals_end_the_run_and_name_the_family(tmp_path: Path) -> None:
    harness = Harness(tmp_path, refusing(1))
    with pytest.raises(ProtocolError, match="partners refused with PolicyViolationError"):
        harness.go()
    assert harness.store.load("run") is None


@pytest.mark.parametrize(
    "answer",
    [sent("train", 1.0), sent("train", 1.0, 2.0, 3.0)],
    ids=["short", "long"],
)
def test_an_update_of_another_shape_ends_the_run(tmp_path: Path, answer: Contribution) -> None:
    harness = Harness(tmp_path, lambda p, n, stage: answer if n == 2 and p == 0 else honest(p, n, stage))
    with pytest.raises(ProtocolError):
        harness.go()
    kept = harness.store.load("run")
    assert kept is not None and kept.round == 1


def test_an_answer_that_is_none_counts_as_none(tmp_path: Path) -> None:
    nonsense = RecordDict({"answer": pack_answer(replace(honest(0, 2, "train"), name="a"))["answer"]})
    harness = Harness(tmp_path, lambda p, n, stage: nonsense if (p, n) == (0, 2) else honest(p, n, stage))
    assert [record["cohort"] for record in harness.go().records] == [3, 2, 3]


def test_every_request_is_signed_and_no_attempt_is_made_twice(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.go()
    assert [len(set(harness.attempts[3 * k : 3 * k + 3])) for k in range(3)] == [1, 1, 1]
    assert len(set(harness.attempts)) == 3


def test_what_partners_paid_is_countersigned_in_every_round(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.go()
    for name in ADMISSION.identities:
        receipt = harness.book.last(name)
        assert receipt is not None
        receipt.verify(KEY.public)


def test_a_strategy_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = Harness(tmp_path / "whole").go()
    broken = Harness(tmp_path / "broken", lambda p, n, stage: None if n == 3 else honest(p, n, stage))
    with pytest.raises(CohortTooSmallError):
        broken.go()
    resumed = Harness(tmp_path / "broken")
    assert resumed.strategy.rounds_left == 1
    final = resumed.go()
    np.testing.assert_array_equal(final.state.parameters, whole.state.parameters)
    assert [record["round"] for record in final.records] == [1, 2, 3]
    assert resumed.seen == [(partner, 3, "train", True, True) for partner in range(3)]


def test_partners_that_never_come_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    app = ClientApp()
    two = InProcessGrid(app, range(2), tmp_path)
    assert wait_for_nodes(two, CONFIG, SIMULATED, poll_s=0.01) == [1, 2]
    one = InProcessGrid(app, range(1), tmp_path)
    with pytest.raises(CohortTooSmallError, match="Expected partners >= 2, got 1"):
        wait_for_nodes(one, CONFIG, SIMULATED, poll_s=0.01)


def test_a_partner_that_was_lost_is_waited_for_as_long_as_the_grace_and_then_no_more(tmp_path: Path) -> None:
    """Else every round of a federation that lost one partner would begin ten minutes late."""
    two, patience = InProcessGrid(ClientApp(), range(2), tmp_path), Patience(gather_s=30.0, grace_s=0.1)
    began = time.monotonic()
    assert wait_for_nodes(two, CONFIG, patience, poll_s=0.01) == [1, 2]
    assert 0.1 <= time.monotonic() - began < 5.0
    began = time.monotonic()
    assert wait_for_nodes(two, CONFIG, patience, awaited=2, poll_s=0.01) == [1, 2]
    assert time.monotonic() - began < 0.1
    three = InProcessGrid(ClientApp(), range(3), tmp_path)
    assert wait_for_nodes(three, CONFIG, patience, awaited=2, poll_s=0.01) == [1, 2, 3]


def test_partners_are_not_asked_for_metrics(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    assert list(harness.strategy.configure_evaluate(1, ArrayRecord(), None, harness.grid)) == []  # type: ignore[arg-type]
    assert harness.strategy.aggregate_evaluate(1, []) is None
    harness.strategy.summary()
