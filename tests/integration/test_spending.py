"""What runs cost: nothing twice after a crash, each plan once over the same data, and no more than a partner allows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run_setting import ROUNDS, Document, paid_once, rounds

from client.agent import agent_for
from client.premises import PARTNER_FILE, Premises, write_partner
from server.admission import Admission
from server.receipts import ReceiptBook
from shared.errors import ProtocolError
from shared.privacy.ledger_audit import LedgerReport, verify_ledger
from simulations.simulate import resume, run
from simulations.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Fresh, Start

REPOSITORY = Path(__file__).parents[2]


def ledgers(root: Path) -> list[Path]:
    return sorted(root.glob("partner-*/ledger.jsonl"))


def verified(root: Path) -> list[LedgerReport]:
    """All that an auditor checks, with everybody's keys and the coordinator's own receipts."""
    admission, book = Admission.open(root), ReceiptBook(root / "receipts.json")
    found = []
    for file in ledgers(root):
        receipt = book.last(file.parent.name)
        assert receipt is not None
        identity = admission.identities[file.parent.name]
        found.append(verify_ledger(file, identity, admission.key.public, receipts=[receipt]))
    assert len(found) == 3
    return found


# --- crashes --------------------------------------------------------------------------------------

KILLS = (
    ("shared.privacy.ledger:Ledger.reserve", 5),  # round 2: paid at the second partner, no noise was drawn
    ("shared.privacy.ledger:Ledger.release", 1),  # round 2 again: drawn and kept, and nothing was sent
    ("shared.privacy.ledger:Ledger.open", 2),  # round 2 again: two have consented to the survivors
    ("client.run_folder:RunFolder.keep_sum", 1),  # round 3: drawn and kept, and not known as released
    ("server.receipts:ReceiptBook.add", 1),  # round 3 again: everybody has delivered
)
"""After how many calls of what a process is killed, one process after the other."""
DRIVER = """
import importlib, os, signal, sys
from pathlib import Path
import torch
import transformers.models.bert.modeling_bert  # what every child would have to import
import client.learner
from shared.config import parse_config
from shared.privacy.accounting import build_plan, epsilon_spent
from simulations.simulate import resume, run

torch.set_num_threads(1)
out, config, points = Path(sys.argv[1]), parse_config(sys.argv[2]), sys.argv[3:]
plan = build_plan(config)  # here, so that no child has to: it takes longer than all the rest
for rounds in range(plan.rounds + 1):
    epsilon_spent(plan, rounds)
for place, times in zip(points[::2], points[1::2], strict=True):
    child = os.fork()
    if child == 0:
        module, _, path = place.partition(":")
        owner, name = path.split(".")
        owner, left = getattr(importlib.import_module(module), owner), [int(times)]
        method = getattr(owner, name)

        def die(*told, **named):
            result = method(*told, **named)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, die)
        run(resume(out), show=False)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def spends(root: Path) -> list[tuple[float, float, int]]:
    return [(one.spent.epsilon, one.spent.delta, one.spent.plans) for one in verified(root)]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to start so many processes quickly")
def test_sigkill_in_the_middle_of_rounds_with_noise_that_cannot_be_replayed_costs_nothing(
    begin: Start, tmp_path: Path
) -> None:
    quick = {"training": {"sampling_rate": 1.0}, "privacy": {"noise_multiplier": 9.0}}  # to account for
    whole: Document = run(begin(tmp_path / "whole", replayable=False, **quick), show=False)
    out = tmp_path / "killed"
    config = begin(out, replayable=False, **quick).config
    points = [str(part) for point in KILLS for part in point]
    command = [sys.executable, "-c", DRIVER, str(out), config.model_dump_json(), *points]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), done.stderr
    assert not (out / "run.json").exists()
    document = run(resume(out), show=False)

    assert document["privacy"]["randomness"] == "system"
    assert document["privacy"] == whole["privacy"]  # epsilon and all
    assert spends(out / "partners") == spends(tmp_path / "whole" / "partners")
    assert spends(out / "partners")[0][:2] == (document["privacy"]["epsilon"], document["privacy"]["delta"])
    paid_once(out)
    for file in ledgers(out / "partners"):
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        written = Counter((one["kind"], one["fields"].get("round")) for one in entries)
        wanted = {(kind, number): 1 for kind in ("reserve", "release", "open") for number in ROUNDS}
        assert {key: times for key, times in written.items() if key[0] in ("reserve", "release", "open")} == wanted
    assert [record["cohort"] for record in rounds(out)] == [3] * len(ROUNDS)
    # The noise cannot be replayed, so that another result is the only one there can be.
    assert document["model"]["adapter_fingerprint"] != whole["model"]["adapter_fingerprint"]


