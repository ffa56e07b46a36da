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
import torch

import client.agent
import client.app
import client.learner
import client.privatize
import client.secure_sum
import client.training
import server.app
import server.gathering
import server.secure_sum
import server.strategy
import shared.privacy.ledger
from client.app import app as client_app
from server.app import run_federation
from server.checkpoint import Checkpoint
from server.strategy import Observer
from shared.adapter import flatten_parameters, load_release
from shared.config import FederationConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import CohortTooSmallError, ConfigError, ProtocolError
from shared.hazmat.signing import SigningKey
from shared.messages import RoundPlan
from shared.privacy.plan import Mode
from shared.requests import KeysRequest
from shared.wire import parse_plan
from simulations import ray
from simulations.federation import InProcessGrid
from simulations.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Fresh, Start

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
def workspace(fresh: Fresh) -> Workspace:
    return fresh()


def federated(workspace: Workspace, config: RunConfig, out: Path) -> Checkpoint:
    grid = InProcessGrid(client_app, range(workspace.partners), workspace.root)
    return run_federation(grid, config, workspace.catalogue, out, workspace.root)


def trained_in_process(workspace: Workspace, out: Path, config: RunConfig = CONFIG) -> np.ndarray[Any, Any]:
    """On one thread, as in the engines' workers: more of them would add up gradients in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        federated(workspace, config, out)
    finally:
        torch.set_num_threads(threads)
    return flatten_parameters(load_release(out / "adapter").model)


def silent(_: Mapping[str, object]) -> None:
    pass


def on_ray(workspace: Workspace, out: Path, observer: Observer = silent) -> None:
    ray.run_on_ray(CONFIG, workspace, out, observer)


# --- one code path --------------------------------------------------------------------------------

SPIED: tuple[tuple[Any, str], ...] = (
    (client.app, "unpack_request"),
    (client.app, "pack_answer"),
    (client.agent, "check"),
    *((shared.privacy.ledger.Ledger, step) for step in ("check", "declare", "reserve", "release", "open")),
    *((shared.privacy.ledger.Ledger, step) for step in ("head", "accept_receipt")),
    (client.learner, "sample_users"),
    (client.learner, "clipped_statistics"),
    (client.learner, "add_noise_share"),
    (client.training, "clip_and_sum"),
    (client.training.UserGradients, "clipped_sum"),
    (client.training.UserGradients, "of"),
    *((client.privatize, step) for step in ("round_to_lattice", "skellam", "limit_sum", "to_ring")),
    (client.agent, "mask"),
    *((client.secure_sum.MaskingSession, step) for step in ("offer", "share", "receive", "mask", "consent", "open")),
    *((server.secure_sum.SecureSum, step) for step in ("roster", "inboxes", "survivors", "consents", "open")),
    (server.gathering, "pack_request"),
    (server.gathering, "unpack_answer"),
    (server.strategy, "pack_request"),
    (server.strategy, "solve"),
    (server.strategy, "apply_mean_gradient"),
    (server.app, "save_release"),
)


def spy(patch: pytest.MonkeyPatch) -> tuple[list[str], list[RoundPlan], list[float]]:
    """The names of the functions that are called, in order, the plans of the partners, the variances of all noise."""
    called: list[str] = []
    plans: list[RoundPlan] = []
    variances: list[float] = []
    for owner, name in SPIED:
        function = getattr(owner, name)
        label = f"{getattr(owner, '__name__', owner)}.{name}"

        def told(*args: Any, _label: str = label, _function: Callable[..., Any] = function, **named: Any) -> Any:
            called.append(_label)
            answer = _function(*args, **named)
            if isinstance(answer, KeysRequest):
                plans.append(parse_plan(answer.signed.text))
            if _label.endswith("skellam"):
                variances.append(args[3])
            return answer

        patch.setattr(owner, name, told)
    return called, plans, variances


def test_none_and_distributed_call_the_same_functions_and_only_the_plan_differs(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, plans, variances = {}, {}, {}
    for mode in ("none", "distributed"):
        private = PrivacyConfig(mode=mode, population=90, noise_multiplier=4.0)
        config = CONFIG.model_copy(update={"privacy": private})
        with monkeypatch.context() as patch:
            traces[mode], plans[mode], variances[mode] = spy(patch)
            federated(fresh(), config, tmp_path / mode)
    assert traces["none"] == traces["distributed"]
    assert len(set(traces["none"])) == len(SPIED)
    assert [len(drawn) for drawn in variances.values()] == [3 * 3, 3 * 3]
    assert set(variances["none"]) == {0.0} and min(variances["distributed"]) > 0
    assert len(plans["none"]) == 3 * 3
    for open_plan, private_plan in zip(plans["none"], plans["distributed"], strict=True):
        same = {"mode", "noise_multiplier", "prior_noise_multiplier"}
        noise = {name: getattr(private_plan.plan, name) for name in same}
        assert replace(open_plan.plan, **noise) == private_plan.plan
        privacy = open_plan.config.privacy.model_copy(update={"mode": "distributed"})
        assert open_plan.config.model_copy(update={"privacy": privacy}) == private_plan.config


def one_run_id(patch: pytest.MonkeyPatch) -> None:
    """Who is sampled, noise and dither hang on the run's id, which every setting changes."""
    describe = server.app.describe_run
    patch.setattr(server.app, "describe_run", lambda *a: replace(describe(*a), run_id="one-and-the-same"))


