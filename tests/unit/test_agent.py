"""The partner's agent: what it refuses, of whom, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partner_setting import (
    CONFIG,
    ITEMS,
    LOCAL,
    NO_PRIOR,
    PEERS,
    SIMULATED,
    Federation,
    begin,
    changed,
    entries,
    keys,
    refused,
)

from client import agent as agent_module
from client.run_folder import RunFolder
from shared.config import DEFAULT_BASE
from shared.errors import (
    AdapterMismatchError,
    CohortTooSmallError,
    InvalidSignatureError,
    PolicyViolationError,
    ProtocolError,
    ReplayError,
    UnmaskError,
    VeilrecError,
)
from shared.exchange import Consents, Inbox, Roster, Survivors
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, SignedPlan
from shared.model.prior import uninformed
from shared.model.weights import BaseModel
from shared.privacy.accounting import build_plan
from shared.requests import (
    Attempt,
    ConsentRequest,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.of(tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of text vectors: BERT reads the catalogue once."""
    return tmp_path_factory.mktemp("cache") / "vectors.sqlite"


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["not at all", "by another key", "for another purpose", "another plan", "cut off"])
def test_only_what_the_pinned_coordinator_signed_is_answered(federation: Federation, how: str) -> None:
    text, other = federation.order().text(), federation.order().text()
    signature = {
        "not at all": b"",
        "by another key": SigningKey.generate().sign(ROUND_PLAN, text.encode()),
        "for another purpose": federation.server.sign("ledger-head", text.encode()),
        "another plan": federation.server.sign(ROUND_PLAN, other.encode()),
        "cut off": federation.server.sign(ROUND_PLAN, text.encode())[:-1],
    }[how]
    ask = KeysRequest(SignedPlan(text, signature))
    refused(federation, InvalidSignatureError, "Expected", federation.ask(ask))


def test_a_partner_that_pins_no_coordinator_answers_nobody(tmp_path: Path) -> None:
    federation = Federation.of(tmp_path, simulated=True, server_key=SigningKey.generate().public.text)
    file = federation.folder / "partner.toml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("server_key")))
    refused(federation, PolicyViolationError, "a pinned policy.server_key", keys(federation, federation.order()))


@pytest.mark.parametrize("text", ["", "{}", "null", '{"run_id": "run"}'])
def test_what_is_signed_but_no_plan_is_refused(federation: Federation, text: str) -> None:
    ask = KeysRequest(SignedPlan(text, federation.server.sign(ROUND_PLAN, text.encode())))
    refused(federation, ProtocolError, "Expected a round plan", federation.ask(ask))


# --- what a plan may not ask for ------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, None])
def test_real_data_refuse_a_simulation(federation: Federation, seed: int | None) -> None:
    order = federation.order(config=changed(CONFIG, {"simulation": True, "seed": seed}))
    refused(federation, PolicyViolationError, "Expected simulation = False for real data", keys(federation, order))


def test_real_data_refuse_a_plan_without_noise(federation: Federation) -> None:
    order = federation.order(config=changed(CONFIG, {**SIMULATED, "privacy": {"mode": "none"}}))
    refused(federation, PolicyViolationError, "Expected", keys(federation, order))
    silent = federation.order(plan=replace(build_plan(CONFIG), mode="none"))
    refused(federation, PolicyViolationError, "follows from the configuration", keys(federation, silent))


@pytest.mark.parametrize("forged", [{"seed": 3}, {"privacy": CONFIG.privacy.model_copy(update={"mode": "none"})}])
def test_a_configuration_that_no_run_can_have_is_no_plan(federation: Federation, forged: dict[str, Any]) -> None:
    """A seed outside simulations, and no privacy outside them: `RunConfig` knows neither."""
    order = federation.order(config=CONFIG.model_copy(update=forged), plan=build_plan(CONFIG))
    refused(federation, ProtocolError, "Expected a round plan", keys(federation, order))


@pytest.mark.parametrize(
    "other",
    [
        {"noise_multiplier": 2.9},
        {"prior_noise_multiplier": None},
        {"clip_norm": 1.0},
        {"sampling_rate": 0.5},
        {"population": 61},
        {"rounds": 1},
        {"delta": 0.5},
        {"masked": False},
        {"survivors": 4},
        {"accountant": "gdp"},
    ],
    ids=str,
)
@pytest.mark.parametrize("simulated", [False, True])
def test_a_plan_that_does_not_follow_from_the_configuration_is_refused(
    tmp_path: Path, simulated: bool, other: dict[str, Any]
) -> None:
    federation = Federation.of(tmp_path, simulated=simulated)
    order = federation.order(plan=replace(build_plan(CONFIG), **other))
    refused(federation, PolicyViolationError, "follows from the configuration", keys(federation, order))


