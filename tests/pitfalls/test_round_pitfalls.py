"""Rows on rounds: what is billed when they fail, are repeated or resumed, what leaves in them, and what is kept."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import Exchanged, crossed
from stub_federation import RUN, Federate, StubFederation, config_of, gradient_of, nothing

from client import agent as agent_module
from client import learner as learner_module
from client.data.formats.columns import INTERACTION_COLUMNS
from server.checkpoint import CheckpointStore
from server.optimizer import ServerState, apply_mean_gradient
from server.strategy import Run
from shared.errors import ProtocolError
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.lattice import sensitivity
from shared.wire_answers import ALLOWED, ANSWER, UPDATE
from shared.wire_frames import ERROR

ROOT = Path(__file__).parents[2]
D, ROUNDS = 20_000, 3


def entries(federation: StubFederation, partition: int, kind: str) -> list[dict[str, Any]]:
    """The fields of one kind of line in a partner's ledger."""
    lines = federation.agent(partition).ledger.path.read_text().splitlines()
    return [line["fields"] for line in map(json.loads, lines) if line["kind"] == kind]


def kill_in_round(federation: StubFederation, partition: int, round_: int) -> None:
    """The process ends between the reservation and the noise; the next one is whole again."""
    learner = federation.agent(partition).learner
    draw = learner.noised_gradients

    def die(order: Any, *rest: Any, **named: Any) -> Any:
        if order.round == round_:
            raise MemoryError
        return draw(order, *rest, **named)

    learner.noised_gradients = die  # type: ignore[method-assign]


# --- row: uneven or failed rounds -------------------------------------------------------------------


def test_a_partner_that_is_killed_in_a_round_has_paid_and_the_sum_has_the_noise_that_is_billed(
    federate: Federate, tmp_path: Path
) -> None:
    """Deviation of what is opened >= what is billed, -4 / sqrt(2 d): p < 4e-5. A share for n instead of t has 0.87."""
    config = config_of(4, federation={"quorum": 3})
    federation = federate(2, 2, 2, 2, gradient=nothing(D))
    kill_in_round(federation, 3, round_=2)
    strategy = federation.train(config, tmp_path / "out")
    assert [record["cohort"] for record in strategy.checkpoint.records] == [4, 3, 4]
    assert [entry["round"] for entry in entries(federation, 3, "reserve")] == [1, 2, 3]
    assert [entry["round"] for entry in entries(federation, 3, "release")] == [1, 3]
    plan = build_plan(config)
    billed = plan.noise_multiplier * sensitivity(plan.scale("train"), D, 1)
    room = 4 / math.sqrt(2 * D)
    assert all(total.std() >= billed * (1 - room) for total in federation.totals)
    assert federation.totals[1].std() <= billed * (1 + room)  # three shares: no more than planned either


def test_a_round_that_fails_below_the_quorum_releases_nothing_and_stays_paid(
    federate: Federate, tmp_path: Path
) -> None:
    federation = federate(2, 2, 2, gradient=nothing(50))
    kill_in_round(federation, 1, round_=2)
    with pytest.raises(ProtocolError, match="Expected answers >= 3"):
        federation.train(config_of(3), tmp_path / "out")
    assert len(federation.totals) == 1
    for k in range(3):
        assert [entry["round"] for entry in entries(federation, k, "reserve")] == [1, 2]
        assert federation.agent(k).ledger.spent().epsilon == pytest.approx(epsilon_spent(build_plan(config_of(3)), 3))


# --- row: epsilon from a wrong number of steps ------------------------------------------------------


