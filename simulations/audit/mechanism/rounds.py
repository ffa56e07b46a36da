"""Whole rounds: paid for before noise is drawn, drawn once, billed once, and divided by public numbers alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState, apply_mean_gradient
from shared.errors import ProtocolError
from shared.privacy.accounting import build_plan
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    at_least,
    at_most,
    chance,
    check,
    equal,
    none_of,
    refused,
)
from simulations.audit.mechanism.lattice import billed
from simulations.audit.mechanism.noise import ERROR
from simulations.audit.mechanism.rehearsal import (
    SIZE,
    Rehearsal,
    config_like,
    config_of,
    gradient_of,
    nothing,
    without_noise,
)

CHECKS: list[Check] = []
ROUNDS = 3


def entries(federation: Rehearsal, partition: int, kind: str) -> list[dict[str, Any]]:
    """The fields of one kind of line in a partner's ledger."""
    lines = federation.agent(partition).ledger.path.read_text().splitlines()
    return [line["fields"] for line in map(json.loads, lines) if line["kind"] == kind]


@check(CHECKS, "noise that is drawn before it is paid for")
def paid_first(setting: Setting) -> Iterator[Finding]:
    """Whenever noise is drawn, the round stands in the ledger; whatever leaves was released, and its set opened."""
    config = config_like(REFERENCE, seed=setting.seed)
    federation = Rehearsal.of(setting.folder(), 2, 2, 2, 2)
    paid: list[bool] = []
    for k in range(federation.partners):
        _watch(federation, k, paid)
    federation.train(config, setting.folder())
    yield equal("draws of noise in three rounds of four partners", len(paid), 12, "draws that nobody asked for")
    yield none_of(
        "draws of noise without a reservation in the ledger", paid.count(False), "reserved after the noise was drawn"
    )
    for kind in ("reserve", "release", "open"):
        wrong = sum([e["round"] for e in entries(federation, k, kind)] != [1, 2, 3] for k in range(4))
        yield none_of(
            f"ledgers without a line '{kind}' for every round", wrong, "a consent or release that is not recorded"
        )


@check(CHECKS, "a partner that is lost, and its share of the noise with it")
def killed(setting: Setting) -> Iterator[Finding]:
    """A partner that ends in a round has paid; the others' shares are the noise that is billed."""
    config = config_of(4, {"seed": setting.seed}, federation={"quorum": 3})
    federation = Rehearsal.of(setting.folder(), 2, 2, 2, 2, gradient=nothing(SIZE))
    federation.learner(3).fail_in.add(2)
    strategy = federation.train(config, setting.folder())
    cohorts = [record["cohort"] for record in strategy.checkpoint.records]
    yield none_of("rounds with another cohort than 4, 3, 4", cohorts != [4, 3, 4], "a round that is not made good")
    reserved = [entry["round"] for entry in entries(federation, 3, "reserve")]
    yield none_of("rounds of the lost partner that are not paid", reserved != [1, 2, 3], "a crash that costs nothing")
    target = billed(build_plan(config), "train", SIZE)
    least = min(total.std() for total in federation.totals) / target
    room = 5 * ERROR
    yield at_least(
        "noise of the noisiest-poor round, over the billed one", least, 1 - room, "shares for n", false_alarm=chance(3)
    )
    alone = federation.totals[1].std() / target
    yield at_most(
        "noise of the round of three, over the billed one", alone, 1 + room, "more than planned", false_alarm=chance()
    )


@check(CHECKS, "a round below the quorum that is opened, or given back")
def failed(setting: Setting) -> Iterator[Finding]:
    """Too few answers: nothing is released, and what was reserved stays spent."""
    config = config_of(3, {"seed": setting.seed})
    federation = Rehearsal.of(setting.folder(), 2, 2, 2, gradient=nothing(50))
    federation.learner(1).fail_in.add(2)
    yield refused(
        "a round below the quorum",
        ProtocolError,
        lambda: federation.train(config, setting.folder()),
        "a sum with less noise than is billed",
    )
    yield equal("rounds that were opened", len(federation.totals), 1, "a sum with less noise than is billed")
    reserved = [[entry["round"] for entry in entries(federation, k, "reserve")] for k in range(3)]
    wrong = sum(each != [1, 2] for each in reserved)
    yield none_of("ledgers in which the failed round is not paid", wrong, "a failed round that is given back")


@check(CHECKS, "a second draw over one sum")
def drawn_once(setting: Setting) -> Iterator[Finding]:
    """Two draws would average the noise out: what was released is sent again, what crashed drawn again to the bit."""
    for when, told in (("head", "after its release"), ("release", "before its release")):
        federation = Rehearsal.of(setting.folder(), 2, 2, 2)
        config, out = config_of(3, {"seed": None}, training={"rounds": 1}), setting.folder()
        _fail_once(federation.agent(2).ledger, when)
        yield refused(
            "a round in which a partner crashes", ProtocolError, _trainer(federation, config, out), "unnoticed"
        )
        strategy = federation.train(config, out)
        draws = [values for _, values in federation.learner(2).drawn]
        differing = sum(not np.array_equal(draws[0], again) for again in draws[1:])
        yield none_of(f"draws of a partner that crashed {told} that differ", differing, "a round drawn anew")
        if when == "head":
            yield equal(f"draws of a partner that crashed {told}", len(draws), 1, "a released sum drawn again")
        yield equal("rounds that are done after all", strategy.checkpoint.round, 1, "a run that cannot go on")


