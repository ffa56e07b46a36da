"""The engines run one code: what Ray and ``flwr run`` train is what the in-process grid trains."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.app import app as client_app
from server.app import run_federation
from server.strategy import Observer
from shared.adapter import flatten_parameters, load_release
from shared.config import FederationConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import CohortTooSmallError, ConfigError, ProtocolError
from simulations import ray
from simulations.federation import InProcessGrid
from simulations.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Done

REPOSITORY = Path(__file__).parents[2]
SUPERLINK_PORT = 39091
"""Of the local SuperLink that ``flwr run`` starts; Flower gives no choice."""
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8),
    training=TrainingConfig(rounds=2, sampling_rate=0.5, precision="float32"),
    privacy=PrivacyConfig(mode="none", population=90),
    federation=FederationConfig(partners=3, timeout_s=120),
)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def workspace(whole: Done) -> Workspace:
    return Workspace.open(whole.out / "partners")


def trained_in_process(workspace: Workspace, out: Path) -> np.ndarray[Any, Any]:
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    run_federation(grid, CONFIG, workspace.catalogue, out)
    return flatten_parameters(load_release(out / "adapter").model)


def silent(_: Mapping[str, object]) -> None:
    pass


def on_ray(workspace: Workspace, out: Path, observer: Observer = silent) -> None:
    ray.run_on_ray(CONFIG, workspace, out, observer)


@pytest.mark.slow
@needs_ray
# Ray leaves to the garbage collector what it opened and started.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.+ name='/dev/null':ResourceWarning")
@pytest.mark.filterwarnings("ignore:subprocess .+ is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning:ray")
def test_ray_trains_what_the_in_process_grid_trains(workspace: Workspace, tmp_path: Path) -> None:
    seen: list[object] = []
    on_ray(workspace, tmp_path / "ray", lambda record: seen.append(record["round"]))
    expected = trained_in_process(workspace, tmp_path / "here")
    found = flatten_parameters(load_release(tmp_path / "ray" / "adapter").model)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert seen == [1, 2, 3]
    gc.collect()  # here, where its warnings are expected


def test_without_ray_the_engine_says_what_to_install(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"veilrec\[ray\]"):
        on_ray(workspace, tmp_path)


# --- flwr run -------------------------------------------------------------------------------------


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment for Flower's commands; what they leave running in it is stopped."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", SUPERLINK_PORT)) == 0:
            pytest.skip("a local SuperLink is running already: this test would not get one of its own")
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to find the processes that Flower leaves behind")
    home = tmp_path / "flower"
    home.mkdir()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        yield environment
    finally:
        _stop(f"FLWR_HOME={home}".encode())


def _stop(mark: bytes) -> None:
    """Stop all processes whose environment holds `mark`: first politely, then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        for number in _processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, how)
        deadline = time.monotonic() + 10
        while _processes(mark) and time.monotonic() < deadline:
            time.sleep(0.1)


def _processes(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def flwr(environment: dict[str, str], empty: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``flwr`` from an empty folder: Ray would import a package of this name from the current one."""
    empty.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("flwr")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=empty, check=False, timeout=300)


def status_of_last_run(environment: dict[str, str], empty: Path) -> str:
    """``flwr run`` exits with 0 even when the run failed; what became of it is in the list of runs."""
    deadline = time.monotonic() + 60
    while True:
        runs = json.loads(flwr(environment, empty, "list", "--format", "json").stdout)["runs"]
        status = str(runs[0]["status"])
        if status.startswith("finished") or time.monotonic() > deadline:
            return status
        time.sleep(1)


def settings(workspace: Workspace, out: Path, config: RunConfig) -> str:
    return f"data-root='{workspace.root}' out='{out}' config='{config.model_dump_json()}'"


@pytest.mark.slow
@pytest.mark.e2e
@needs_ray
def test_flwr_run_trains_what_the_in_process_grid_trains_and_tells_when_it_cannot(
    flower: dict[str, str], workspace: Workspace, tmp_path: Path
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    supernodes = ("--federation-config", "num-supernodes=3")
    run = ("run", str(REPOSITORY), "--stream", *supernodes, "-c")
    done = flwr(flower, empty, *run, settings(workspace, out, CONFIG))
    assert status_of_last_run(flower, empty) == "finished:completed", done.stdout + done.stderr
    found = flatten_parameters(load_release(out / "adapter").model)
    expected = trained_in_process(workspace, tmp_path / "here")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert [json.loads(line)["round"] for line in (out / "rounds.jsonl").read_text().splitlines()] == [1, 2, 3]

    # Without data the run must be seen to have failed.
    flwr(flower, empty, *run, "out='nowhere'")
    assert status_of_last_run(flower, empty).startswith("finished:failed")


def test_no_family_is_lost_on_its_way_through_flower(workspace: Workspace, tmp_path: Path) -> None:
    """What goes wrong at the partners ends `run_federation` with an error of ours, on any grid."""
    elsewhere = InProcessGrid(client_app, range(3), tmp_path / "no such folder")
    with pytest.raises(ProtocolError, match="partners refused with ConfigError"):
        run_federation(elsewhere, CONFIG, workspace.catalogue, tmp_path / "a")
    short = CONFIG.model_copy(update={"federation": FederationConfig(partners=3, timeout_s=0.01)})
    with pytest.raises(CohortTooSmallError):
        run_federation(InProcessGrid(client_app, range(2), workspace.root), short, workspace.catalogue, tmp_path / "b")
