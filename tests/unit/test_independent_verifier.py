"""The second verifier: short, of other parts, and of the same mind."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from evidence_setting import BUNDLER, Made, made
from plans import PLAN

from shared.privacy.accounting import epsilon_spent
from simulations.audit.bundle import independent
from simulations.audit.claims import claim_of, part_of
from simulations.audit.estimators.assess import PAIR, SNJ, assess
from simulations.audit.findings import ScoreSet

FILE = Path(independent.__file__)
ALLOWED = {"cryptography", "dp_accounting"}


@pytest.fixture(scope="module", autouse=True)
def run() -> Made:
    return made()


def test_it_has_fewer_than_300_lines() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) < 300


def test_it_imports_the_standard_library_and_two_packages() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in found}
    assert roots - set(sys.stdlib_module_names) == ALLOWED


@pytest.mark.slow
def test_it_runs_as_a_script_by_itself(run: Made, tmp_path: Path) -> None:
    """A copy of the file, elsewhere, in an interpreter that ignores where it was started."""
    script = tmp_path / "independent.py"
    script.write_bytes(FILE.read_bytes())
    bad = tmp_path / "bad.tar"
    bad.write_bytes(run.bundle.read_bytes()[:-1])
    good, refused = (
        subprocess.run(
            [sys.executable, "-I", script, bundle, "--trust", BUNDLER.public.text],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for bundle in (run.bundle, bad)
    )
    assert good.returncode == 0 and good.stdout.startswith("consistent: run run"), good.stderr
    assert "partner-000" in good.stdout
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr == "ValueError: archive: Expected its one form\n"


@pytest.mark.parametrize("part", ["prior", "training", "whole"])
@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, sampling_rate=1.0, noise_multiplier=8.0, partners_per_user=1),
        pytest.param(
            replace(PLAN, sampling_rate=1.0, noise_multiplier=20.0, partners_per_user=3, rounds=4),
            marks=pytest.mark.slow,
        ),
        pytest.param(replace(PLAN, sampling_rate=0.1, rounds=3), marks=pytest.mark.slow),
    ],
    ids=["everybody", "at three partners", "sampled"],
)
def test_its_epsilon_is_at_most_ours_and_hardly_less(plan: object, part: str) -> None:
    """Ours bills Skellam's closeness and rounding on top: the promise of the file's first lines."""
    alone = part_of(plan, part)  # type: ignore[arg-type]
    ours, theirs = epsilon_spent(alone, alone.rounds), independent.epsilon_of(json.dumps(asdict(plan)), part)  # type: ignore[call-overload]
    assert ours is not None and theirs is not None
    assert theirs * 0.9999 <= ours <= theirs * 1.02


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_its_bounds_are_where_ours_are(seed: int) -> None:
    """SNJ and Gaussian pair at several sizes and signals; a bound that is moved by a hundredth is refused."""
    rng = np.random.default_rng(seed)
    plan = replace(PLAN, sampling_rate=1.0, noise_multiplier=8.0)
    m = int(rng.integers(30, 300))
    scores = ScoreSet("whole run", rng.normal(rng.uniform(0, 6), 1, m), rng.normal(0, 1, m + int(rng.integers(5))))
    if seed == 5:  # many are equal
        scores = replace(scores, inside=np.round(scores.inside), outside=np.round(scores.outside))
    assert claim_of(plan, "whole") is not None
    inside, outside = scores.inside.tolist(), scores.outside.tolist()
    for estimate in assess(scores, plan, "whole", seed=seed):
        if estimate.estimator in (SNJ, PAIR):
            told = asdict(estimate)
            assert independent.follows(told, inside, outside, plan.delta), estimate
            room = 0.01 if seed != 5 or estimate.estimator == PAIR else 3.0
            moved = told | {"lower_bound": told["lower_bound"] + room}
            assert not independent.follows(moved, inside, outside, plan.delta), estimate


def test_exact_tails_are_those_of_the_binomial_law() -> None:
    """P[Bin(3, 1/2) >= 3] = 1/8: refuted at a level above it, not below; delta costs its part."""
    assert independent.snj(3, 3, 3, 0.0, 0.126, 0.0) and not independent.snj(3, 3, 3, 0.0, 0.124, 0.0)
    steps = [(4 / 8 - 1 / 8) / 1, (7 / 8 - 1 / 8) / 2, (8 / 8 - 1 / 8) / 3]
    p = 1 / 8 + 2 * 3 * 1e-3 * max(steps)
    assert independent.snj(3, 3, 3, 1e-3, p + 1e-9, 0.0) and not independent.snj(3, 3, 3, 1e-3, p - 1e-9, 0.0)
    assert math.isfinite(p)
