"""Audit canaries in whole simulations: killed, resumed, told, found again; and with half of the noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from run_setting import Killed

from client import privatize
from client.agent import agent_for
from client.audit_canaries import reveal
from server.audit_sum import AuditSum
from server.checkpoint import Checkpoint, CheckpointStore
from server.gathering import Gathered
from shared.errors import ReplayError
from shared.privacy.ledger_audit import verify_ledger
from simulations.audit.findings import Verdict
from simulations.audit.rungs.cosines import audit_run
from simulations.simulate import Simulation, _train, resume

if TYPE_CHECKING:
    from conftest import Start

pytestmark = pytest.mark.slow
CANARIES = 80


def train(simulation: Simulation) -> None:
    _train(simulation, lambda _: None, "")


def begun(begin: Start, out: Path) -> Simulation:
    return begin(out, audit={"canaries": CANARIES})


def partners(simulation: Simulation) -> list[Path]:
    return [simulation.workspace.root / f"partner-{k:03d}" for k in range(simulation.workspace.partners)]


def killed_before_a_checkpoint(number: int, patch: pytest.MonkeyPatch) -> None:
    """The round's sum is opened, and added up for the audit; the coordinator does not live to keep the round."""
    save = CheckpointStore.save

    def killed(self: CheckpointStore, checkpoint: Checkpoint) -> None:
        if checkpoint.round == number:
            raise Killed
        save(self, checkpoint)

    patch.setattr(CheckpointStore, "save", killed)


def test_a_run_that_is_killed_between_sum_and_checkpoint_is_audited_as_if_it_had_not_been(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[int, Any] = {}
    add = AuditSum.with_round

    def seen(self: AuditSum, number: int, gathered: Gathered) -> AuditSum:
        opened.setdefault(number, []).append(gathered.total)
        return add(self, number, gathered)

    monkeypatch.setattr(AuditSum, "with_round", seen)
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_before_a_checkpoint(3, patch)
        train(begun(begin, out))
    run_id = AuditSum.read(out).run_id
    agent_for.cache_clear()  # other processes
    again = resume(out)
    with pytest.raises(ReplayError, match="Expected a run that is over"):
        reveal(agent_for(partners(again)[0]).premises, run_id)
    train(again)
    kept = AuditSum.read(out)
    assert kept.rounds == (2, 3, 4) and [len(opened[number]) for number in kept.rounds] == [1, 2, 1]
    np.testing.assert_array_equal(opened[3][0], opened[3][1])
    np.testing.assert_array_equal(kept.total, sum(opened[number][0] for number in kept.rounds))
    for folder in partners(again):
        (run,) = verify_ledger(folder / "ledger.jsonl").runs
        assert (run.canaries, run.finished) == (CANARIES, True) and run.commitment is not None
    found = audit_run(out, partners(again))
    assert found.verdict is not Verdict.FAIL and found.facts["canaries"] == 3 * CANARIES
    assert all(each.holds for each in found.measurements)
    inside, outside = found.scores[0].inside, found.scores[0].outside
    # Above chance: correct code has them 4 to 6 standard errors apart (three seen), chance above 2.5 in 6 of 1,000.
    assert inside.mean() - outside.mean() > 2.5 * np.sqrt((inside.var() + outside.var()) / len(inside))


def test_half_of_the_noise_is_found_in_a_whole_run(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = privatize.skellam
    monkeypatch.setattr(privatize, "skellam", lambda source, at, n, variance: real(source, at, n, variance / 4))
    simulation = begun(begin, tmp_path / "run")
    train(simulation)
    found = audit_run(simulation.out, partners(simulation))
    assert found.verdict is Verdict.FAIL and found.estimates[0].refutes
    assert not all(each.holds for each in found.measurements)
