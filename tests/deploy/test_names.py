"""What the packaging names exists: commands with their options, and variables of the environment."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import pytest
import typer
from deploy_setting import DEPLOY, ENVIRONMENT, REPOSITORY
from named_commands import call_fault, calls_in, named_calls, named_variables, variables_of_code

from server.settings import ServerSettings
from simulations.cli import app

OF_PYTHON = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def root() -> click.Command:
    return typer.main.get_command(app)


def test_every_command_that_the_packaging_names_exists(root: click.Command) -> None:
    calls = named_calls()
    assert {" ".join(words[:2]) for _, words in calls} >= {"server run", "partner agent", "partner import"}
    assert sorted({(file, fault) for file, words in calls if (fault := call_fault(root, words))}) == []


def test_a_command_or_option_that_does_not_exist_is_found(root: click.Command) -> None:
    assert call_fault(root, ["data", "fetch", "ml-100k", "--out", "DIR"]) == ""
    assert call_fault(root, ["data", "fetsch", "ml-100k"]) == "veilrec data fetsch"
    assert call_fault(root, ["sever", "run", "HOME"]) == "veilrec sever"
    assert call_fault(root, ["serve", "--relases", "DIR"]) == "veilrec serve --relases"


def test_calls_are_found_where_they_stand() -> None:
    text = "ExecStart=/opt/veilrec/bin/veilrec server run /var\nexec veilrec partner agent D --only node'"
    assert [words[:2] for words in calls_in(text)] == [["server", "run"], ["partner", "agent"]]
    assert list(calls_in("chown veilrec-node: /opt/veilrec/lib")) == []


def test_every_variable_that_the_packaging_sets_is_read_by_somebody() -> None:
    read = set(OF_PYTHON)
    for package in ("client", "server", "shared", "simulations"):
        read |= variables_of_code(REPOSITORY / package)
    for module in ("flwr", "huggingface_hub"):
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        read |= variables_of_code(Path(spec.origin).parent)
    named = named_variables()
    assert named.keys() >= ENVIRONMENT.keys() | {"VEILREC_PASSPHRASE_FILE", "FLWR_HOME", "VEILREC_HOME"}
    assert {name: files for name, files in named.items() if name not in read} == {}
    assert "FLWR_TELEMETRY_DISABLED" not in read  # a misspelt one would be found


def test_the_operators_page_is_asked_for_where_it_listens() -> None:
    page = f"127.0.0.1:{ServerSettings(address='localhost:9443').page_port}"
    named = {
        file: re.findall(r"127\.0\.0\.1:(?!8080)\d+", file.read_text()) for file in DEPLOY.rglob("*") if file.is_file()
    }
    told = {file.name: ports for file, ports in named.items() if ports}
    assert told.keys() >= {"Dockerfile", "compose.yaml", "statefulset.yaml", "README.md"}
    assert {name: ports for name, ports in told.items() if set(ports) != {page}} == {}
