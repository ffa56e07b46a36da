"""The command ``veilrec`` as people and scripts meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from shared.errors import (
    AccountingError,
    CheckpointError,
    ConfigError,
    DataError,
    IntegrityError,
    LedgerError,
    SchemaError,
    VeilrecError,
)
from simulations import demo
from simulations.cli import app
from simulations.presets import settings_of

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from simulations.cli import main; main()"]
TINY = (
    *("--set", "model.adapted_layers=1", "--set", "model.lora_rank=2", "--set", "model.head_rank=2"),
    *("--set", "model.max_events=8", "--set", "training.sampling_rate=0.5"),
)
SHOP = ("--data", "marketplace", "--users", "60", "--items", "136", "--partners", "3")
Veilrec = Callable[..., tuple[int, str, str]]


def refused(family: type[VeilrecError], ended: tuple[int, str, str]) -> str:
    """Check that a command ended as its family says it must; returns the line."""
    code, out, err = ended
    assert (code, out) == (family.exit_code, ""), err
    assert err.count("\n") == 1 and err.startswith(f"veilrec: {family.__name__}: "), err
    return err


# --- help -----------------------------------------------------------------------------------------


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _commands(child, (*path, name))


COMMANDS = list(_commands(typer.main.get_command(app)))


def test_the_tree_holds_the_commands_of_the_contract() -> None:
    wanted = {"demo", "simulate", "evaluate", "rank", "data import", "data describe", "data fetch", "data partition"}
    wanted |= {"ledger show", "ledger verify", "adapter verify", "releases list", "releases pin", "releases unpin"}
    assert wanted <= {" ".join(path) for path in COMMANDS}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(("veilrec", *path)))
def test_every_command_helps(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output and "--help" in result.output
    command = typer.main.get_command(app)
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help  # a sentence on what it does
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[0] in result.output


def test_help_loads_nothing_heavy() -> None:
    """Measured in time it would be half a second; this does not depend on the machine."""
    heavy = ("flwr", "numpy", "opacus", "peft", "polars", "pydantic", "safetensors", "torch", "transformers")
    code = (
        "import sys\nsys.argv = ['veilrec', '--help']\nfrom simulations.cli import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "simulate" in done.stdout
    assert done.stderr.strip() == "[]"


def test_without_a_command_the_help_is_shown(veilrec: Veilrec) -> None:
    _, out, err = veilrec()
    assert "Usage" in out + err


# --- what is wrong with a command line ------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("rounds", "section.key=value"),
        ("training.rounds", "section.key=value"),
        ("rounds=3", "section.key=value"),
        ("=", "section.key=value"),
        ("training.round=3", "training.round"),
        ("training.rounds=many", "training.rounds"),
        ("training.rounds=1e400", "training.rounds"),
        ("no.such=1", "no"),
        ("federation.partners=9", "federation.partners"),
        ("privacy.mode=perhaps", "privacy.mode"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(veilrec: Veilrec, tmp_path: Path, pair: str, named: str) -> None:
    out = tmp_path / "run"
    assert named in refused(ConfigError, veilrec("simulate", *SHOP, "--out", str(out), "--set", pair))
    assert not out.exists()  # nothing half-made is left


def test_an_epsilon_that_no_noise_reaches_is_one_line(veilrec: Veilrec, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny = ("--epsilon", "1e-9", "--set", "training.sampling_rate=1", "--out", str(out))
    refused(AccountingError, veilrec("simulate", *SHOP, *tiny))
    assert not out.exists()


def test_settings_are_json_or_words_in_a_tree() -> None:
    pairs = ["training.rounds=3", "training.server_optimizer=average", 'model.lora_targets=["output.dense"]']
    assert settings_of([*pairs, "privacy.noise_multiplier=null"]) == {
        "training": {"rounds": 3, "server_optimizer": "average"},
        "model": {"lora_targets": ["output.dense"]},
        "privacy": {"noise_multiplier": None},
    }


@pytest.mark.parametrize("command", ["evaluate", "rank"])
def test_a_run_that_is_not_there_is_one_line(veilrec: Veilrec, tmp_path: Path, command: str) -> None:
    query = ("--query", "tea") if command == "rank" else ()
    data = ("--data", str(_csv(tmp_path)))
    line = refused(IntegrityError, veilrec(command, "--run", str(tmp_path / "none"), *data, *query))
    assert str(tmp_path / "none") in line
    refused(IntegrityError, veilrec(command, "--run", str(tmp_path), *data, *query))


def _csv(folder: Path) -> Path:
    (folder / "events.csv").write_text("user_id,item_id,timestamp\na,1,1\na,2,2\nb,1,3\n")
    return folder / "events.csv"


def test_unknown_data_are_one_line(veilrec: Veilrec, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "marketplace" in refused(ConfigError, veilrec("simulate", "--data", "no such", "--out", str(out)))
    refused(DataError, veilrec("data", "describe", str(tmp_path / "no such file")))
    (tmp_path / "notes.txt").write_text("buy milk\n")
    refused(SchemaError, veilrec("data", "describe", str(tmp_path / "notes.txt")))
    refused(ConfigError, veilrec("data", "fetch", "no such set"))
    assert not out.exists()


def test_what_cannot_be_resumed_is_one_line(veilrec: Veilrec, tmp_path: Path) -> None:
    refused(CheckpointError, veilrec("simulate", "--resume", str(tmp_path)))


def test_a_value_outside_its_choices_is_a_usage_error(veilrec: Veilrec) -> None:
    code, out, err = veilrec("simulate", "--privacy", "maybe")
    assert (code, out) == (2, "") and "maybe" in err and "Traceback" not in err


def test_a_traceback_is_shown_only_on_request(tmp_path: Path) -> None:
    wrong = ["data", "describe", str(tmp_path / "none")]
    quiet, loud = (
        subprocess.run([*COMMAND, *flags, *wrong], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        for flags in ([], ["--debug"])
    )
    assert quiet.returncode == DataError.exit_code
    assert quiet.stderr.count("\n") == 1
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr and "DataError" in loud.stderr


# --- the main job ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command, and what it printed."""
    out = tmp_path_factory.mktemp("command") / "run"
    result = CliRunner().invoke(
        app, ["simulate", *SHOP, *TINY, "--rounds", "1", "--epsilon", "6", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    (out.parent / "stdout").write_text(result.stdout)
    (out.parent / "stderr").write_text(result.stderr)
    return out


def test_simulate_prints_run_json_and_nothing_else(finished: Path) -> None:
    printed = (finished.parent / "stdout").read_text()
    assert printed.count("\n") == 1
    assert json.loads(printed) == json.loads((finished / "run.json").read_text())


def test_simulate_does_what_its_options_say(finished: Path) -> None:
    document = json.loads((finished / "run.json").read_text())
    assert (document["engine"], document["seed"]) == ("inprocess", 0)
    assert document["data"]["name"] == "marketplace" and document["data"]["partners"] == 3
    assert (document["privacy"]["mode"], document["privacy"]["rounds"]) == ("distributed", 1)
    assert 5 < document["privacy"]["epsilon"] <= 6 and document["privacy"]["partners_per_user"] == 2
    assert "local_only" in document["metrics"]
    assert document["config"]["model"]["lora_rank"] == 2


def test_the_ledgers_of_a_run_can_be_audited_by_who_has_no_secret(veilrec: Veilrec, finished: Path) -> None:
    told = tomllib.loads((finished / "partners" / "partner-001" / "partner.toml").read_text())
    keys = ("--identity", told["peers"]["partner-001"], "--server", told["policy"]["server_key"])
    theirs = ("--receipts", str(finished / "partners" / "receipts.json"), "--partner", "partner-001")
    ledger = finished / "ledgers" / "partner-001.jsonl"
    code, out, err = veilrec("ledger", "verify", str(ledger), *keys, *theirs, "--json")
    assert (code, err) == (0, "")
    (run,) = json.loads(out)["runs"]
    privacy = json.loads((finished / "run.json").read_text())["privacy"]
    assert run["recomputed_epsilon"] == run["epsilon"] == privacy["epsilon"]
    assert (run["reserved"], run["released"], run["opened"], run["dangling"]) == (2, 2, 2, 0)
    refused(LedgerError, veilrec("ledger", "verify", str(ledger), "--identity", told["peers"]["partner-000"]))


def test_what_is_set_explicitly_wins_over_the_default_of_an_option(veilrec: Veilrec, tmp_path: Path) -> None:
    settings = (
        "--set",
        "privacy.epsilon=2",
        "--set",
        "privacy.noise_multiplier=30",
        "--rounds",
        "0",
        "--no-local-only",
    )
    code, out, err = veilrec("simulate", *SHOP, *TINY, *settings, "--out", str(tmp_path / "run"), "--json")
    assert code == 0, err
    assert json.loads(out)["config"]["privacy"]["epsilon"] == 2
    assert json.loads(out)["privacy"]["epsilon"] <= 2


def test_a_finished_run_can_be_resumed_to_the_same_end(veilrec: Veilrec, finished: Path) -> None:
    before = json.loads((finished / "run.json").read_text())
    code, out, _ = veilrec("simulate", "--resume", str(finished), "--json")
    after = json.loads(out)
    assert code == 0
    assert {**after, "timing": None} == {**before, "timing": None}


def test_a_run_is_not_overwritten(veilrec: Veilrec, finished: Path) -> None:
    line = refused(ConfigError, veilrec("simulate", *SHOP, *TINY, "--out", str(finished)))
    assert "--resume" in line


def test_evaluate_measures_the_adapter(veilrec: Veilrec, finished: Path) -> None:
    command = ("evaluate", "--run", str(finished), "--data", str(finished / "partners" / "partner-000"))
    code, out, err = veilrec(*command, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    document = json.loads(out)
    assert 0 <= document["metrics"]["federated"]["ndcg@10"] <= 1
    assert document["privacy"]["mode"] == "distributed"
    code, out, _ = veilrec(*command)
    assert code == 0 and "ease" in out.lower()


def test_evaluate_refuses_another_catalogue(veilrec: Veilrec, finished: Path, tmp_path: Path) -> None:
    code, _, err = veilrec("evaluate", "--run", str(finished), "--data", str(_csv(tmp_path)))
    assert code == 41 and err.startswith("veilrec: AdapterMismatchError: ") and err.count("\n") == 1


def test_partition_lays_out_what_flower_runs_on(veilrec: Veilrec, tmp_path: Path) -> None:
    code, out, err = veilrec("data", "partition", *SHOP, "--out", str(tmp_path / "partners"))
    assert (code, out.strip(), err) == (0, str(tmp_path / "partners"), "")
    folders = sorted(entry.name for entry in (tmp_path / "partners").iterdir() if entry.is_dir())
    assert folders == ["partner-000", "partner-001", "partner-002"]
    for name in folders:
        told = tomllib.loads((tmp_path / "partners" / name / "partner.toml").read_text())
        assert told["simulated"] is True and told["name"] == name
        assert sorted(told["peers"]) == folders


def test_runs_over_partners_that_are_there_already_say_what_was_spent_before(veilrec: Veilrec, tmp_path: Path) -> None:
    assert veilrec("data", "partition", *SHOP, "--out", str(tmp_path / "partners"))[0] == 0
    spent = []
    for seed in ("0", "1"):
        over = ("--federation", str(tmp_path / "partners"), "--seed", seed, "--out", str(tmp_path / seed))
        code, out, err = veilrec("simulate", *TINY, "--rounds", "0", "--no-local-only", *over, "--json")
        assert code == 0, err
        assert ("are spent before this run" in err) is (seed == "1")
        spent.append(json.loads(out)["privacy"]["ledger"])
    assert [one["plans"] for one in spent] == [1, 2]
    assert spent[1]["epsilon"] > spent[0]["epsilon"] > 0


def test_partition_does_not_leave_partners_of_an_earlier_one(veilrec: Veilrec, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "partners"))
    assert veilrec("data", "partition", *SHOP, *out)[0] == 0
    fewer = (*SHOP[:-1], "2")
    assert "more than 2 partners" in refused(ConfigError, veilrec("data", "partition", *fewer, *out))


# --- real processes -------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_that_got_sigkill_is_resumed_to_the_end_that_it_would_have_had(tmp_path: Path) -> None:
    wanted = ["simulate", *SHOP, *TINY, "--rounds", "8", "--privacy", "none", "--no-local-only", "--json"]

    def command(*arguments: str) -> dict[str, Any]:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY)
        document: dict[str, Any] = json.loads(done.stdout)
        return {**document, "timing": None}

    whole = command(*wanted, "--out", str(tmp_path / "whole"))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*COMMAND, *wanted, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY
    )
    try:
        _wait_for(lambda: len(_lines(killed)) >= 3, process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = len(_lines(killed))
    assert 3 <= done < 9 and not (killed / "run.json").exists()
    assert command("simulate", "--resume", str(killed), "--json") == whole
    assert [json.loads(line)["round"] for line in _lines(killed)] == list(range(1, 10))
    adapters = [(folder / "adapter" / "manifest.json").read_text() for folder in (killed, tmp_path / "whole")]
    assert adapters[0] == adapters[1]


def _lines(run: Path) -> list[str]:
    file = run / "rounds.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def _wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended, or never came so far"
        time.sleep(0.005)


@pytest.mark.e2e
@pytest.mark.slow
def test_the_installed_command_runs_the_demonstration(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("veilrec")
    if not script.exists():
        pytest.skip("veilrec is not installed beside this Python")
    done = subprocess.run(
        [str(script), "demo", "--users", "80", "--out", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert "federated" in done.stdout.lower() and "because of" in done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert (tmp_path / "demo" / "report.html").stat().st_size > 1000
    document = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert document["privacy"]["epsilon"] <= 8


def test_a_demonstration_can_be_repeated(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo._fresh(out) == out
    for folder in (out, tmp_path / "demo-2"):
        folder.mkdir()
        (folder / "simulation.json").write_text("{}")
    assert demo._fresh(out) == tmp_path / "demo-3"
