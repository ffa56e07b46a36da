"""The partner's agent: what it answers, and above all what it refuses."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from flwr.app import RecordDict
from safetensors.numpy import save

from client.agent import PARTNER_FILE, PRIOR_FILE, PartnerAgent, Premises
from client.app import app as client_app
from client.app import partner_folder
from client.data.ingest import RawData, write
from client.privatize import LATTICE_STEPS
from client.statistics import clipped_statistics
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError, PolicyViolationError, ReplayError
from shared.messages import NoisedSum, RoundPlan, Stage
from shared.model.prior import CollaborativePrior, uninformed
from shared.privacy.accounting import build_plan
from shared.wire import ERROR, pack_round
from simulations.federation import InProcessGrid

ITEMS, USERS = 10, 6
SECRET = "hates her neighbour"
Sections = dict[str, Any]


def raw() -> RawData:
    rows = [
        (f"user {u}", f"item {(3 * u + e) % ITEMS}", e, "purchase", None, f"{SECRET} {u}" if e == 2 else "")
        for u in range(USERS)
        for e in range(5)
    ]
    schema = {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "event": pl.String,
        "rating": pl.Float64,
        "review": pl.String,
    }
    items = pl.DataFrame(
        {
            "item_id": [f"item {k}" for k in range(ITEMS)],
            "title": [f"Lamp {k}" for k in range(ITEMS)],
            "text": "A lamp.",
            "categories": "",
        }
    )
    return RawData("lamps", pl.DataFrame(rows, schema=schema, orient="row"), items)


def simulated_folder(folder: Path, cache: Path, name: str = "partner-000") -> Path:
    write(raw(), folder)
    told = {"name": name, "simulated": True, "cache": str(cache), "tie_seed": 0}
    (folder / PARTNER_FILE).write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "vectors.sqlite"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> PartnerAgent:
    return PartnerAgent(Premises.open(simulated_folder(tmp_path_factory.mktemp("simulated"), cache)), "cpu")


@pytest.fixture
def real(tmp_path: Path) -> PartnerAgent:
    """A folder that does not say that it is simulated."""
    write(raw(), tmp_path / "shop")
    return PartnerAgent(Premises.open(tmp_path / "shop"), "cpu")


@pytest.fixture
def root(tmp_path: Path, cache: Path) -> Path:
    simulated_folder(partner_folder(tmp_path, 0), cache)
    return tmp_path


def fresh(root: Path) -> PartnerAgent:
    """The agent of partner 0, as a new process has it."""
    return PartnerAgent(Premises.open(partner_folder(root, 0)), "cpu")


@pytest.fixture(scope="module")
def config(tiny_model: ModelConfig) -> RunConfig:
    """Private and seeded; all users in every round; noise that is not calibrated, so quick to plan."""
    return RunConfig(
        model=tiny_model,
        prior=PriorConfig(kind="none"),
        training=TrainingConfig(rounds=3, sampling_rate=1.0, drop_events=0.0),
        privacy=PrivacyConfig(population=USERS, noise_multiplier=2.0),
        federation=FederationConfig(partners=4),
    )


def changed(config: RunConfig, top: Sections | None = None, /, **sections: Sections) -> RunConfig:
    tree = config.model_dump()
    for name, values in sections.items():
        tree[name].update(values)
    return RunConfig.model_validate({**tree, **(top or {})})


def asked(agent: PartnerAgent, config: RunConfig, number: int = 1, stage: Stage = "train") -> RoundPlan:
    return RoundPlan("run", number, stage, config, build_plan(config), agent.catalogue.digest)


def begin(agent: PartnerAgent, config: RunConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    size = agent.workbench(config.model, config.seed or 0).gradients.size
    return np.random.default_rng(0).normal(scale=0.05, size=size).astype(np.float32)


def answer(agent: PartnerAgent, config: RunConfig, number: int = 1) -> NoisedSum:
    agent.take_prior("run", uninformed(ITEMS))
    return agent.answer(asked(agent, config, number), begin(agent, config))


UNSEEDED: Sections = {"simulation": False, "seed": None}

# --- premises -------------------------------------------------------------------------------------


def test_a_folder_that_does_not_say_so_is_real(tmp_path: Path) -> None:
    premises = Premises.open(tmp_path)
    assert (premises.simulated, premises.name) == (False, tmp_path.name)
    assert premises.cache.parent == tmp_path


@pytest.mark.parametrize("value", ["true", 1, "yes", None, [True]])
def test_only_a_plain_true_makes_a_folder_simulated(tmp_path: Path, value: object) -> None:
    told = {"name": "p", "simulated": value, "cache": "c", "tie_seed": 0}
    (tmp_path / PARTNER_FILE).write_text(json.dumps(told))
    assert not Premises.open(tmp_path).simulated


def test_a_relative_cache_lies_in_the_folder(tmp_path: Path) -> None:
    told = {"name": "p", "simulated": True, "cache": "c.sqlite", "tie_seed": 7}
    (tmp_path / PARTNER_FILE).write_text(json.dumps(told))
    premises = Premises.open(tmp_path)
    assert (premises.cache, premises.tie_seed) == (tmp_path / "c.sqlite", 7)


def test_a_folder_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Premises.open(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", '{"name": "p", "simulated": true, "cache": "c"}'])
def test_a_partner_file_that_is_none_is_a_wrong_setting(tmp_path: Path, text: str) -> None:
    (tmp_path / PARTNER_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="Expected JSON with name, simulated, cache and tie_seed"):
        Premises.open(tmp_path)


# --- what real data refuse ------------------------------------------------------------------------


def test_real_data_refuse_a_simulation(real: PartnerAgent, config: RunConfig) -> None:
    with pytest.raises(PolicyViolationError, match="simulation=false"):
        answer(real, config)


def test_real_data_refuse_a_simulation_without_a_seed(real: PartnerAgent, config: RunConfig) -> None:
    with pytest.raises(PolicyViolationError, match="simulation=false"):
        answer(real, changed(config, {"seed": None}))


def test_real_data_refuse_a_plan_without_noise(real: PartnerAgent, config: RunConfig) -> None:
    with pytest.raises(PolicyViolationError, match="a privacy mode other than none"):
        answer(real, changed(config, privacy={"mode": "none"}))


def test_real_data_refuse_a_plan_without_noise_under_an_honest_configuration(
    real: PartnerAgent, config: RunConfig
) -> None:
    honest = changed(config, UNSEEDED)
    with pytest.raises(PolicyViolationError):
        real.answer(replace(asked(real, honest), plan=replace(build_plan(honest), mode="none")), None)


def test_real_data_refuse_seeded_noise_even_if_the_configuration_forgot_to(
    real: PartnerAgent, config: RunConfig
) -> None:
    """`RunConfig` does not allow a seed outside simulations; the agent must not rely on it."""
    forged = changed(config, UNSEEDED).model_copy(update={"seed": 3})
    with pytest.raises(PolicyViolationError, match="seed"):
        answer(real, forged)


@pytest.mark.parametrize(
    "other", [{"noise_multiplier": 1.9}, {"clip_norm": 1.0}, {"sampling_rate": 0.5}, {"rounds": 2}, {"delta": 0.5}]
)
@pytest.mark.parametrize("whose", ["real", "simulated"])
def test_a_plan_that_does_not_follow_from_the_configuration_is_refused(
    request: pytest.FixtureRequest, config: RunConfig, whose: str, other: dict[str, float]
) -> None:
    agent: PartnerAgent = request.getfixturevalue(whose)
    honest = config if whose == "simulated" else changed(config, UNSEEDED)
    plan = asked(agent, honest)
    with pytest.raises(PolicyViolationError, match="follows from the configuration"):
        agent.answer(replace(plan, plan=replace(plan.plan, **other)), begin(agent, honest))  # type: ignore[arg-type]


def test_another_catalogue_is_refused(simulated: PartnerAgent, config: RunConfig) -> None:
    with pytest.raises(AdapterMismatchError, match="catalogue"):
        simulated.answer(replace(asked(simulated, config), catalogue_digest="other"), begin(simulated, config))


def test_real_data_answer_a_private_plan_with_noise_that_cannot_be_replayed(
    real: PartnerAgent, config: RunConfig
) -> None:
    honest = changed(config, UNSEEDED)
    one, other = answer(real, honest), answer(real, honest)
    # The clipped sum is the same: the difference is the noise, N(0, 2 s^2) in every place.
    stddev = honest.privacy.clip_norm * 2.0 / np.sqrt(4)
    assert one.noise_stddev == other.noise_stddev == pytest.approx(stddev)
    spread = (one.values - other.values).std()
    # Over 20,000 places the relative deviation has a standard error below 0.6 %: fails once in 10^10.
    assert spread == pytest.approx(np.sqrt(2) * stddev, rel=0.04)


def test_the_pseudonym_key_of_real_data_is_drawn_and_kept_from_others(real: PartnerAgent, config: RunConfig) -> None:
    users = real.histories(config.model).users
    file = real.premises.folder / "pseudonym.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = PartnerAgent(real.premises, "cpu")
    assert again.histories(config.model).users == users
    file.unlink()
    assert set(PartnerAgent(real.premises, "cpu").histories(config.model).users).isdisjoint(users)


# --- what every partner refuses -------------------------------------------------------------------


def test_training_without_parameters_is_refused(simulated: PartnerAgent, config: RunConfig) -> None:
    with pytest.raises(AdapterMismatchError, match="Expected parameters"):
        simulated.answer(asked(simulated, config), None)


def test_parameters_of_another_shape_are_refused(simulated: PartnerAgent, config: RunConfig) -> None:
    simulated.take_prior("run", uninformed(ITEMS))
    with pytest.raises(AdapterMismatchError, match="shape"):
        simulated.answer(asked(simulated, config), np.zeros(3, dtype=np.float32))


def test_training_before_the_prior_is_refused(root: Path, config: RunConfig) -> None:
    with pytest.raises(ReplayError):
        fresh(root).answer(asked(fresh(root), config), begin(fresh(root), config))


def test_the_prior_of_another_run_does_not_count(root: Path, config: RunConfig) -> None:
    agent = fresh(root)
    agent.take_prior("another run", uninformed(ITEMS))
    for one in (agent, fresh(root)):
        with pytest.raises(ReplayError):
            one.answer(asked(one, config), begin(one, config))


def test_the_prior_is_still_known_in_another_process(root: Path, config: RunConfig) -> None:
    """Ray and the SuperNode hand a partner's rounds to whichever process is free."""
    prior = CollaborativePrior(np.linspace(-1, 1, ITEMS, dtype=np.float32), np.eye(ITEMS, dtype=np.float32))
    agent = fresh(root)
    agent.take_prior("run", prior)
    known = agent.answer(asked(agent, config), begin(agent, config)).values
    np.testing.assert_array_equal(fresh(root).answer(asked(agent, config), begin(agent, config)).values, known)
    fresh(root).take_prior("run", uninformed(ITEMS))
    assert not np.array_equal(fresh(root).answer(asked(agent, config), begin(agent, config)).values, known)