@pytest.mark.parametrize("mode", ["none", "distributed"])
def test_masks_change_no_bit_of_what_is_learned(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    one_run_id(monkeypatch)
    ends, written = {}, {}
    for masked in (True, False):
        config = CONFIG.model_copy(
            update={
                "privacy": PrivacyConfig(mode=mode, population=90, noise_multiplier=4.0),
                "federation": FederationConfig(partners=3, secure_sum=masked),
            }
        )
        out = tmp_path / str(masked)
        ends[masked] = federated(fresh(), config, out)
        written[masked] = {
            file.name: file.read_bytes() for file in (out / "adapter").iterdir() if file.suffix == ".safetensors"
        }
    assert written[True] == written[False] and len(written[True]) >= 2
    one, other = ends[True], ends[False]
    np.testing.assert_array_equal(one.state.parameters, other.state.parameters)
    records = [
        [{k: v for k, v in record.items() if k not in ("seconds", "bytes_up", "bytes_down")} for record in end.records]
        for end in (one, other)
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize("sampling_rate", [1.0, 0.5])
def test_without_privacy_a_federation_learns_what_pooled_data_teach(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling_rate: float
) -> None:
    one_run_id(monkeypatch)
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
        # Every partner rounds its sum to the lattice, and the popularity of rare items is the logarithm of little.
        np.testing.assert_allclose(array, pooled.prior.arrays()[name], rtol=1e-4, atol=1e-3)
    assert min(record["update_norm"] for record in pooled.records if record["stage"] == "train") > 0.01
    np.testing.assert_allclose(of_four.state.released, pooled.state.released, rtol=1e-4, atol=1e-6)


# --- Ray -----------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_ray
# Ray leaves to the garbage collector what it opened and started.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.+ name='/dev/null':ResourceWarning")
@pytest.mark.filterwarnings("ignore:subprocess .+ is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning:ray")
def test_ray_trains_what_the_in_process_grid_trains_to_the_last_bit(fresh: Fresh, tmp_path: Path) -> None:
    seen: list[object] = []
    on_ray(fresh(), tmp_path / "ray", lambda record: seen.append(record["round"]))
    expected = trained_in_process(fresh(), tmp_path / "here")
    found = flatten_parameters(load_release(tmp_path / "ray" / "adapter").model)
    np.testing.assert_array_equal(found, expected)
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
    flower: dict[str, str], fresh: Fresh, tmp_path: Path
) -> None:
    # One round of training: Flower looks for answers every three seconds, and a round has five exchanges.
    short = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"rounds": 1})})
    workspace = fresh()
    out, empty = tmp_path / "out", tmp_path / "empty"
    supernodes = ("--federation-config", "num-supernodes=3")
    run = ("run", str(REPOSITORY), "--stream", *supernodes, "-c")
    done = flwr(flower, empty, *run, settings(workspace, out, short))
    assert status_of_last_run(flower, empty) == "finished:completed", done.stdout + done.stderr
    found = flatten_parameters(load_release(out / "adapter").model)
    np.testing.assert_array_equal(found, trained_in_process(fresh(), tmp_path / "here", short))
    assert [json.loads(line)["round"] for line in (out / "rounds.jsonl").read_text().splitlines()] == [1, 2]

    # Without data the run must be seen to have failed.
    flwr(flower, empty, *run, "out='nowhere'")
    assert status_of_last_run(flower, empty).startswith("finished:failed")


def test_no_family_is_lost_on_its_way_through_flower(workspace: Workspace, tmp_path: Path) -> None:
    """What goes wrong at the partners ends `run_federation` with an error of ours, on any grid."""
    catalogue, home = workspace.catalogue, workspace.root
    elsewhere = InProcessGrid(client_app, range(3), tmp_path / "no such folder")
    with pytest.raises(ProtocolError, match="partners refused with ConfigError"):
        run_federation(elsewhere, CONFIG, catalogue, tmp_path / "a", home)
    short = CONFIG.model_copy(update={"federation": FederationConfig(partners=3, timeout_s=0.01)})
    with pytest.raises(CohortTooSmallError):
        run_federation(InProcessGrid(client_app, range(2), home), short, catalogue, tmp_path / "b", home)
    (home / "server.key").unlink()
    SigningKey.load_or_create(home / "server.key")
    with pytest.raises(ProtocolError, match="partners refused with InvalidSignatureError"):
        run_federation(InProcessGrid(client_app, range(3), home), CONFIG, catalogue, tmp_path / "c", home)
    (home / "identities.json").unlink()
    with pytest.raises(ConfigError, match=r"identities\.json"):
        run_federation(InProcessGrid(client_app, range(3), home), CONFIG, catalogue, tmp_path / "d", home)
