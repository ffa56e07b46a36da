"""``veilrec releases``: what is served and why the rest is not, and rolling back by a pin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from signed_releases import KEY, STRANGER, Partner, shelve
from typer.testing import CliRunner

from client.ranking.release_memory import memory_of
from client.release_commands import releases_app
from shared.errors import ConfigError, VeilrecError

TRUST = KEY.public


@pytest.fixture
def partner(tmp_path: Path) -> Partner:
    return Partner(tmp_path)


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def releases(partner: Partner) -> Command:
    """``veilrec releases``: exit code as `simulations.cli.main` gives it, and stdout."""

    def call(*arguments: str, trusted: bool = True) -> tuple[int, str]:
        options = ["--releases", str(partner.folder), "--state", str(partner.state.parent)]
        trust = ["--trust", TRUST.text] if trusted else []
        result = CliRunner().invoke(releases_app, [*arguments, *options, *trust])
        code = result.exception.exit_code if isinstance(result.exception, VeilrecError) else result.exit_code
        return code, result.stdout

    return call


def test_the_commands_list_pin_and_unpin_what_the_service_serves(partner: Partner, releases: Command) -> None:
    for version in (1, 2):
        partner.shelve(version)
    shelve(partner.folder / "stranger", 3, STRANGER)
    assert partner.poll() == [2]
    code, out = releases("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["releases"]}
    assert code == 0
    assert {name: row["standing"] for name, row in rows.items()} == {
        "release-1": "older",
        "release-2": "chosen",
        "stranger": "refused",
    }
    assert rows["stranger"]["family"] == "InvalidSignatureError" and rows["release-2"]["epsilon"] == 7.5
    code, out = releases("list")
    assert code == 0 and "epsilon 7.5" in out and "trusted key" in out and len(out.splitlines()) == 3
    assert releases("pin", "1")[0] == 0
    assert partner.poll() == [2, 1]
    assert releases("unpin", trusted=False)[0] == 0
    assert partner.poll() == [2, 1, 2]
    assert releases("unpin", trusted=False)[0] == ConfigError.exit_code
    assert releases("pin", "3") == (ConfigError.exit_code, "")
    assert releases("list", trusted=False)[0] == 2


def test_service_and_commands_keep_their_state_in_one_place(veilrec_home: Path, tmp_path: Path) -> None:
    assert memory_of(None) == veilrec_home / "serve" / "releases.json"
    assert memory_of(tmp_path) == tmp_path / "releases.json"
