"""A partner's ledger among real processes: killed at any point, and racing for the last of a budget."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledgers import asked, flat, refused

from shared.errors import ReplayError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_audit import verify_ledger

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
ROUNDS = 200
START = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from ledgers import PLAN, asked, digest
from shared.errors import BudgetExhaustedError, LedgerError
from shared.files import write_bytes
from shared.hazmat.signing import SigningKey
from shared.privacy import ledger as module
from shared.privacy.ledger import Ledger
folder = Path(sys.argv[1])
key = SigningKey.load(folder / "key.pem")
path = folder / "ledger.jsonl"
"""
WORK = """
plan = replace(PLAN, rounds=int(sys.argv[2]))
ledger = Ledger(path, key)
ledger.declare("run", plan, 3.0, 8.0, 1e-4)
print("ready", flush=True)
for round_ in range(1, plan.rounds + 1):
    if ledger.released("run", round_) is not None:
        continue
    ledger.reserve(asked(round_, plan=plan))
    noise = folder / f"noise-{round_}"
    if not noise.exists():
        write_bytes(noise, str(ledger.head().count).encode())
    ledger.release("run", round_, digest(noise.read_text()))
"""
CRASH = """
ledger = Ledger(path, key)
ledger.declare("run", PLAN, 3.0, 8.0, 1e-4)
point = sys.argv[2]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
write, fsync = os.write, os.fsync
def dying_write(fd, data):
    if point == "before the write":
        die()
    written = write(fd, data[:len(data) // 2] if point == "in the write" else data)
    if point in ("in the write", "after the write"):
        die()
    return written
def dying_fsync(fd):
    fsync(fd)
    if point == "after the fsync":
        die()
os.write, os.fsync = dying_write, dying_fsync
ledger.reserve(asked(1))
die()
"""
RACE = """
for trial in range(int(sys.argv[3])):
    go = folder / f"go-{trial}"
    print("ready", flush=True)
    while not go.exists():
        pass
    try:
        Ledger(folder / f"ledger-{trial}", key).declare(sys.argv[2], PLAN, 5.0, 8.0, 1e-4)
        print("won", flush=True)
    except BudgetExhaustedError:
        print("refused", flush=True)
    except LedgerError:
        print("broken", flush=True)
"""
NO_LOCK = """
class NoLock:
    def __init__(self, *_, **__): pass
    def acquire(self): return self
    def __enter__(self): return self
    def __exit__(self, *_): pass
module.FileLock, seal = NoLock, module.seal
def slow_seal(index, *rest):
    time.sleep(1.0 if index else 0)
    return seal(index, *rest)
module.seal = slow_seal
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    paths = f"import sys; sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]\n"
    command = [sys.executable, "-c", paths + START + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a key, and will hold a ledger and the noise that was drawn."""
    SigningKey.load_or_create(tmp_path / "key.pem")
    return tmp_path


def key_of(folder: Path) -> SigningKey:
    return SigningKey.load(folder / "key.pem")


def unrecorded(folder: Path) -> list[int]:
    """Rounds whose noise was drawn though no reservation was on the disk before it."""
    path = folder / "ledger.jsonl"
    reserved: dict[int, tuple[int, str]] = {}
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        entry = json.loads(line)
        if entry["kind"] == "reserve":
            reserved[entry["fields"]["round"]] = (entry["index"], entry["time"])
    found = []
    for noise in folder.glob("noise-*"):
        round_ = int(noise.name.partition("-")[2])
        # The drawer wrote down how many entries there were when it drew.
        if round_ not in reserved or reserved[round_][0] >= int(noise.read_text()):
            found.append(round_)
    return found