# --- several runs over the same data --------------------------------------------------------------


def told_by(capfd: pytest.CaptureFixture[str]) -> str:
    return next((line for line in capfd.readouterr().err.splitlines() if "are spent before this run" in line), "")


def test_a_second_run_over_the_same_partners_starts_from_what_was_spent_and_says_so(
    begin: Start, fresh: Fresh, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = fresh().root
    first = run(begin(tmp_path / "first", partners_at=root), show=False)
    assert told_by(capfd) == ""
    second = run(begin(tmp_path / "second", partners_at=root, seed=1, privacy={"epsilon": 5.0}), show=False)
    epsilons = [document["privacy"]["epsilon"] for document in (first, second)]
    assert f"epsilon = {epsilons[0]:.4g}, delta = 1e-05 are spent before this run" in told_by(capfd)
    assert 0 < epsilons[1] < epsilons[0]
    for epsilon, delta, plans in spends(root):
        assert epsilon == pytest.approx(sum(epsilons), rel=1e-12)
        assert (delta, plans) == (2e-5, 2)
    assert first["privacy"]["ledger"] == {"epsilon": epsilons[0], "delta": 1e-5, "plans": 1}
    assert second["privacy"]["ledger"] == {"epsilon": spends(root)[0][0], "delta": 2e-5, "plans": 2}


def test_the_same_run_again_in_another_folder_is_refused_and_costs_nothing(
    begin: Start, fresh: Fresh, tmp_path: Path
) -> None:
    """It would draw other noise over the same sums for the price of one."""
    root = fresh().root
    run(begin(tmp_path / "first", partners_at=root), show=False)
    before = [file.read_bytes() for file in ledgers(root)]
    with pytest.raises(ProtocolError, match="partners refused with ReplayError"):
        run(begin(tmp_path / "again", partners_at=root), show=False)
    assert [file.read_bytes() for file in ledgers(root)] == before
    assert not (tmp_path / "again" / "adapter").exists()


def limited(workspace: Workspace, partition: int, **floor: Any) -> None:
    """One partner lowers what it allows."""
    folder = workspace.root / f"partner-{partition:03d}"
    premises = Premises.open(folder)
    assert premises.policy.server_key is not None
    told = {
        "name": premises.name,
        "simulated": True,
        "cache": str(premises.cache),
        "policy": {"server_key": premises.policy.server_key.text, **floor},
        "peers": {name: key.text for name, key in premises.peers.items()},
    }
    write_partner(folder, told)
    assert "max_epsilon" in (folder / PARTNER_FILE).read_text()
    agent_for.cache_clear()


def test_a_second_run_beyond_a_partner_s_budget_is_refused_by_that_partner_before_anything_is_spent(
    begin: Start, fresh: Fresh, tmp_path: Path
) -> None:
    workspace = fresh()
    limited(workspace, 1, max_epsilon=12.0)
    run(begin(tmp_path / "first", partners_at=workspace.root), show=False)
    before = [file.read_bytes() for file in ledgers(workspace.root)]
    with pytest.raises(ProtocolError, match="partners refused with BudgetExhaustedError"):
        run(begin(tmp_path / "second", partners_at=workspace.root, seed=1), show=False)
    assert [file.read_bytes() for file in ledgers(workspace.root)] == before
    assert not (tmp_path / "second" / "adapter").exists()


def test_a_plan_that_one_partner_does_not_allow_is_refused_by_it(begin: Start, fresh: Fresh, tmp_path: Path) -> None:
    workspace = fresh()
    limited(workspace, 1, max_epsilon=7.0)
    with pytest.raises(ProtocolError, match="partners refused with PolicyViolationError"):
        run(begin(tmp_path / "run", partners_at=workspace.root), show=False)
    assert {len(file.read_text().splitlines()) for file in ledgers(workspace.root)} == {1}  # whose ledger it is
