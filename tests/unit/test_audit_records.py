"""Rung 0 over what a run left behind: its records are in order, and any that were changed are found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from shared.config import ModelConfig, RunConfig
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import RungResult, Verdict
from simulations.audit.mechanism.checks import REFERENCE
from simulations.audit.mechanism.registry import checks_of
from simulations.audit.mechanism.rehearsal import Rehearsal, config_of
from simulations.audit.rungs.mechanism import mechanism_rung


@pytest.fixture
def tiny(tiny_model: ModelConfig) -> RunConfig:
    return RunConfig(model=tiny_model)


def failing(result: RungResult) -> list[str]:
    return [one.name for one in result.measurements if not one.holds]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrivacyPlan, RunConfig]:
    """A whole run of three partners, as a run folder."""
    root, run = tmp_path_factory.mktemp("partners"), tmp_path_factory.mktemp("run")
    config = config_of(3, training={"sampling_rate": 0.3})
    federation = Rehearsal.of(root, 2, 3, 4)
    trained_by = federation.train(config, run / "checkpoints")
    plan = build_plan(config)
    (run / "ledgers").mkdir()
    for k in range(3):
        shutil.copy(federation.agent(k).ledger.path, run / "ledgers" / f"partner-{k:03d}.jsonl")
    lines = [json.dumps(record) for record in trained_by.checkpoint.records]
    (run / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    privacy = {**asdict(plan), "epsilon": epsilon_spent(plan, plan.rounds), "randomness": "seeded"}
    (run / "run.json").write_text(json.dumps({"privacy": privacy}))
    (run / "partners").mkdir()
    shutil.copy(root / "receipts.json", run / "partners" / "receipts.json")
    return run, plan, config


@pytest.fixture
def copy(trained: tuple[Path, PrivacyPlan, RunConfig], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def records(run: Path, plan: PrivacyPlan, config: RunConfig) -> RungResult:
    return mechanism_rung(plan, config, run, 0, checks=checks_of("records"))


def test_the_records_of_a_whole_run_are_in_order(trained: tuple[Path, PrivacyPlan, RunConfig]) -> None:
    result = records(*trained)
    assert (result.verdict, failing(result)) == (Verdict.PASS, [])
    assert len(result.measurements) >= 14


def test_without_a_run_nothing_is_said_of_records(tiny: RunConfig) -> None:
    result = mechanism_rung(REFERENCE, tiny, None, 0, checks=checks_of("records"))
    assert result.measurements == () and result.verdict is Verdict.INCONCLUSIVE


def first_ledger(run: Path) -> Path:
    return run / "ledgers" / "partner-000.jsonl"


def edit_rounds(run: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    file = run / "rounds.jsonl"
    told = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(record) + "\n" for record in told))


def edit_claim(run: Path, **changes: Any) -> None:
    told = json.loads((run / "run.json").read_text())
    told["privacy"].update(changes)
    (run / "run.json").write_text(json.dumps(told))


FORGERIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a byte of a ledger": (
        "ledgers that do not verify",
        lambda run: first_ledger(run).write_bytes(
            first_ledger(run).read_bytes().replace(b'"round":2', b'"round":7', 1)
        ),
    ),
    "the tail of a ledger": (
        "ledgers that do not verify",
        lambda run: first_ledger(run).write_bytes(b"".join(first_ledger(run).read_bytes().splitlines(True)[:-3])),
    ),
    "a ledger": ("sums in rounds done that no ledger released", lambda run: first_ledger(run).unlink()),
    "a round": ("rounds that are missing or there twice", lambda run: edit_rounds(run, lambda r: [r[0], *r[2:]])),
    "a round too many": (
        "rounds beyond the plan",
        lambda run: edit_rounds(run, lambda r: [*r, {**r[-1], "round": len(r) + 1}]),
    ),
    "a cohort": (
        "rounds with fewer partners than have to answer",
        lambda run: edit_rounds(run, lambda r: [{**r[0], "cohort": 2}, *r[1:]]),
    ),
    "the epsilon of a round": (
        "epsilon told of the last round over that recomputed",
        lambda run: edit_rounds(run, lambda r: [*r[:-1], {**r[-1], "epsilon": 0.9 * r[-1]["epsilon"]}]),
    ),
    "the epsilon claimed": (
        "epsilon claimed over that recomputed",
        lambda run: edit_claim(run, epsilon=0.5),
    ),
    "another clip norm claimed": (
        "fields of the claim that are not the plan's",
        lambda run: edit_claim(run, clip_norm=9.0),
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_records_that_were_changed_are_found(
    trained: tuple[Path, PrivacyPlan, RunConfig], copy: Path, what: str
) -> None:
    expected, forge = FORGERIES[what]
    forge(copy)
    result = records(copy, trained[1], trained[2])
    assert result.verdict is Verdict.FAIL
    assert any(expected in name for name in failing(result)), failing(result)


def test_a_run_under_another_plan_than_is_audited_is_found(trained: tuple[Path, PrivacyPlan, RunConfig]) -> None:
    run, plan, config = trained
    result = records(run, replace(plan, noise_multiplier=2 * plan.noise_multiplier), config)
    assert any("ledgers without the audited plan" in name for name in failing(result))
    assert any("fields of the claim" in name for name in failing(result))


def test_canaries_that_nobody_declared_and_seeds_over_real_data_are_found(
    trained: tuple[Path, PrivacyPlan, RunConfig],
) -> None:
    run, plan, config = trained
    real = config.model_copy(update={"simulation": False})
    assert any("seeded sources" in name for name in failing(records(run, plan, real)))
    declared = replace(plan, canaries=3)
    assert records(run, declared, config).verdict is Verdict.FAIL


def test_records_that_cannot_be_read_are_a_finding(trained: tuple[Path, PrivacyPlan, RunConfig], copy: Path) -> None:
    (copy / "rounds.jsonl").write_text("not JSON\n")
    result = records(copy, trained[1], trained[2])
    assert any("IntegrityError" in name for name in failing(result))