@pytest.mark.parametrize(
    ("floor", "told"),
    [
        ({"max_epsilon": 6.8}, r"Expected epsilon <= 6\.8, got 6\.83"),
        ({"max_delta": 1e-6}, "Expected delta <= 1e-06"),
        ({"min_cohort": 4}, "Expected survivors >= 4, got 3"),
        ({"min_colluders": 1}, "Expected colluders >= 1, got 0"),
        ({"max_rounds": 1}, "Expected rounds <= 1, got 2"),
        ({"modes": ["local"]}, r"Expected privacy.mode in \[local\]"),
        ({"max_lora_rank": 1}, "Expected model.lora_rank <= 1, got 2"),
    ],
    ids=str,
)
def test_the_partner_s_own_floor_refuses_in_the_first_exchange(
    tmp_path: Path, floor: dict[str, Any], told: str
) -> None:
    federation = Federation.of(tmp_path, **floor)
    refused(federation, PolicyViolationError, told, keys(federation, federation.order()))


def test_a_round_after_the_last_that_was_counted_is_refused(federation: Federation) -> None:
    refused(federation, PolicyViolationError, "round <= 3", keys(federation, federation.order(4, "train")))
    refused(federation, PolicyViolationError, "stage in", keys(federation, federation.order(2)))


def test_a_base_model_is_allowed_by_its_digest(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation.of(tmp_path, bases=[base.sha256])
    keys(federation, federation.order())()
    looked: list[bool] = []

    def find(name: str, *, local_only: bool = False) -> BaseModel:
        looked.append(local_only)
        return base if name == DEFAULT_BASE else replace(base, sha256="0" * 64)

    monkeypatch.setattr(agent_module, "find_base", find)
    other = federation.order(config=changed(CONFIG, {"model": {"base": "someone/else"}}))
    refused(federation, PolicyViolationError, "Expected model.base in", keys(federation, other))
    assert looked == [True]  # a name that a coordinator sends starts no download
    named = Federation.of(tmp_path / "named", bases=[DEFAULT_BASE])
    keys(named, named.order())()
    assert looked == [True]  # nor is a name that is allowed looked up


def test_another_catalogue_is_refused(federation: Federation) -> None:
    refused(
        federation, AdapterMismatchError, "catalogue", keys(federation, federation.order(catalogue_digest="0" * 64))
    )


# --- turns ----------------------------------------------------------------------------------------


def out_of_turn(attempt: Attempt) -> list[Request]:
    """A request of every exchange but the first."""
    return [
        SharesRequest(attempt, Roster(())),
        SumRequest(attempt, Inbox({}), Model()),
        ConsentRequest(attempt, Survivors(())),
        OpenRequest(attempt, Consents(())),
    ]


def test_a_message_out_of_turn_is_refused_and_disturbs_nothing(federation: Federation) -> None:
    play = federation.play(agent=federation.agent())
    signed, total = play.request, None
    while total is None:
        for request in out_of_turn(play.attempt):
            if type(request) is not type(play.request):
                refused(federation, ReplayError, "Expected", federation.ask(request))
        play.step()
        total = play.total
        refused(federation, ReplayError, "Expected a new attempt", federation.ask(signed))
    for request in out_of_turn(play.attempt):
        refused(federation, ReplayError, "Expected", federation.ask(request))
    assert len(total) == ITEMS


@pytest.mark.parametrize("other", [{"nonce": "0" * 32}, {"run_id": "other"}], ids=["attempt", "run"])
def test_a_message_of_another_attempt_is_refused_and_disturbs_nothing(
    federation: Federation, other: dict[str, str]
) -> None:
    play = federation.play(agent=federation.agent())
    play.step()
    while play.total is None:
        stray: Any = replace(play.request, attempt=replace(play.attempt, **other))  # type: ignore[arg-type]
        refused(federation, ReplayError, "current attempt", federation.ask(stray))
        play.step()


def test_an_attempt_that_another_one_replaced_is_over(federation: Federation) -> None:
    first = federation.play()
    first.to(SharesRequest)
    second = federation.play()
    second.to(SumRequest)
    refused(federation, ReplayError, "current attempt", first.step)
    again = KeysRequest(first.signed)
    refused(federation, ReplayError, "Expected a new attempt", federation.ask(again))
    assert len(second.finish()) == ITEMS


def test_a_round_is_asked_as_its_plan_says_masked_or_not(federation: Federation, tmp_path: Path) -> None:
    masked = federation.bare(federation.order())
    refused(federation, ReplayError, "masked=true", federation.ask(masked))
    bare = Federation.of(tmp_path / "bare", config=changed(CONFIG, LOCAL))
    refused(bare, ReplayError, "masked=false", keys(bare, bare.order()))


def test_a_roster_of_two_ends_the_attempt_before_anything_is_paid(federation: Federation) -> None:
    play = federation.play()
    asked = play.to(SharesRequest)
    alone = replace(asked, roster=Roster(asked.roster.offers[:2]))
    refused(federation, CohortTooSmallError, "Expected at least threshold=3 members", federation.ask(alone))
    refused(federation, ReplayError, "current attempt", play.step)


def test_a_roster_of_more_than_the_plan_counts_on_is_refused(federation: Federation) -> None:
    """The threshold is safe, and the ring has room, for the plan's partners alone."""
    play = federation.play()
    asked = play.to(SharesRequest)
    more = replace(asked, roster=Roster((*asked.roster.offers, replace(asked.roster.offers[-1], name="partner-004"))))
    refused(federation, UnmaskError, "Expected members <= partners=4", federation.ask(more))


def test_shares_that_do_not_open_end_the_attempt_before_anything_is_paid(federation: Federation) -> None:
    play = federation.play()
    forged = replace(play.to(SumRequest), inbox=Inbox(dict.fromkeys(PEERS, bytes(94))))
    refused(federation, UnmaskError, "Expected", federation.ask(forged))
    refused(federation, ReplayError, "current attempt", play.step)


# --- the model of a training round ----------------------------------------------------------------


def model_of(size: int = 3, value: float = 0.0) -> Model:
    return Model(np.full(size, value, dtype=np.float32), uninformed(ITEMS))


@pytest.mark.parametrize(
    "model", [model_of(), replace(model_of(), prior=None), replace(model_of(), parameters=None)], ids=str
)
def test_a_model_with_the_prior_s_round_is_refused_before_anything_is_reserved(
    federation: Federation, model: Model
) -> None:
    play = federation.play(model=model)
    play.to(SumRequest)
    refused(federation, AdapterMismatchError, "Expected no model", play.step)
    refused(federation, ReplayError, "current attempt", play.step)


@pytest.mark.parametrize(
    ("told", "digest_of", "family", "message"),
    [
        (Model(), model_of(), AdapterMismatchError, "Expected parameters"),
        (replace(model_of(), prior=None), model_of(), ReplayError, "Expected the prior of this run"),
        (model_of(value=0.5), model_of(), AdapterMismatchError, "digests differ"),
        (replace(model_of(), prior=uninformed(3)), model_of(), AdapterMismatchError, "digests differ"),
        (model_of(), model_of(), AdapterMismatchError, r"Expected \d+ parameters of size <= 4, got shape=\(3,\)"),
    ],
    ids=["no parameters", "no prior", "other parameters", "another prior", "another shape"],
)
def test_another_model_than_the_plan_s_is_refused_before_anything_is_reserved(
    tmp_path: Path, cache: Path, told: Model, digest_of: Model, family: type[VeilrecError], message: str
) -> None:
    federation = Federation.of(tmp_path, config=changed(CONFIG, NO_PRIOR), cache=cache)
    play = federation.play(federation.training(1, digest_of), model=told)
    play.to(SumRequest)
    refused(federation, family, message, play.step)
    refused(federation, ReplayError, "current attempt", play.step)
    assert RunFolder(federation.folder / "runs" / "run").prior() is None  # nor is its prior kept
    assert entries(federation) == ["genesis"]


def test_a_run_goes_from_the_prior_s_sum_to_training_with_the_prior_it_kept(tmp_path: Path, cache: Path) -> None:
    federation = Federation.of(tmp_path, cache=cache, max_epsilon=20.0)
    federation.play().finish()
    start = begin(federation.learner(), CONFIG)
    first = federation.play(federation.training(2, start), model=start).finish()
    known = replace(start, prior=None)
    later = federation.play(federation.training(3, start), model=known).finish()
    assert first.shape == later.shape == start.parameters.shape  # type: ignore[union-attr]
    assert entries(federation) == ["genesis", "plan", *["reserve", "release", "open"] * 3]
    other_run = federation.play(federation.training(2, start, run_id="other"), model=known)
    other_run.to(SumRequest)
    refused(federation, ReplayError, "Expected the prior of this run", other_run.step)
