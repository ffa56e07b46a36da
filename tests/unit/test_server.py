"""The coordinator's parts: optimiser, checkpoints, and what the strategy does with answers and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState, apply_mean_gradient
from server.strategy import Run, VeilrecStrategy, wait_for_nodes
from shared.config import FederationConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import CheckpointError, CohortTooSmallError, ProtocolError
from shared.messages import NoisedSum
from shared.model.prior import CollaborativePrior
from shared.privacy.accounting import build_plan
from shared.privacy.plan import Mode
from shared.wire import pack_error, pack_update, unpack_round
from simulations.federation import InProcessGrid

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(20, 7)) * np.logspace(-6, 2, 7)
BEGIN = RNG.normal(size=7).astype(np.float32)
TRAINING = TrainingConfig(rounds=20, learning_rate=0.01, beta1=0.9, beta2=0.99, average_from=1.0)


def trained(config: TrainingConfig, gradients: Iterable[np.ndarray[Any, Any]] = GRADIENTS) -> list[ServerState]:
    states = [ServerState.start(BEGIN)]
    for gradient in gradients:
        states.append(apply_mean_gradient(states[-1], gradient, config))
    return states


# --- optimiser ------------------------------------------------------------------------------------


def test_adam_is_that_of_torch() -> None:
    reference = torch.nn.Parameter(torch.from_numpy(BEGIN.astype(np.float64)))
    optimizer = torch.optim.Adam([reference], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for gradient, state in zip(GRADIENTS, trained(TRAINING)[1:], strict=True):
        reference.grad = torch.from_numpy(gradient)
        optimizer.step()
        np.testing.assert_allclose(state.parameters, reference.detach().numpy(), rtol=0, atol=1e-9)


def test_average_is_plain_gradient_descent() -> None:
    config = TRAINING.model_copy(update={"server_optimizer": "average"})
    expected = BEGIN.astype(np.float64) - 0.01 * np.cumsum(GRADIENTS, axis=0)
    states = trained(config)[1:]
    np.testing.assert_allclose([state.parameters for state in states], expected, rtol=1e-12, atol=1e-12)
    assert not states[-1].momentum.any() and not states[-1].variance.any()


@pytest.mark.parametrize(("average_from", "kept"), [(0.75, 5), (0.5, 10), (0.01, 20), (0.8, 4)])
def test_what_is_released_is_the_mean_of_the_last_iterates(average_from: float, kept: int) -> None:
    states = trained(TRAINING.model_copy(update={"average_from": average_from}))[1:]
    expected = np.mean([state.parameters for state in states[-kept:]], axis=0)
    assert states[-1].averaged == kept
    np.testing.assert_allclose(states[-1].released, expected, rtol=1e-6)


def test_without_averaging_the_last_iterate_is_released() -> None:
    last = trained(TRAINING)[-1]
    np.testing.assert_array_equal(last.released, last.parameters.astype(np.float32))


def test_an_untrained_model_is_released_as_it_began() -> None:
    np.testing.assert_array_equal(ServerState.start(BEGIN).released, BEGIN)


# --- checkpoints ----------------------------------------------------------------------------------

PRIOR = CollaborativePrior(np.array([0.5, -0.5, 0.0], dtype=np.float32), item_to_item=np.eye(3, dtype=np.float32))
RECORD = {"round": 1, "stage": "prior", "epsilon": 0.1 + 0.2}


def after_prior() -> Checkpoint:
    return Checkpoint("run", 1, ServerState.start(BEGIN), PRIOR, [RECORD])


def after_rounds(rounds: int) -> Checkpoint:
    state = trained(TRAINING.model_copy(update={"average_from": 0.1}), GRADIENTS[:rounds])[-1]
    return replace(after_prior(), round=1 + rounds, state=state, records=[RECORD] * (1 + rounds))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    arrays = all(
        np.array_equal(getattr(one.state, name), getattr(other.state, name))
        for name in ("parameters", "momentum", "variance", "mean_parameters")
    )
    priors = (one.prior is None) == (other.prior is None) and (
        one.prior is None
        or other.prior is None
        or all(np.array_equal(a, other.prior.arrays()[name]) for name, a in one.prior.arrays().items())
    )
    numbers = (one.run_id, one.round, one.state.steps, one.state.averaged, one.records)
    return (
        arrays
        and priors
        and numbers
        == (
            other.run_id,
            other.round,
            other.state.steps,
            other.state.averaged,
            other.records,
        )
    )


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for checkpoint in (after_prior(), after_rounds(1), after_rounds(7)):
        store.save(checkpoint)
        found = CheckpointStore(tmp_path).load("run")
        assert found is not None
        assert same(found, checkpoint)


def test_a_checkpoint_before_the_prior_has_none(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(replace(after_prior(), prior=None))
    found = CheckpointStore(tmp_path).load("run")
    assert found is not None and found.prior is None


def test_there_is_no_checkpoint_in_an_empty_folder(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").load("run") is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(after_prior())
    with pytest.raises(CheckpointError, match="Expected run_id=other, got run"):
        CheckpointStore(tmp_path).load("other")


def test_a_prior_of_another_run_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "a").save(after_prior())
    CheckpointStore(tmp_path / "b").save(replace(after_prior(), run_id="other"))
    (tmp_path / "b" / "prior.safetensors").replace(tmp_path / "a" / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"prior\.safetensors: Expected run_id=run"):
        CheckpointStore(tmp_path / "a").load("run")


def test_a_checkpoint_whose_prior_is_gone_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(after_prior())
    (tmp_path / "prior.safetensors").unlink()
    with pytest.raises(CheckpointError):
        store.load("run")


@pytest.mark.parametrize("name", ["state.safetensors", "prior.safetensors"])
def test_a_checkpoint_with_a_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    store, file = CheckpointStore(tmp_path), tmp_path / name
    store.save(after_prior())
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            store.load("run")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    store, file = CheckpointStore(tmp_path), tmp_path / "state.safetensors"
    store.save(after_prior())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        store.load("run")


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(after_rounds(1))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    store.save(after_prior())
    store.save(after_rounds(1))
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.save(after_rounds(2))
    monkeypatch.undo()
    found = store.load("run")
    assert found is not None and same(found, after_rounds(1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["prior.safetensors", "state.safetensors"]


# --- the strategy ---------------------------------------------------------------------------------

CONFIG = RunConfig(
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=2, sampling_rate=0.5, learning_rate=0.1, server_optimizer="average"),
    privacy=PrivacyConfig(mode="none", population=8, partners_per_user=2),
    federation=FederationConfig(partners=3, quorum=2, timeout_s=0.2),
)
ITEMS, SIZE = 3, 2
Answer = Callable[[int, int, str], RecordDict | None]
"""What a partner says: (partner, round, stage) to the content of its answer, None for silence."""


def run_of(config: RunConfig, mode: Mode) -> Run:
    plan = build_plan(config)
    if mode != "none":  # all users in every round: such a plan is accounted for in no time
        plan = replace(plan, mode=mode, sampling_rate=1.0, noise_multiplier=9.0, prior_noise_multiplier=9.0)
    return Run("run", config, plan, ITEMS, "digest")


def noised(*values: float, stddev: float = 0.0, loss: float | None = None) -> RecordDict:
    return pack_update(NoisedSum(np.array(values), stddev, loss=loss))


def honest(partner: int, number: int, stage: str) -> RecordDict:
    if stage == "prior":
        return noised(4.0, 2.0, 1.0)
    return noised(1.0 + partner, -0.5 * number, loss=float(partner))


class Silent(InProcessGrid):
    """A grid on which some answers never come."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [m for m in super().pull_messages(message_ids) if m.content]


