"""``veilrec audit run|bundle|verify|report`` over a real run, as somebody types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from server.audit_sum import AuditSum
from shared.errors import ConfigError, DataError, IntegrityError
from shared.hazmat.signing import SigningKey
from simulations.audit.bundle.independent import check
from simulations.audit.runner import run_audit
from simulations.cli import app
from simulations.simulate import run as simulated

if TYPE_CHECKING:
    from conftest import Done, Start


@pytest.fixture(scope="module")
def audited(whole: Done, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], int]:
    """A copy of a run with its audit, what the command printed, and its exit code."""
    run = tmp_path_factory.mktemp("audited") / "run"
    shutil.copytree(whole.out, run)
    told = CliRunner().invoke(
        app, ["audit", "run", "--run", str(run), "--rungs", "1,2,4", "--canaries", "40", "--json"]
    )
    return run, json.loads(told.stdout), told.exit_code


def key_of(run: Path) -> str:
    return SigningKey.load(run / "partners" / "server.key").public.text


def test_the_document_is_that_of_the_contract(audited: tuple[Path, dict[str, object], int]) -> None:
    run, document, code = audited
    assert document == json.loads((run / "audit" / "audit.json").read_text())
    assert document["verdict"] == "INCONCLUSIVE"  # forty canaries would not notice half of the noise
    assert code == 3
    assert document["claimed"] == {"epsilon": pytest.approx(8.0, abs=0.01), "delta": 1e-5}
    for rung in document["rungs"]:  # type: ignore[attr-defined]
        assert {"name", "verdict", "epsilon_lower_bound", "power", "seconds"} <= rung.keys()


def test_the_bundle_passes_both_verifiers_and_a_changed_verdict_neither(
    audited: tuple[Path, dict[str, object], int], tmp_path: Path
) -> None:
    run, document, _ = audited
    told = CliRunner().invoke(app, ["audit", "bundle", "--run", str(run)])
    assert told.exit_code == 0, told.output
    archive = run / "audit" / "evidence.tar"
    told = CliRunner().invoke(app, ["audit", "verify", str(archive), "--trust", key_of(run), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["epsilon"] == document["claimed"]["epsilon"]  # type: ignore[index]
    assert check(archive.read_bytes(), key_of(run)).startswith("consistent")
    forged = tmp_path / "evidence.tar"
    forged.write_bytes(archive.read_bytes().replace(b'"INCONCLUSIVE"', b'"PASS"        ', 1))
    told = CliRunner().invoke(app, ["audit", "verify", str(forged), "--trust", key_of(run)])
    assert isinstance(told.exception, IntegrityError)
    with pytest.raises(Exception, match=r"."):
        check(forged.read_bytes(), key_of(run))


def test_a_bundle_of_an_audit_that_contradicts_itself_is_not_written(
    audited: tuple[Path, dict[str, object], int], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(audited[0], run)
    file = run / "audit" / "audit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"verdict": "PASS"}))
    told = CliRunner().invoke(app, ["audit", "bundle", "--run", str(run), "--out", str(tmp_path / "evidence.tar")])
    assert isinstance(told.exception, IntegrityError)
    assert not (tmp_path / "evidence.tar").exists()


def test_report_and_label_are_written_beside_the_audit(audited: tuple[Path, dict[str, object], int]) -> None:
    run, _, _ = audited
    told = CliRunner().invoke(app, ["audit", "report", "--audit", str(run)])
    assert told.exit_code == 0, told.output
    page = (run / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "INCONCLUSIVE" in page
    assert (run / "audit" / "label.pdf").read_bytes().startswith(b"%PDF")


def test_what_cannot_be_audited_is_one_clear_error(whole: Done, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rungs"):
        run_audit(whole.out, rungs=[9])
    with pytest.raises(ConfigError, match=r"config\.json"):
        run_audit(tmp_path)
    shutil.copy(whole.out / "config.json", tmp_path)
    with pytest.raises(DataError, match="simulated partners"):
        run_audit(tmp_path, rungs=[1])


def test_canaries_of_real_partners_are_audited_from_what_they_hand_out(begin: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulated(begin(out, audit={"canaries": 40}), show=False)
    with pytest.raises(DataError, match="audit-canaries"):  # nobody has told anything yet
        moved = shutil.copytree(out, tmp_path / "early", ignore=shutil.ignore_patterns("partners"))
        run_audit(moved, rungs=[3])
    run_id = AuditSum.read(out).run_id
    (out / "audit" / "reveals").mkdir()
    for folder in sorted((out / "partners").glob("partner-*")):
        file = out / "audit" / "reveals" / f"{folder.name}.json"
        told = CliRunner().invoke(app, ["partner", "audit-canaries", str(folder), run_id, "--out", str(file)])
        assert told.exit_code == 0, told.output
    there = run_audit(out, rungs=[3], out=tmp_path / "there")["rungs"]
    (out / "partners").rename(tmp_path / "premises")  # the partners' own machines
    away = run_audit(out, rungs=[3], out=tmp_path / "away")["rungs"]
    for each in (*there, *away):
        each.pop("seconds")
    assert there == away
    assert there[0]["name"] == "3-cosines"
