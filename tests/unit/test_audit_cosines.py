"""Rung 3: canaries are found in what was released, and too much of them refutes the plan.

A small federation without users: real canaries, lattice, noise shares, ledgers and sums, of 10,000 coordinates.
Seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import privatize
from client.audit_canaries import Reveal, add_canaries, canary_names, commitment_of, direction
from client.privatize import add_noise_share, sample_users
from server.audit_sum import SUM_FILE, AuditSum, with_audit_sum
from server.gathering import Gathered
from shared.config import AuditConfig, FederationConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import ConfigError, DataError, IntegrityError, LedgerError, PolicyViolationError
from shared.files import write_json
from shared.hazmat.randomness import SeededRandomness
from shared.hazmat.signing import SigningKey
from shared.messages import ClippedSum
from shared.privacy.accounting import build_plan
from shared.privacy.ledger import Ledger, Reservation
from shared.privacy.ledger_entries import Commitment
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import ENOUGH_POWER, RungResult, Verdict
from simulations.audit.rungs.cosines import Setting, audit, power, refutes

D, PARTNERS, CANARIES, ROUNDS = 10_000, 3, 33, 4
CONFIG = RunConfig(
    prior=PriorConfig(kind="none"),
    training=TrainingConfig(rounds=ROUNDS, sampling_rate=0.5),
    privacy=PrivacyConfig(population=60, noise_multiplier=2.0),
    federation=FederationConfig(partners=PARTNERS),
    audit=AuditConfig(canaries=CANARIES),
)
"""The largest mu is 0.5: 99 canaries tell it from 1, which is that of half of the noise."""
NAMES = tuple(f"partner-{k:03d}" for k in range(PARTNERS))
NOBODY = np.zeros(D)


@dataclass
class Made:
    """A finished run: its folder, what the partners tell, and their ledgers."""

    run: Path
    reveals: list[Reveal]
    ledgers: dict[str, Path]

    def audit(self, **changes: Any) -> RungResult:
        told = {"reveals": self.reveals, "ledgers": self.ledgers} | changes
        return audit(self.run, **told)


def make(run: Path, config: RunConfig = CONFIG, *, seed: int = 0, people: np.ndarray[Any, Any] = NOBODY) -> Made:
    """Play a run: every partner adds its part of `people` (in clip norms), its canaries and its share of the noise."""
    plan, seeds = build_plan(config), {name: bytes([k + 1]) * 32 for k, name in enumerate(NAMES)}
    see = with_audit_sum(None, run, "run", plan, D)
    assert see is not None
    for number in range(1, plan.rounds + 1):
        total = np.zeros(D, dtype=np.int64)
        for name in NAMES:
            source = SeededRandomness(seed, name)
            clipped = ClippedSum(people * plan.clip_norm / PARTNERS, plan.partner_clip_norm)
            taken = sample_users(canary_names(plan), plan, source, f"{number}/canaries")
            clipped = add_canaries(clipped, plan, seeds[name], taken.tolist())
            total += add_noise_share(clipped, plan, "train", source, str(number)).values
        see(number, "train", Gathered(total, PARTNERS, (), 0))
    write_json(run / "config.json", config.model_dump(mode="json"))
    ledgers = {name: run / f"{name}.jsonl" for name in NAMES}
    for name, path in ledgers.items():
        write_ledger(path, plan, seeds[name])
    told = [Reveal("run", name, plan.canaries, seeds[name].hex(), commitment_of(seeds[name])) for name in NAMES]
    return Made(run, told, ledgers)


def write_ledger(path: Path, plan: PrivacyPlan, seed: bytes) -> None:
    ledger = Ledger(path, SigningKey.generate())
    ledger.declare("run", plan, None if plan.mode == "none" else 9.0, math.inf, 1.0)
    ledger.commit(Commitment("run", plan.canaries, commitment_of(seed)))
    ledger.reserve(Reservation.of(plan, "run", 1, "train", "0" * 64))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="module")
def result(honest: Made) -> RungResult:
    return honest.audit()


def halve_the_noise(patch: pytest.MonkeyPatch) -> None:
    real = privatize.skellam
    patch.setattr(privatize, "skellam", lambda source, at, n, variance: real(source, at, n, variance / 4))


# --- what it finds --------------------------------------------------------------------------------


def test_a_run_that_does_as_it_says_passes(result: RungResult) -> None:
    """False alarms are one in twenty by design, for a seed drawn at random; the next test has their rate."""
    (one,) = result.estimates
    assert result.verdict is Verdict.PASS and not one.refutes and one.parametric
    assert one.claimed is not None and one.lower_bound is not None and one.lower_bound < one.claimed
    assert one.claimed < result.facts["epsilon_of_the_run"]  # of all rounds, with every iterate seen
    assert result.power == one.power and result.power is not None and result.power > 0.95
    assert RungResult.from_json(result.to_json()).verdict is Verdict.PASS


def test_canaries_that_took_part_are_found_and_directions_that_nobody_added_are_not(result: RungResult) -> None:
    """Means and spread within 5 standard errors: missed once in 600,000 runs of correct code."""
    (scores,) = result.scores
    k = len(scores.inside)
    assert k == len(scores.outside) == PARTNERS * CANARIES
    assert abs(scores.outside.mean()) < 5 / math.sqrt(k * D)
    assert abs(scores.outside.std() * math.sqrt(D) - 1) < 5 / math.sqrt(2 * k)
    # In half of four steps, beside noise of two lengths a step: 2 of 4.
    assert abs(scores.inside.mean() * math.sqrt(D) - 0.5) < 5 * math.sqrt(1.1 / k)


def test_half_of_the_noise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halve_the_noise(monkeypatch)
    found = make(tmp_path).audit()
    assert found.verdict is Verdict.FAIL and found.estimates[0].refutes
    (spread,) = found.measurements
    assert not spread.holds and spread.value == pytest.approx(0.5, abs=0.02)


def test_half_of_the_noise_is_found_where_people_make_the_sum_as_long_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canaries are hidden as well as by the claimed noise; but people stay from round to round, noise does not."""
    people = np.random.default_rng(3).normal(size=D)
    people *= math.sqrt(3 * D / ROUNDS) / np.linalg.norm(people)  # over the rounds: 12 of the 16 that noise has
    halve_the_noise(monkeypatch)
    found = make(tmp_path, people=people).audit()
    assert not found.estimates[0].refutes and found.power is not None and found.power < ENOUGH_POWER
    (spread,) = found.measurements
    assert not spread.holds and found.verdict is Verdict.FAIL


