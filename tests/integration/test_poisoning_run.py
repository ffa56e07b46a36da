"""Dishonest partners in a real run: masks hide them, bucket sums show them, and what is screened does not promote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open

from client.app import partner_folder
from server.gathering import Gathered
from shared.config import RunConfig
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.plan import Stage
from simulations.audit.poisoning.attacks import Attack
from simulations.audit.poisoning.defences import DEFENCES
from simulations.audit.poisoning.detection import detection_auc, likeness
from simulations.audit.poisoning.experiment import gate_holds
from simulations.audit.poisoning.federation import honest, train
from simulations.audit.poisoning.measures import PartnerView, exposure, exposures, quality, views
from simulations.simulate import Request, spread
from simulations.workspace import prepare

PARTNERS, ATTACKER, TARGET = 9, 4, 40
CONFIG = RunConfig.model_validate(
    {
        "model": {"adapted_layers": 1, "lora_rank": 2, "lora_alpha": 4, "head_rank": 2, "max_events": 8},
        "prior": {"decay": 0.5, "epsilon_share": 0.9},
        "training": {"rounds": 1, "sampling_rate": 0.5},
        # Noise that so few users can bear: what is tested is the way of an attack, not a promise.
        "privacy": {"epsilon": 200.0, "population": 400, "partners_per_user": 2},
        "federation": {"partners": PARTNERS},
    }
)
PROMOTION = Attack("promotion", (ATTACKER,), TARGET, boost=10.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 people at nine partners; they write no reviews, which takes minutes of reading from these tests."""
    root = tmp_path_factory.mktemp("poisoned") / "partners"
    request = Request("marketplace", PARTNERS, "iid", 3, "inprocess", 400, 136, local_only=False, settings={})
    data, partitioned = spread(request)
    return prepare(data, partitioned.with_columns(review=pl.lit("")), root, seed=3).root


def run(federation: Path, out: Path, defence: str, attack: Attack) -> list[PartnerView]:
    """What the users of the eight others see."""
    trained = train(federation, DEFENCES[defence].over(CONFIG), attack, out)
    return views(trained.release, trained.workspace, list(honest(trained.workspace, PROMOTION)))


def kept_sums(root: Path) -> np.ndarray:
    """The sum of what all partners keep of the round, which they hold a mask over when they send it."""
    found = []
    for k in range(PARTNERS):
        (file,) = (partner_folder(root, k) / "runs").glob("*/sum")
        with safe_open(file, framework="np") as kept:
            found.append(kept.get_tensor("values"))
    return np.asarray(np.sum(found, axis=0))


@pytest.mark.soak
def test_masks_hide_an_attacker_and_change_no_bit_of_the_sum(federation: Path, tmp_path: Path) -> None:
    same: list[tuple[Stage, bool]] = []

    def witness(number: int, stage: Stage, gathered: Gathered) -> None:
        same.append((stage, bool((gathered.total == kept_sums(tmp_path / "run" / "partners")).all())))

    trained = train(federation, CONFIG, PROMOTION, tmp_path / "run", witness)
    assert same == [("prior", True), ("train", True)]
    assert not trained.seen, "of no partner alone"
    for k in range(PARTNERS):
        (paid,) = read_ledger(partner_folder(trained.workspace.root, k) / "ledger.jsonl").runs
        assert paid.reserved == paid.released == 2, "the attacker's ledger is as good as any"


def test_a_promotion_works_through_masks_and_is_stopped_by_screening_and_by_the_gate(
    federation: Path, tmp_path: Path
) -> None:
    clean = run(federation, tmp_path / "masked-clean", "masked", Attack())
    target = int(np.argmin(np.abs(np.mean([exposures(view) for view in clean], axis=0) - 0.02)))
    promotion = Attack("promotion", (ATTACKER,), target, boost=10.0)
    attacked = run(federation, tmp_path / "masked-attacked", "masked", promotion)
    before, after = exposure(clean, target).at_10, exposure(attacked, target).at_10
    assert after > 10 * before and after > 0.3, "the attack is one"
    assert gate_holds(attacked, clean) > 0.7 and gate_holds(clean, clean) == 0.0

    clean = run(federation, tmp_path / "screened-clean", "screened", Attack())
    attacked = run(federation, tmp_path / "screened-attacked", "screened", promotion)
    assert exposure(attacked, target).at_10 < max(2 * exposure(clean, target).at_10, 2 * before)
    assert quality(attacked)["hr@10"] > 0.9 * quality(clean)["hr@10"]


def test_free_riders_are_found_where_sums_are_in_the_open(federation: Path, tmp_path: Path) -> None:
    riders = (1, 6)
    open_sums = CONFIG.model_copy(update={"federation": CONFIG.federation.model_copy(update={"secure_sum": False})})
    trained = train(federation, open_sums, Attack("free-rider", riders), tmp_path / "run")
    scores = likeness(trained.seen, "prior", PARTNERS)
    assert scores is not None and detection_auc(scores, riders) == 1.0