@check(CHECKS, "rounds that a crash or a resumption counts wrongly")
def resumed(setting: Setting) -> Iterator[Finding]:
    """A coordinator that dies before its checkpoint asks round 2 again: the same sum, billed once."""
    config, out = config_of(3, {"seed": setting.seed}), setting.folder()
    federation = Rehearsal.of(setting.folder(), 3, 1, 4)
    store = _Failing(out)
    with suppress(MemoryError):
        federation.train(config, out, store=store)
    strategy = federation.train(config, out, store=store)
    plan, state = build_plan(config), strategy.checkpoint.state
    yield none_of(
        "checkpoints but those of rounds 1, 2, 2, 3", store.saved != [1, 2, 2, 3], "a run that counts from its start"
    )
    totals = federation.totals
    same = len(totals) == 4 and np.array_equal(totals[1], totals[2])
    yield none_of("sums of the repeated round that differ", not same, "a round drawn anew")
    yield equal("steps of the optimiser", state.steps, plan.steps, "steps that are not billed")
    for k in range(3):
        billed_steps = sum(entry["releases"] for entry in entries(federation, k, "reserve"))
        yield equal(f"steps billed by partner {k}", billed_steps, state.steps, "epsilon from a wrong number of steps")
        lines = len(entries(federation, k, "plan"))
        yield equal(f"plans declared by partner {k}", lines, 1, "a run billed twice")


@check(CHECKS, "a normaliser that counts answers or users")
def divided(setting: Setting) -> Iterator[Finding]:
    """The model moves by the opened sum over the public q N0, also where partners have 1, 5 and 30 users."""
    q = 0.5
    config = config_of(3, {"seed": setting.seed}, training={"rounds": 1, "sampling_rate": q})
    federation = Rehearsal.of(setting.folder(), 2, 9, 4)
    state = federation.train(config, setting.folder()).checkpoint.state
    plan = build_plan(config)
    expected = -federation.totals[0] * plan.step("train") / (q * config.privacy.population)
    off = np.abs(state.parameters - expected).max() / np.abs(expected).max()
    yield at_most("the model's move off the sum over q N0, relative", off, 1e-6, "a normaliser that counts answers")
    bare = without_noise(config_of(3, {"seed": setting.seed}, training={"rounds": 1}))
    federation = Rehearsal.of(setting.folder(), 1, 5, 30, gradient=gradient_of(300))
    state = federation.train(bare, setting.folder()).checkpoint.state
    plan, gradient = build_plan(bare), gradient_of(300)
    users = [user for k in range(3) for user in federation.learner(k).users]
    total = sum(gradient(user) / 3.0 * plan.clip_norm * (1 - 1e-3) for user in users)
    rounding = 3 * plan.step("train") / plan.normaliser
    off = float(np.abs(state.parameters + total / plan.normaliser).max())
    yield at_most("the model's move off the sum of all users over q N0", off, 2 * rounding, "example counts as weights")


@check(CHECKS, "state that outlives a round, or an optimiser that sees more than opened sums")
def stateless(setting: Setting) -> Iterator[Finding]:
    """What a partner sends in round 3 does not hang on rounds before; Adam's moments follow from opened sums."""
    config = config_of(3, {"seed": setting.seed}, training={"server_optimizer": "adam"})
    trained, new = (Rehearsal.of(setting.folder(), 2, 2, 2) for _ in range(2))
    final = trained.train(config, setting.folder()).checkpoint.state
    differing = sum(
        not np.array_equal(trained.noised(k, config, 3).values, new.noised(k, config, 3).values) for k in range(3)
    )
    yield none_of(
        "partners whose sum hangs on earlier rounds", differing, "an optimiser or clip norm kept by a partner"
    )
    plan, state = build_plan(config), ServerState.start(np.zeros(trained.size, dtype=np.float32))
    for total in trained.totals:
        state = apply_mean_gradient(state, np.float64(plan.step("train") / plan.normaliser) * total, config.training)
    off = max(
        float(np.abs(getattr(state, name) - getattr(final, name)).max())
        for name in ("parameters", "momentum", "variance", "mean_parameters")
    )
    yield at_most(
        "the optimiser's state off that of the opened sums", off, 1e-6, "state that saw more than opened sums"
    )


class _Failing(CheckpointStore):
    """The process ends before the second checkpoint is written."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.saved: list[int] = []

    def save(self, checkpoint: Checkpoint) -> None:
        self.saved.append(checkpoint.round)
        if self.saved == [1, 2]:
            raise MemoryError
        super().save(checkpoint)


def _watch(federation: Rehearsal, k: int, paid: list[bool]) -> None:
    """Note, at every draw, whether its round is the last that the partner's ledger has reserved."""
    learner = federation.learner(k)
    draw = learner.noised_gradients

    def watched(order: Any, *rest: Any, **named: Any) -> Any:
        paid.append(order.round in [entry["round"] for entry in entries(federation, k, "reserve")])
        return draw(order, *rest, **named)

    learner.noised_gradients = watched  # type: ignore[method-assign]


def _fail_once(ledger: Any, method: str) -> None:
    """The process ends as it enters one of the ledger's methods; the next one is whole."""
    act, failed_before = getattr(ledger, method), list[bool]()

    def fail(*given: Any) -> Any:
        if not failed_before:
            failed_before.append(True)
            raise MemoryError
        return act(*given)

    setattr(ledger, method, fail)


def _trainer(federation: Rehearsal, config: Any, out: Any) -> Callable[[], object]:
    return lambda: federation.train(config, out)