def test_killed_at_random_points_of_200_rounds_it_never_spends_unrecorded(folder: Path) -> None:
    path, dice, kills, life = folder / "ledger.jsonl", random.Random(0), 0, 0.04
    while True:
        worker = start(WORK, folder, ROUNDS)
        assert worker.stdout is not None
        # One life in four may end before its first round; a round takes milliseconds.
        if dice.random() < 0.75:
            worker.stdout.readline()
        time.sleep(dice.uniform(0.0, life))
        life *= 1.1  # so that it ends on a slow machine too
        worker.kill()
        assert worker.wait() in (0, -signal.SIGKILL)
        kills += worker.returncode == -signal.SIGKILL
        worker.stdout.close()
        assert unrecorded(folder) == []
        if path.exists() and path.stat().st_size:
            report = verify_ledger(path, key_of(folder).public, accountant=flat)
            drawn = len(list(folder.glob("noise-*")))
            assert sum(run.reserved for run in report.runs) >= drawn >= sum(run.released for run in report.runs)
            if report.runs and report.runs[0].released == ROUNDS:
                break
    print(f"{kills} kills in {ROUNDS} rounds")
    assert kills >= 5
    assert (report.spent.epsilon, report.spent.plans) == (3.0, 1)
    assert (report.runs[0].reserved, report.runs[0].dangling) == (ROUNDS, 0)


def test_noise_that_is_drawn_before_its_reservation_would_be_found(folder: Path) -> None:
    bug = WORK.replace("    ledger.reserve(", "    early = ledger.head().count\n    ledger.reserve(").replace(
        "str(ledger.head().count)", "str(early)"
    )
    assert bug != WORK
    worker = start(bug, folder, 3)
    assert worker.wait(timeout=30) == 0
    assert worker.stdout is not None
    worker.stdout.close()
    assert sorted(unrecorded(folder)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("point", "spent"),
    [
        ("before the write", False),
        ("in the write", False),
        ("after the write", True),
        ("after the fsync", True),
        ("after the reserve", True),
    ],
)
def test_a_crash_around_a_reserve_leaves_a_ledger_that_goes_on(folder: Path, point: str, spent: bool) -> None:
    worker = start(CRASH, folder, point)
    assert worker.wait(timeout=30) == -signal.SIGKILL
    assert worker.stdout is not None
    worker.stdout.close()
    path, key = folder / "ledger.jsonl", key_of(folder)
    report = verify_ledger(path, key.public, accountant=flat)
    assert (report.runs[0].reserved, report.runs[0].dangling) == (spent, spent)
    assert (report.torn_bytes > 0) == (point == "in the write")
    ledger = Ledger(path, key)
    before = path.read_bytes()
    if spent:  # the round is taken: for this request and no other
        refused(path, ReplayError, "same request", lambda: ledger.reserve(asked(1, of="another")))
        ledger.reserve(asked(1))
        assert path.read_bytes() == before
    ledger.reserve(asked(1))
    ledger.reserve(asked(2))
    ledger.reserve(asked(3))
    assert verify_ledger(path, key.public, accountant=flat).runs[0].reserved == 3


def race(folder: Path, code: str, trials: int) -> list[list[str]]:
    """Two processes that declare plans of epsilon 5 in a budget of 8 at the same moment, `trials` times."""
    racers = [start(code, folder, name, trials) for name in ("left", "right")]
    results = []
    for trial in range(trials):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        (folder / f"go-{trial}").touch()
        results.append(sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout))
    for racer in racers:
        racer.wait(timeout=30)
        assert racer.stdout is not None
        racer.stdout.close()
    return results


def test_of_two_processes_exactly_one_gets_the_last_of_the_budget(folder: Path) -> None:
    assert race(folder, RACE, 20) == [["refused", "won"]] * 20
    for trial in range(20):
        report = verify_ledger(folder / f"ledger-{trial}", key_of(folder).public, accountant=flat)
        assert (report.spent.epsilon, report.spent.plans, report.head.count) == (5.0, 1, 2)


def test_without_the_lock_the_race_would_be_lost(folder: Path) -> None:
    # The planted bug. One ledger is there already, so that the two meet in the plan; the second to write takes
    # the first one's line for a torn one, or breaks the chain.
    Ledger(folder / "ledger-0", key_of(folder))
    (results,) = race(folder, NO_LOCK + RACE, 1)
    assert "refused" not in results