def test_noise_that_is_used_again_in_every_round_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = privatize.skellam
    monkeypatch.setattr(privatize, "skellam", lambda source, _, n, variance: real(source, "1/noise", n, variance))
    found = make(tmp_path).audit()
    assert found.verdict is Verdict.FAIL and found.measurements[0].value < 0.1


def test_canaries_that_are_always_in_are_found_where_half_is_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.sample_users", lambda names, *_: np.arange(len(names)), raising=True)
    found = make(tmp_path).audit()
    assert found.verdict is Verdict.FAIL and found.estimates[0].refutes
    assert all(each.holds for each in found.measurements)


def test_an_audit_that_would_have_seen_nothing_never_says_pass(honest: Made, tmp_path: Path) -> None:
    few = honest.audit(reveals=honest.reveals[:1])
    assert few.power is not None and (few.verdict is Verdict.PASS) == (few.power >= ENOUGH_POWER)
    scarce = CONFIG.model_copy(update={"audit": AuditConfig(canaries=3)})
    found = make(tmp_path / "scarce", scarce).audit()
    assert found.power is not None and found.power < 0.5 and found.verdict is Verdict.INCONCLUSIVE
    hidden = make(tmp_path / "hidden", people=np.full(D, 12.0)).audit()  # six times the noise of a round, everywhere
    assert hidden.power is not None and hidden.power < 0.2 and hidden.verdict is Verdict.INCONCLUSIVE


