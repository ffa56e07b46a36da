"""Run the tests and the audit's check of mutations, each in a process of its own: ``run_mutations.py FOLDER NAME...``.

Libraries take longer to load than most tests to run. So this process loads them once and forks for every
mutation; nothing of the project is loaded before the fork, and each child sees only its own copy. Prints a JSON object:
name to verdict.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from mutations import CONTROLS, MUTATIONS
from planting import COLLECT, MECHANISM_RUNG, Mutation, PlantingError, copy_with

LOADED_ONCE = (
    "hypothesis",
    "numpy",
    "scipy.special",
    "scipy.sparse",
    "pydantic",
    "filelock",
    "safetensors.numpy",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.ciphers.aead",
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.rdp.rdp_privacy_accountant",
    "torch",
    "opacus.grad_sample",
    "transformers.models.bert.modeling_bert",
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
)
AT_ONCE, LIMIT_S = 2, 120.0
MISTAKES = {"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError"}
"""What a mutation that is no valid program fails with."""


@dataclass
class Verdict:
    """What became of one mutation.

    Attributes
    ----------
    outcome : str
        ``caught``, ``survived``, or ``broken``: the test did not run, or failed because the mutation is no program.
    told : str
        Which test failed with what, or why nothing can be said.
    seconds : float
    audit, audit_told : str
        The same of the audit's check: ``caught`` if a measurement did not hold, and which.
    """

    outcome: str
    told: str
    seconds: float = 0.0
    audit: str = ""
    audit_told: str = ""


class Watcher:
    """A pytest plugin: remembers which tests failed in their own body, and with what."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):
        report = yield
        if report.when == "call" and report.failed and call.excinfo is not None:
            self.failed.append((item.nodeid, call.excinfo.typename))
        return report


def judge(mutation: Mutation, folder: Path) -> Verdict:
    """Plant, run, and say what came of it; in a process that nothing else needs."""
    try:
        copy_with(mutation, folder)
    except PlantingError as error:
        return Verdict("broken", str(error))
    watcher = Watcher()
    code = _pytest(folder, ["-x", *(f"tests/{test}" for test in mutation.killers)], watcher)
    loaded = sys.modules.get(mutation.module)
    if loaded is None or not Path(str(loaded.__file__)).is_relative_to(folder):
        return Verdict("broken", f"the tests did not load {mutation.module} from the copy (pytest said {code})")
    if code == pytest.ExitCode.OK:
        return Verdict("survived", f"passed: {', '.join(mutation.killers)}")
    if code != pytest.ExitCode.TESTS_FAILED or not watcher.failed:
        return Verdict("broken", f"pytest said {code}, and no test failed")
    test, error_name = watcher.failed[0]
    if error_name in MISTAKES:
        return Verdict("broken", f"{test} failed with {error_name}: the mutation is no program")
    return Verdict("caught", f"{test}: {error_name}")


def audit(mutation: Mutation, folder: Path) -> tuple[str, str]:
    """What the audit says of the planted copy, in the process in which its tests ran."""
    if mutation.rung != MECHANISM_RUNG:
        return "", ""
    from shared.config import ModelConfig, RunConfig
    from simulations.audit.mechanism.checks import REFERENCE, Setting, run_check
    from simulations.audit.mechanism.registry import named

    tiny = ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8)
    scratch = folder / "audit"
    scratch.mkdir()
    try:
        outcome = run_check(named(mutation.check), Setting(REFERENCE, RunConfig(model=tiny), 0, scratch))
    except Exception as error:
        traceback.print_exc()
        return "broken", f"{mutation.check} ended with {type(error).__name__}"
    if outcome.holds:
        return "survived", f"{mutation.check} held"
    found = outcome.broken[0]
    return "caught", f"{found.name}: {found.value:g}, expected {found.expected}"


def collect(folder: Path) -> Verdict:
    """Whether every test that a mutation names exists."""
    copy_with(None, folder)
    tests = sorted({f"tests/{test}" for mutation in MUTATIONS for test in mutation.killers})
    code = _pytest(folder, ["--collect-only", *tests])
    return Verdict("collected" if code == pytest.ExitCode.OK else "broken", f"pytest said {code}")


def _pytest(folder: Path, arguments: list[str], *plugins: object) -> int:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # to look for plugins takes as long as a test
    sys.dont_write_bytecode = True  # the copy's caches are links to the project's
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *arguments], plugins))


def _start(name: str, folder: Path) -> int:
    """Fork; the child writes its verdict beside its copy."""
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        began = time.monotonic()
        by_name = {mutation.name: mutation for mutation in (*MUTATIONS, *CONTROLS)}
        verdict = collect(folder) if name == COLLECT else judge(by_name[name], folder)
        if name != COLLECT and verdict.outcome != "broken":
            verdict.audit, verdict.audit_told = audit(by_name[name], folder)
        verdict.seconds = time.monotonic() - began
        Path(f"{folder}.json").write_text(json.dumps(asdict(verdict)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def run(names: Sequence[str], work: Path) -> dict[str, Verdict]:
    """Verdicts by name."""
    for module in LOADED_ONCE:
        importlib.import_module(module)
    gc.freeze()  # no child looks for garbage in what was loaded
    waiting = [(name, work / f"{number:03d}") for number, name in enumerate(names)]
    running: dict[int, tuple[str, Path, float]] = {}
    verdicts: dict[str, Verdict] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name, folder = waiting.pop(0)
            running[_start(name, folder)] = (name, folder, time.monotonic() + LIMIT_S)
        for pid, (name, folder, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG)[0]:
                del running[pid]
                verdicts[name] = _read(folder)
        time.sleep(0.01)
    return verdicts


def _read(folder: Path) -> Verdict:
    """What a child left behind."""
    try:
        verdict = Verdict(**json.loads(Path(f"{folder}.json").read_text()))
    except (OSError, ValueError):
        verdict = Verdict("broken", f"the process ended without a verdict in {LIMIT_S:g} s")
    if verdict.outcome == "broken":
        verdict.told += "\n" + Path(f"{folder}.log").read_text(errors="replace")[-2000:]
    shutil.rmtree(folder, ignore_errors=True)
    return verdict


if __name__ == "__main__":
    told = run(sys.argv[2:], Path(sys.argv[1]))
    print(json.dumps({name: asdict(verdict) for name, verdict in told.items()}))
