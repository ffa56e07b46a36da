"""One code: with privacy and without, over many partners and over one, in-process, on Ray and under ``flwr run``."""

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import client.agent
import client.app
import client.privatize
import client.training
import server.app
import server.strategy
from client.app import app as client_app
from server.app import run_federation
from server.checkpoint import Checkpoint
from server.strategy import Observer
from shared.adapter import flatten_parameters, load_release
from shared.config import FederationConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import CohortTooSmallError, ConfigError, ProtocolError
from shared.messages import RoundPlan
from simulations import ray
from simulations.federation import InProcessGrid
from simulations.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Done, Start

REPOSITORY = Path(__file__).parents[2]
SUPERLINK_PORT = 39091
"""Of the local SuperLink that ``flwr run`` starts; Flower gives no choice."""
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8),
    training=TrainingConfig(rounds=2, sampling_rate=0.5, precision="float32", microbatch=256),
    privacy=PrivacyConfig(mode="none", population=90),
    federation=FederationConfig(partners=3, timeout_s=120),
)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def workspace(whole: Done) -> Workspace:
    return Workspace.open(whole.out / "partners")


def federated(workspace: Workspace, config: RunConfig, out: Path) -> Checkpoint:
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    return run_federation(grid, config, workspace.catalogue, out)


def trained_in_process(workspace: Workspace, out: Path) -> np.ndarray[Any, Any]:
    federated(workspace, CONFIG, out)
    return flatten_parameters(load_release(out / "adapter").model)


def silent(_: Mapping[str, object]) -> None:
    pass


def on_ray(workspace: Workspace, out: Path, observer: Observer = silent) -> None:
    ray.run_on_ray(CONFIG, workspace, out, observer)


# --- one code path --------------------------------------------------------------------------------

SPIED: tuple[tuple[Any, str], ...] = (
    (client.app, "unpack_round"),
    (client.app, "pack_update"),
    (client.agent, "sample_users"),
    (client.agent, "clipped_statistics"),
    (client.agent, "add_noise_share"),
    (client.training, "clip_and_sum"),
    (client.training.UserGradients, "clipped_sum"),
    (client.training.UserGradients, "of"),
    (server.strategy, "pack_round"),
    (server.strategy, "unpack_update"),
    (server.strategy, "solve"),
    (server.strategy, "apply_mean_gradient"),
    (server.app, "save_release"),
)


def spy(patch: pytest.MonkeyPatch) -> tuple[list[str], list[RoundPlan]]:
    """The names of the functions that are called, in order, and the plans that come to the partners."""
    called: list[str] = []
    plans: list[RoundPlan] = []
    for owner, name in SPIED:
        function = getattr(owner, name)

        def told(*args: Any, _name: str = name, _function: Callable[..., Any] = function, **named: Any) -> Any:
            called.append(_name)
            answer = _function(*args, **named)
            if _name == "unpack_round":
                plans.append(answer[0])
            return answer

        patch.setattr(owner, name, told)
    return called, plans


def test_none_and_distributed_call_the_same_functions_and_only_the_plan_differs(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, plans, draws = {}, {}, {}
    for mode in ("none", "distributed"):
        private = PrivacyConfig(mode=mode, population=90, noise_multiplier=1.0)
        config = CONFIG.model_copy(update={"privacy": private})
        drawn: list[str] = []
        with monkeypatch.context() as patch:
            gaussian = client.privatize.gaussian  # type: ignore[attr-defined]
            patch.setattr(client.privatize, "gaussian", lambda *a, d=drawn, g=gaussian: (d.append(a[1]), g(*a))[1])
            traces[mode], plans[mode] = spy(patch)
            federated(workspace, config, tmp_path / mode)
        draws[mode] = len(drawn)
    assert traces["none"] == traces["distributed"]
    assert set(traces["none"]) == {name for _, name in SPIED}
    assert draws == {"none": 0, "distributed": 3 * 3}
    for open_plan, private_plan in zip(plans["none"], plans["distributed"], strict=True):
        same = {"mode", "noise_multiplier", "prior_noise_multiplier"}
        noise = {name: getattr(private_plan.plan, name) for name in same}
        assert replace(open_plan.plan, **noise) == private_plan.plan
        privacy = open_plan.config.privacy.model_copy(update={"mode": "distributed"})
        assert open_plan.config.model_copy(update={"privacy": privacy}) == private_plan.config


@pytest.mark.parametrize("sampling_rate", [1.0, 0.5])
def test_without_privacy_a_federation_learns_what_pooled_data_teach(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling_rate: float
) -> None:
    describe = server.app.describe_run
    # Who is sampled hangs on the run's id, which the number of partners changes.
    monkeypatch.setattr(server.app, "describe_run", lambda *a: replace(describe(*a), run_id="one and the same"))
    ends = {}
    for partners in (4, 1):
        workspace = begin(tmp_path / f"of {partners}", partners=partners).workspace
        training = CONFIG.training.model_copy(
            update={"sampling_rate": sampling_rate, "server_optimizer": "average", "learning_rate": 0.05}
        )
        federation = FederationConfig(partners=partners)
        config = CONFIG.model_copy(update={"training": training, "federation": federation})
        ends[partners] = federated(workspace, config, tmp_path / f"run {partners}")
    of_four, pooled = ends[4], ends[1]
    assert of_four.prior is not None and pooled.prior is not None
    for name, array in of_four.prior.arrays().items():
        np.testing.assert_allclose(array, pooled.prior.arrays()[name], rtol=1e-4, atol=1e-5)
    assert min(record["update_norm"] for record in pooled.records if record["stage"] == "train") > 0.01
    np.testing.assert_allclose(of_four.state.released, pooled.state.released, rtol=1e-4, atol=1e-6)


# --- Ray -----------------------------------------------------------------------------------------


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