def test_a_run_without_privacy_has_no_claim_and_does_not_pass(tmp_path: Path) -> None:
    plain = CONFIG.model_copy(
        update={
            "privacy": PrivacyConfig(mode="none", population=60),
            "federation": FederationConfig(partners=PARTNERS, secure_sum=False),
        }
    )
    found = make(tmp_path, plain).audit()
    assert found.verdict is Verdict.INCONCLUSIVE and found.power is None
    assert found.estimates[0].claimed is None and not found.estimates[0].refutes
    assert found.epsilon_lower_bound is not None and found.epsilon_lower_bound > 5


# --- the simulated audit --------------------------------------------------------------------------


def test_false_alarms_are_at_most_one_in_twenty() -> None:
    """Over 1,000 simulated audits each: 5 % and 3 standard errors, missed once in 700 runs at exactly 5 %."""
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    for k, rate, noise in ((180, 0.5, 2.0), (700, 0.2, 2.3), (40, 0.05, 1.0), (20, 1.0, 6.0)):
        setting = Setting(100 * k, 8, rate, noise)
        assert power(setting, k, 1e-5, noise_factor=1.0) <= most
        assert power(setting, k, 1e-5, noise_factor=1.0, others=setting.noise_energy) < 0.02


def test_power_grows_with_canaries_and_falls_with_what_hides_them() -> None:
    setting = Setting(20_000, 4, 0.5, 2.0)
    by_canaries = [power(setting, k, 1e-5) for k in (5, 20, 60, 180)]
    by_others = [power(setting, 60, 1e-5, others=times * setting.noise_energy) for times in (0.0, 0.5, 2.0)]
    assert by_canaries == sorted(by_canaries) and by_canaries[0] < 0.5 and by_canaries[-1] > 0.99
    assert by_others == sorted(by_others, reverse=True) and by_others[-1] < 0.2
    with pytest.raises(ConfigError, match="Expected a plan with privacy"):
        power(replace(setting, noise=0.0), 60, 1e-5)


def test_the_simulated_cosines_are_those_of_vectors() -> None:
    """Means and standard deviations over 30 runs of 40 canaries: 5 standard errors, missed once in 10^6."""
    k, rng, setting = 40, np.random.default_rng(1), Setting(4_000, 6, 0.3, 0.7)
    units = np.stack([direction(b"\1" * 32, number, setting.size) for number in range(k)])
    people = 3.0 * np.sqrt(np.arange(setting.size) / setting.size)
    explicit, simulated = [], []
    for _ in range(30):
        taken = rng.binomial(setting.steps, setting.rate, k)
        noise = setting.noise * math.sqrt(setting.steps) * rng.standard_normal(setting.size)
        total = taken @ units + rng.permutation(people) * rng.choice([-1, 1], setting.size) + noise
        explicit.append(units @ total / np.linalg.norm(total))
        simulated.append(setting.simulate(k, 1.0, float(people @ people), rng))
    first, second = np.concatenate(explicit), np.concatenate(simulated)
    error = first.std() / math.sqrt(len(first))
    assert abs(first.mean() - second.mean()) < 5 * math.sqrt(2) * error
    assert abs(first.std() / second.std() - 1) < 5 / math.sqrt(len(first))
    assert not refutes(first[:k], setting, 1e-5)


# --- what it does not take ------------------------------------------------------------------------


def changed(reveals: list[Reveal], **values: Any) -> list[Reveal]:
    return [replace(reveals[0], **values), *reveals[1:]]


BAD: list[tuple[str, Callable[[Made], dict[str, Any]], type[Exception], str]] = [
    (
        "another seed",
        lambda it: {"reveals": changed(it.reveals, seed="00" * 32, commitment=commitment_of(bytes(32)))},
        IntegrityError,
        "partner-000: Expected the seed that its ledger was bound to",
    ),
    ("no seed", lambda it: {"reveals": changed(it.reveals, seed="zz")}, DataError, "Expected a seed in hexadecimal"),
    ("fewer", lambda it: {"reveals": changed(it.reveals, canaries=32)}, IntegrityError, "was bound to"),
    ("another run", lambda it: {"reveals": changed(it.reveals, run_id="x")}, IntegrityError, "sum of one run"),
    ("twice", lambda it: {"reveals": [*it.reveals, it.reveals[0]]}, DataError, "Expected every partner once"),
    ("nobody", lambda it: {"reveals": []}, DataError, "two canaries whose seeds were told"),
    ("no ledger", lambda it: {"ledgers": {}}, DataError, "Expected a copy of the ledger of partner-000"),
    (
        "another's ledger",
        lambda it: {"ledgers": dict.fromkeys(NAMES, it.ledgers[NAMES[1]])},
        IntegrityError,
        "partner-000: Expected the seed that its ledger was bound to",
    ),
]


