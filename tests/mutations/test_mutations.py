"""Every listed bug is planted, and the test that is named for it fails. A mutation that survives fails here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mutations import CONTROLS, MUTATIONS
from planting import COLLECT, MECHANISM_RUNG, ROOT, Mutation, PlantingError, planted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All mutations that were asked for, run together."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    asked = [item.callspec.params["mutation"].name for item in items if "mutation" in item.fixturenames]
    work = tmp_path_factory.mktemp("mutations")
    runner = Path(__file__).with_name("run_mutations.py")
    done = subprocess.run(
        [
            sys.executable,
            str(runner),
            str(work),
            COLLECT,
            *(control.name for control in CONTROLS),
            *dict.fromkeys(asked),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(mutation: Mutation, verdicts: dict[str, dict[str, Any]]) -> None:
    verdict = verdicts[mutation.name]
    assert verdict["outcome"] == "caught", verdict["told"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_audit_catches_a_planted_bug(mutation: Mutation, verdicts: dict[str, dict[str, Any]]) -> None:
    """Whoever has no tests, but the installed program, finds it too."""
    verdict = verdicts[mutation.name]
    if mutation.rung == MECHANISM_RUNG:  # other rungs plant their own
        assert verdict["audit"] == "caught", (verdict["audit_told"], verdict["told"])


def test_every_test_that_a_mutation_names_exists(verdicts: dict[str, dict[str, Any]]) -> None:
    assert verdicts[COLLECT]["outcome"] == "collected", verdicts[COLLECT]["told"]


def test_the_suite_itself_can_fail(verdicts: dict[str, dict[str, Any]]) -> None:
    """A change that is no bug survives; one that is no program, or is not where it is said to be, is no success."""
    outcomes = {control.name: verdicts[control.name]["outcome"] for control in CONTROLS}
    assert verdicts["control: a comment"]["audit"] == "survived", verdicts["control: a comment"]["audit_told"]
    assert outcomes == {
        "control: a comment": "survived",
        "control: a name that does not exist": "broken",
        "control: a syntax error": "broken",
        "control: a text that is gone": "broken",
        "control: a test that does not exist": "broken",
        "control: tests that do not load the file": "broken",
    }


def test_mutations_are_many_and_have_names_of_their_own() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 25


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_text_of_a_mutation_is_where_it_is_said_to_be(mutation: Mutation) -> None:
    """A refactoring cannot disarm a mutation in silence."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    compile(planted(mutation, source), mutation.file, "exec")
    for spoilt in (source + mutation.old, source.replace(mutation.old, "")):
        with pytest.raises(PlantingError, match="Expected the text"):
            planted(mutation, spoilt)
    with pytest.raises(PlantingError):
        planted(replace(mutation, new=mutation.old), source)