@pytest.mark.parametrize("data", [b"", b"not a prior", save({"users": np.zeros(1)}, {"run_id": "run"}), save({})])
def test_a_kept_prior_that_is_none_is_refused(root: Path, config: RunConfig, data: bytes) -> None:
    (partner_folder(root, 0) / PRIOR_FILE).write_bytes(data)
    with pytest.raises(IntegrityError, match="Expected the prior of a run"):
        fresh(root).answer(asked(fresh(root), config), begin(fresh(root), config))


# --- what it answers ------------------------------------------------------------------------------


def test_a_simulated_round_can_be_repeated_to_the_bit(simulated: PartnerAgent, config: RunConfig) -> None:
    one = answer(simulated, config)
    np.testing.assert_array_equal(answer(simulated, config).values, one.values)
    assert not np.array_equal(answer(simulated, config, number=2).values, one.values)


def test_partners_draw_noise_of_their_own(
    simulated: PartnerAgent, config: RunConfig, tmp_path: Path, cache: Path
) -> None:
    """The same data under another name: the difference is two shares of noise, not none."""
    other = PartnerAgent(Premises.open(simulated_folder(tmp_path / "other", cache, "partner-001")), "cpu")
    difference = answer(simulated, config).values - answer(other, config).values
    assert difference.std() == pytest.approx(np.sqrt(2) * 0.5, rel=0.04)