class Harness:
    """A strategy over partners that answer as they are told to; `seen` is what they were sent."""

    def __init__(self, folder: Path, answer: Answer = honest, config: RunConfig = CONFIG, mode: Mode = "none") -> None:
        self.store, self.records = CheckpointStore(folder), list[dict[str, Any]]()
        self.seen: list[tuple[int, int, str, bool, bool]] = []
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            plan, parameters, prior = unpack_round(message.content)
            partner = int(context.node_config["partition-id"])
            self.seen.append((partner, plan.round, plan.stage, parameters is not None, prior is not None))
            content = answer(partner, plan.round, plan.stage)
            return Message(RecordDict() if content is None else content, reply_to=message)

        self.grid = Silent(app, range(config.federation.partners), folder)
        begin = Checkpoint("run", 0, ServerState.start(np.zeros(SIZE, dtype=np.float32)), None, [])
        self.strategy = VeilrecStrategy(
            run_of(config, mode), self.store.load("run") or begin, self.store, self.records.append
        )

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
    answers = noised(4.0, 2.0, 1.0, stddev=3.0), noised(1.0, 1.0, loss=9.0)  # a partner that adds no noise
    final = Harness(tmp_path, lambda p, n, stage: answers[stage == "train"], mode="distributed").go()
    assert not any("loss" in record for record in final.records)
    epsilons = [record["epsilon"] for record in final.records]
    assert epsilons == sorted(epsilons) and epsilons[0] > 0
    assert final.records[0]["noise_norm"] == pytest.approx(3.0 * math.sqrt(3) * math.sqrt(ITEMS))


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
    harness = Harness(tmp_path, lambda p, n, stage: noised(1.0, 1.0), config)
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
    [noised(1.0), noised(1.0, 2.0, 3.0), RecordDict({"plan": noised(1.0)["plan"]})],
    ids=["short", "long", "no update"],
)
def test_an_answer_of_another_shape_ends_the_run(tmp_path: Path, answer: RecordDict) -> None:
    harness = Harness(tmp_path, lambda p, n, stage: answer if n == 2 and p == 0 else honest(p, n, stage))
    with pytest.raises(ProtocolError):
        harness.go()
    kept = harness.store.load("run")
    assert kept is not None and kept.round == 1


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
    assert wait_for_nodes(two, CONFIG, poll_s=0.01) == [1, 2]
    one = InProcessGrid(app, range(1), tmp_path)
    with pytest.raises(CohortTooSmallError, match="Expected partners >= 2, got 1"):
        wait_for_nodes(one, CONFIG, poll_s=0.01)


def test_partners_are_not_asked_for_metrics(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    assert list(harness.strategy.configure_evaluate(1, ArrayRecord(), None, harness.grid)) == []  # type: ignore[arg-type]
    assert harness.strategy.aggregate_evaluate(1, []) is None
    harness.strategy.summary()