def test_the_ledgers_count_the_steps_of_the_optimiser_also_after_a_crash(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that dies before its checkpoint asks round 2 again: the same sum, billed once."""
    config, federation = config_of(), federate(3, 1, 4)
    save, saved = CheckpointStore.save, []

    def crash(self: CheckpointStore, checkpoint: Any) -> None:
        saved.append(checkpoint.round)
        if saved == [1, 2]:
            raise MemoryError
        save(self, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", crash)
    with pytest.raises(MemoryError):
        federation.train(config, tmp_path / "out")
    resumed = federation.train(config, tmp_path / "out")
    assert saved == [1, 2, 2, 3]
    np.testing.assert_array_equal(federation.totals[1], federation.totals[2])
    plan, state = build_plan(config), resumed.checkpoint.state
    assert state.steps == plan.steps == ROUNDS
    for k in range(3):
        reserved = entries(federation, k, "reserve")
        assert sum(entry["releases"] for entry in reserved) == state.steps
        assert len(entries(federation, k, "release")) == state.steps
        assert len(entries(federation, k, "plan")) == 1
    records = resumed.checkpoint.records
    assert [record["round"] for record in records] == [1, 2, 3]
    assert [record["epsilon"] for record in records] == [epsilon_spent(plan, rounds) for rounds in (1, 2, 3)]


def test_a_partner_that_dies_after_its_noise_is_drawn_never_draws_a_second(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two draws over one sum would average the noise out."""
    config, federation = config_of(3, {"seed": None}), federate(2, 2, 2)
    masking, sums = agent_module.mask, []

    def die_once(noised: Any, *rest: Any) -> Any:
        sums.append(noised.values)
        if len(sums) == 3:
            raise MemoryError
        return masking(noised, *rest)

    monkeypatch.setattr(agent_module, "mask", die_once)
    with pytest.raises(ProtocolError):
        federation.train(config, tmp_path / "out")
    assert not federation.totals
    federation.train(config, tmp_path / "out")
    for first, again in zip(sums[:3], sums[3:6], strict=True):
        np.testing.assert_array_equal(first, again)
    assert len(federation.totals) == ROUNDS


# --- rows: metrics, counts and sizes ----------------------------------------------------------------


def masked_run(federate: Federate, out: Path, counts: tuple[int, ...], **sections: Any) -> list[Exchanged]:
    federation = federate(*counts, at=f"partners-{counts}")
    grid = federation.grid()
    federation.train(config_of(len(counts), **sections), out / str(counts), grid)
    return grid.exchanged


@pytest.fixture
def exchanged(federate: Federate, tmp_path: Path) -> list[Exchanged]:
    """A prior's sum and a training round, with masks, of partners of very different sizes."""
    sections: dict[str, Any] = {"prior": {"kind": "popularity"}, "training": {"rounds": 1, "sampling_rate": 0.5}}
    return masked_run(federate, tmp_path, (1, 50, 7), **sections)


def test_nothing_leaves_that_is_not_on_the_list_and_data_leave_only_paid_for(exchanged: list[Exchanged]) -> None:
    """Every field of every record is on the list; the one array is the paid vector; no metric is told."""
    kinds: set[str] = set()
    for one in exchanged:
        assert set(one.answer) <= {ANSWER, UPDATE}
        assert not one.answer.metric_records
        told = dict(one.answer.config_records[ANSWER])
        kind = str(told.pop("kind"))
        kinds.add(kind)
        assert set(told) <= set(ALLOWED[kind])
        paid = {name for name, field in ALLOWED[kind].items() if field.kind == "paid"}
        assert set(one.answer.array_records) <= {UPDATE}
        assert bool(one.answer.array_records) == bool(paid)
        assert all(ALLOWED[kind][name].kind in ("public", "secret share") for name in told)
    assert kinds == set(ALLOWED) - {"error"}


def test_what_was_paid_for_names_the_entry_that_paid(federate: Federate, tmp_path: Path) -> None:
    """The head beside a vector is a line of that partner's ledger: the release of that round, after its reserve."""
    federation = federate(2, 2, 2)
    grid = federation.grid()
    federation.train(config_of(), tmp_path / "out", grid)
    paid = [one for one in grid.exchanged if UPDATE in one.answer]
    assert len(paid) == 3 * ROUNDS
    for one in paid:
        told = one.answer.config_records[ANSWER]
        lines = federation.agent(one.node - 1).ledger.path.read_text().splitlines()
        line = json.loads(lines[int(str(told["head_count"])) - 1])
        assert (line["hash"], line["kind"]) == (told["head_hash"], "release")


def test_neither_a_loss_nor_a_count_is_told_where_there_is_noise(exchanged: list[Exchanged]) -> None:
    """The stub's loss is the number of users: it must be nowhere."""
    for one in exchanged:
        numbers = {
            name: value
            for record in one.answer.config_records.values()
            for name, value in record.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        assert set(numbers) <= {"head_count"}


def test_all_messages_of_an_exchange_have_one_size_whoever_holds_how_many_users(
    federate: Federate, tmp_path: Path, exchanged: list[Exchanged]
) -> None:
    """Bytes as they cross. (Times are not hidden: docs/privacy.md says so.)"""
    other = masked_run(
        federate, tmp_path, (20, 2, 2), prior={"kind": "popularity"}, training={"rounds": 1, "sampling_rate": 1e-12}
    )
    sizes = [{(place // 3, len(crossed(one.answer))) for place, one in enumerate(run)} for run in (exchanged, other)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == len(exchanged) // 3 == 10  # one size an exchange: five for each of the two sums


def test_a_partner_counts_once_however_many_users_it_has(federate: Federate, tmp_path: Path) -> None:
    """The sum is that of all users' clipped gradients, and no partner's part of it is divided by its users."""
    config = config_of(3, privacy={"mode": "none"}, training={"rounds": 1})
    federation = federate(1, 5, 30, size=300)
    state = federation.train(config, tmp_path / "out").checkpoint.state
    plan = build_plan(config)
    gradient, clip = gradient_of(300), 1e-3
    users = [user for k in range(3) for user in federation.agent(k).learner.users]  # type: ignore[attr-defined]
    total = sum(gradient(user) / 3.0 * plan.clip_norm * (1 - clip) for user in users)
    rounding = 3 * plan.step("train") / plan.normaliser
    np.testing.assert_allclose(state.parameters, -total / plan.normaliser, atol=rounding)


def test_the_text_of_an_error_stays_at_the_partner(federate: Federate, tmp_path: Path) -> None:
    """Only the family's name crosses, of an error that was foreseen or not."""
    federation = federate(2, 2, 2)
    learner = federation.agent(0).learner

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{learner.users[0]} wrote: my secret")  # type: ignore[attr-defined]

    learner.noised_gradients = fail  # type: ignore[method-assign]
    grid = federation.grid()
    with pytest.raises(ProtocolError, match="refused with VeilrecError"):
        federation.train(config_of(), tmp_path / "out", grid)
    refusals = [one.answer for one in grid.exchanged if ERROR in one.answer]
    assert [dict(refusal.config_records[ERROR]) for refusal in refusals] == [{"family": "VeilrecError"}]
    assert not any(b"secret" in crossed(one.answer) or b"user" in crossed(one.answer) for one in grid.exchanged)


# --- rows: state, canaries, released iterates -------------------------------------------------------


def test_a_partner_keeps_no_optimiser_between_rounds(federate: Federate, tmp_path: Path) -> None:
    """What it sends in round 3 is the same whether or not it took part before, and its run folder holds no state."""
    config = config_of()
    trained, new = federate(2, 2, 2, at="trained"), federate(2, 2, 2, at="new")
    trained.train(config, tmp_path / "out")
    for k in range(3):
        np.testing.assert_array_equal(trained.noised(k, config, 3).values, new.noised(k, config, 3).values)
        kept = {file.name for file in (trained.agent(k).premises.folder / "runs" / RUN).iterdir()}
        assert kept == {"round.json", "prior.safetensors", "sum"}


def test_the_coordinators_optimiser_is_a_function_of_opened_sums_alone(federate: Federate, tmp_path: Path) -> None:
    """Adam's moments are post-processing: they can be computed again from what was released."""
    config = config_of(3, training={"server_optimizer": "adam"})
    federation = federate(4, 1, 2)
    final = federation.train(config, tmp_path / "out").checkpoint.state
    plan = build_plan(config)
    state = ServerState.start(np.zeros(federation.size, dtype=np.float32))
    for total in federation.totals:
        state = apply_mean_gradient(state, total * plan.step("train") / plan.normaliser, config.training)
    for name in ("parameters", "momentum", "variance", "mean_parameters"):
        np.testing.assert_allclose(getattr(state, name), getattr(final, name), rtol=1e-9, atol=1e-15)


def test_the_clip_norm_is_a_constant_of_the_plan(federate: Federate) -> None:
    """No adaptive clipping: a bit about norms would have to be noised and billed."""
    config, clips = config_of(1), []
    federation = federate(3)
    learner = federation.agent(0).learner
    clipped_sum = learner._clipped_sum  # type: ignore[attr-defined]

    def watched(users: Any, catalogue: Any, logits: Any, clip_norm: float, *, bf16: bool) -> Any:
        clips.append(clip_norm)
        return clipped_sum(users, catalogue, logits, clip_norm, bf16=bf16)

    learner._clipped_sum = watched  # type: ignore[attr-defined]
    for round_ in (1, 2, 3):
        federation.noised(0, config, round_)
    assert clips == [config.privacy.clip_norm] * 3
    assert learner.precisions == [False] * 3  # type: ignore[attr-defined]


def test_nothing_in_production_marks_a_user_as_a_canary() -> None:
    """There are no audit users: no column, setting or word for them outside simulations and tests."""
    assert set(INTERACTION_COLUMNS) == {"user_id", "item_id", "timestamp", "event", "rating", "review"}
    sources = [file for package in ("client", "server", "shared") for file in (ROOT / package).rglob("*.py")]
    assert len(sources) > 40
    assert not [file.name for file in sources if "canar" in file.read_text(encoding="utf-8").lower()]


@pytest.mark.parametrize("average_from", [0.1, 1.0])
def test_every_iterate_is_billed_whether_or_not_it_is_released(average_from: float) -> None:
    """The coordinator and all partners see every one of them."""
    config = config_of(3, training={"average_from": average_from})
    run = Run(RUN, config, build_plan(config), 12, "c")
    spent = [run.epsilon_after(number) for number in range(ROUNDS + 1)]
    assert spent[0] == 0.0
    assert all(later > earlier for earlier, later in pairwise(spent))  # type: ignore[operator]
    assert spent[ROUNDS] == epsilon_spent(run.plan, run.plan.rounds)


@pytest.mark.parametrize("stands_alone", [False, True])
@pytest.mark.parametrize("mode", ["distributed", "local", "none"])
def test_coarse_floats_under_noise_need_users_that_stand_alone(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, mode: str, stands_alone: bool
) -> None:
    """In bfloat16 one user would else move the rounding of all others."""
    monkeypatch.setattr(learner_module, "has_fast_bf16", lambda kind: True)
    federation = federate(2)
    federation.agent(0).learner.stands_alone = stands_alone  # type: ignore[attr-defined]
    federation.noised(0, config_of(1, privacy={"mode": mode}))
    assert federation.agent(0).learner.precisions == [mode == "none" or stands_alone]  # type: ignore[attr-defined]