def test_an_answer_lies_on_the_public_lattice(simulated: PartnerAgent, config: RunConfig) -> None:
    update = answer(simulated, config)
    steps = update.values / (update.noise_stddev / LATTICE_STEPS)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert update.loss is None


def test_without_privacy_the_answer_is_the_clipped_sum_and_its_loss(simulated: PartnerAgent, config: RunConfig) -> None:
    update = answer(simulated, changed(config, privacy={"mode": "none", "clip_norm": 0.1}))
    assert update.noise_stddev == 0.0
    assert 0 < np.linalg.norm(update.values) <= 0.1 * USERS
    assert update.loss is not None and update.loss > 0


def test_a_round_that_samples_nobody_still_sends_noise(simulated: PartnerAgent, config: RunConfig) -> None:
    nobody = changed(config, training={"sampling_rate": 1e-12})
    update = answer(simulated, nobody)
    assert update.values.std() == pytest.approx(update.noise_stddev, rel=0.04)


def test_the_prior_s_sum_is_that_of_the_histories(simulated: PartnerAgent, config: RunConfig) -> None:
    plain = changed(config, prior={"kind": "hybrid"}, privacy={"mode": "none", "partners_per_user": 2})
    update = simulated.answer(asked(simulated, plain, stage="prior"), None)
    expected = clipped_statistics(simulated.histories(plain.model), ITEMS, plain.prior, "hybrid", clip_norm=0.5)
    np.testing.assert_array_equal(update.values, expected.values)