@pytest.mark.parametrize(("what", "changes", "family", "told"), BAD, ids=[bad[0] for bad in BAD])
def test_what_a_partner_tells_is_held_against_its_ledger(
    honest: Made, what: str, changes: Callable[[Made], dict[str, Any]], family: type[Exception], told: str
) -> None:
    with pytest.raises(family, match=told):
        honest.audit(**changes(honest))


def test_a_changed_ledger_or_plan_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, CONFIG.model_copy(update={"training": TrainingConfig(rounds=1, sampling_rate=0.5)}))
    write_json(tmp_path / "config.json", CONFIG.model_dump(mode="json"))
    with pytest.raises(IntegrityError, match="Expected ledger, plan and sum of one run"):
        made.audit()
    ledger = made.ledgers[NAMES[2]]
    ledger.write_bytes(ledger.read_bytes().replace(b'"canaries":33', b'"canaries":32'))
    with pytest.raises(LedgerError, match="line 2"):
        made.audit(reveals=made.reveals[2:])


# --- the coordinator's sum ------------------------------------------------------------------------


def gathered(value: int, partners: int = 3) -> Gathered:
    return Gathered(np.full(D, value, dtype=np.int64), partners, (), 0)


def test_opened_sums_add_up_and_a_round_that_is_opened_again_counts_once(tmp_path: Path) -> None:
    seen: list[int] = []
    see = with_audit_sum(lambda number, *_: seen.append(number), tmp_path, "run", build_plan(CONFIG), D)
    assert see is not None
    for number, value in ((2, 5), (3, 7), (3, 7), (4, 11)):  # killed after round 3, before its checkpoint
        see(number, "train", gathered(value, number))
    see(1, "prior", gathered(1000))
    kept = AuditSum.read(tmp_path)
    assert (kept.run_id, kept.rounds, kept.cohorts) == ("run", (2, 3, 4), (2, 3, 4))
    assert (kept.total == 23).all() and (kept.before == 12).all()
    assert kept.energies == pytest.approx([25 * D, 49 * D, 121 * D])
    assert seen == [2, 3, 3, 4, 1]


def test_a_sum_of_another_run_is_begun_anew(tmp_path: Path) -> None:
    for run_id, value in (("one", 5), ("two", 7)):
        see = with_audit_sum(None, tmp_path, run_id, build_plan(CONFIG), D)
        assert see is not None
        see(1, "train", gathered(value))
    kept = AuditSum.read(tmp_path)
    assert (kept.run_id, kept.rounds) == ("two", (1,)) and (kept.total == 7).all()


def test_without_canaries_nothing_is_kept(tmp_path: Path) -> None:
    plain = replace(build_plan(CONFIG), canaries=0)
    assert with_audit_sum(None, tmp_path, "run", plain, D) is None
    assert list(tmp_path.iterdir()) == []


def test_the_coordinator_refuses_more_canaries_than_the_model_tells_apart(tmp_path: Path) -> None:
    with pytest.raises(PolicyViolationError, match="Expected canaries <= 30 at each of 3 partners"):
        with_audit_sum(None, tmp_path, "run", build_plan(CONFIG), 9_000)


@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_a_sum_that_cannot_be_read_is_said_to_be(tmp_path: Path, how: str) -> None:
    AuditSum("run", (1,), (3,), (5.0,), *(np.ones(5, dtype=np.int64),) * 2).write(tmp_path)
    file = tmp_path / SUM_FILE
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        AuditSum("run", (1,), (3, 3), (5.0,), *(np.ones(5, dtype=np.int64),) * 2).write(tmp_path)
    with pytest.raises(DataError, match=r"sum\.safetensors: Expected"):
        AuditSum.read(tmp_path)