def test_local_steps_add_up_and_each_has_the_whole_noise(simulated: PartnerAgent, config: RunConfig) -> None:
    # A vanishing learning rate: every step is taken from the same place, so that the steps can be told apart.
    twice = changed(config, training={"local_steps": 2, "local_learning_rate": 1e-30}, privacy={"mode": "local"})
    update = answer(simulated, twice)
    assert update.noise_stddev == pytest.approx(2.0 * twice.privacy.clip_norm)
    signal = answer(simulated, changed(twice, privacy={"mode": "none"})).values
    assert (update.values - signal).std() == pytest.approx(np.sqrt(2) * update.noise_stddev, rel=0.04)


def test_local_steps_go_on_from_where_the_last_one_ended(simulated: PartnerAgent, config: RunConfig) -> None:
    plain: Sections = {"mode": "none"}
    one = answer(simulated, changed(config, privacy=plain)).values
    far = {"local_steps": 2, "local_learning_rate": 50.0}
    two = answer(simulated, changed(config, training=far, privacy=plain)).values
    assert np.linalg.norm(two - 2 * one) > 0.05 * np.linalg.norm(one)


# --- the relay ------------------------------------------------------------------------------------


def told(agent_root: Path, plan: RoundPlan) -> RecordDict:
    """What comes back through Flower's client app from partner 0 of a folder of partners."""
    grid = InProcessGrid(client_app, range(1), agent_root)
    message = grid.create_message(pack_round(plan, prior=uninformed(ITEMS)), "train", 1, "1")
    return next(iter(grid.send_and_receive([message]))).content


def plan_for(root: Path, config: RunConfig) -> RoundPlan:
    return asked(fresh(root), config)


def test_a_refusal_crosses_as_the_name_of_its_family(root: Path, config: RunConfig) -> None:
    content = told(root, replace(plan_for(root, config), catalogue_digest="other"))
    assert set(content) == {ERROR}
    assert dict(content.config_records[ERROR]) == {"family": "AdapterMismatchError"}


def test_the_text_of_an_unforeseen_error_stays_at_the_partner(
    root: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(PartnerAgent, "answer", fail)
    content = told(root, plan_for(root, config))
    assert set(content) == {ERROR}
    assert dict(content.config_records[ERROR]) == {"family": "VeilrecError"}
    assert SECRET in caplog.text  # where the operator of the partner reads it


def test_a_message_that_is_no_plan_is_refused_by_name(root: Path) -> None:
    grid = InProcessGrid(client_app, range(1), root)
    reply = next(iter(grid.send_and_receive([grid.create_message(RecordDict(), "train", 1, "1")])))
    assert dict(reply.content.config_records[ERROR]) == {"family": "ProtocolError"}
