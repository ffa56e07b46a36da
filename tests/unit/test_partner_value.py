"""What a partner is told of the worth of joining: on people and items that no model was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from client.app import partner_folder
from client.data.ingest import RawData
from client.premises import Premises, write_partner
from client.ranking.personal import PersonalPrior
from client.ranking.personal_adapter import PersonalAdapter
from client.statistics import clipped_statistics
from shared.adapter import save_release
from shared.config import DEFAULT_BASE, ModelConfig, PriorConfig, RunConfig
from shared.errors import AdapterMismatchError, ConfigError, DataError, EmptyHistoryError
from shared.hazmat.signing import SigningKey
from shared.model.behaviour import BehaviourStage
from shared.model.prior import CollaborativePrior, solve
from shared.model.weights import find_base
from simulations.marketplace import MarketplaceConfig, generate
from simulations.partition import partition
from simulations.partner_value import (
    ALONE,
    ALONE_TRAINED,
    GLOBAL,
    OWN_PRIOR,
    PERSONAL,
    WITHOUT_NOISE,
    Value,
    partner_values,
    verdicts,
)
from simulations.workspace import HELD_OUT, Workspace, prepare

Veilrec = Callable[..., tuple[int, str, str]]
PARTNERS = 3
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8, max_tokens=8),
    prior=PriorConfig(decay=0.8),
)


def released(run: Path, prior: CollaborativePrior, digest: str, mode: str) -> Path:
    model = BehaviourStage(find_base(DEFAULT_BASE), CONFIG.model, n_items=len(prior.popularity))
    privacy = {"mode": mode, "epsilon": None if mode == "none" else 8.0, "delta": 1e-5}
    save_release(run / "adapter", model, prior, CONFIG, catalogue_digest=digest, privacy=privacy, version=1)
    return run


@pytest.fixture(scope="module")
def partners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    interactions, items = generate(MarketplaceConfig(users=100, items=136, partners=PARTNERS, seed=1))
    data = RawData("shop", interactions.drop("partner"), items)
    spread = partition(data.interactions, data.items, partners=PARTNERS, method="iid", seed=0)
    return prepare(data, spread, tmp_path_factory.mktemp("value") / "partners", seed=0).root


@pytest.fixture(scope="module")
def runs(partners: Path) -> dict[str, Path]:
    """The same federation with a prior drowned in noise, and without noise; BERT as it comes."""
    workspace = Workspace.open(partners)
    digest, n = workspace.catalogue.digest, len(workspace.catalogue)
    sums = [
        clipped_statistics(one, n, CONFIG.prior, "hybrid", clip_norm=1.0).values
        for one in workspace.histories(CONFIG.model)
    ]
    total = np.sum(sums, axis=0)
    noisy = total + np.random.default_rng(0).normal(0, 3.0, size=len(total))
    out = partners.parent
    return {
        "private": released(out / "private", solve("hybrid", noisy, n, 3.0), digest, "distributed"),
        "exact": released(out / "exact", solve("hybrid", total, n, 0.0), digest, "none"),
        "other": released(out / "other", solve("hybrid", total, n, 0.0), "0" * 64, "none"),
    }


@pytest.fixture
def real(partners: Path, tmp_path: Path) -> Path:
    """A partner that says that its data are real; the evaluator's file lies beside it."""
    root = tmp_path / "partners"
    shutil.copytree(partners, root)
    folder = partner_folder(root, 0)
    policy = {"max_epsilon": 8.0, "max_delta": 1e-5, "min_cohort": 3, "server_key": SigningKey.generate().public.text}
    premises = Premises.open(folder)
    peers = {name: key.text for name, key in premises.peers.items()}
    told = {"name": premises.name, "cache": str(premises.cache), "policy": policy, "peers": peers}
    write_partner(folder, told)
    return folder


def later(folder: Path, file: Path, partner: int = 0) -> Path:
    """The events that were held back, a second after all others."""
    held_out = pl.read_parquet(folder.parent / HELD_OUT).filter(pl.col("partner") == partner)
    held_out.select("user_id", "item_id", timestamp=pl.lit(2_000_000_000, dtype=pl.Int64)).write_parquet(file)
    return file


@pytest.fixture(scope="module")
def values(partners: Path, runs: dict[str, Path]) -> list[Value]:
    return partner_values(partners, runs["private"], without_noise=runs["exact"])


def test_a_simulation_tells_every_partner_s_value_and_all_together(partners: Path, values: list[Value]) -> None:
    assert [one.partner for one in values] == ["partner-000", "partner-001", "partner-002", "all"]
    told = [one.to_json() for one in values]
    assert told[-1]["users"] == sum(one["users"] for one in told[:-1]) == pl.read_parquet(partners / HELD_OUT).height
    together = told[-1]["methods"]
    assert set(together) == {ALONE, ALONE_TRAINED, GLOBAL, OWN_PRIOR, PERSONAL, WITHOUT_NOISE}
    for value, one in zip(values[:-1], told[:-1], strict=True):
        same = one["methods"][ALONE_TRAINED] == one["methods"][ALONE]
        assert same == (not value.taken["steps"]), "without a step of its own there is nothing but the closed forms"
    # The noise is three times a user's whole weight: nearly all that this release knows is what BERT reads.
    assert together[OWN_PRIOR]["ndcg@10"] > together[GLOBAL]["ndcg@10"]
    assert together[WITHOUT_NOISE]["ndcg@10"] > together[GLOBAL]["ndcg@10"]
    for name, (of, over) in {"own_prior": (OWN_PRIOR, GLOBAL), "without_noise": (WITHOUT_NOISE, GLOBAL)}.items():
        gain = told[-1]["gains"][name]
        assert gain["ndcg@10"] == pytest.approx(together[of]["ndcg@10"] - together[over]["ndcg@10"])
        assert gain["ci95"][0] <= gain["ndcg@10"] <= gain["ci95"][1]
    assert len(verdicts(values)) == 4 and "its own on top +" in verdicts(values)[-1]


def test_what_a_partner_adds_is_kept_in_its_own_folder(
    partners: Path, runs: dict[str, Path], values: list[Value]
) -> None:
    folder = partner_folder(partners, 1)
    shutil.rmtree(folder / "personal")
    (value,) = partner_values(folder, runs["private"], without_noise=runs["exact"])
    prior, adapter = PersonalPrior.load(folder), PersonalAdapter.load(folder)
    assert prior is not None and adapter is not None
    assert value.taken == {
        "weight": prior.taken.weight,
        "popularity_share": prior.taken.popularity_share,
        "likeness_share": prior.taken.likeness_share,
        "steps": adapter.steps,
    }
    assert value.to_json() == values[1].to_json(), "alone or among all, a partner is told the same"


def test_a_real_partner_has_to_bring_events_that_came_later(real: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected --held-out FILE"):
        partner_values(real, runs["private"])
    (value,) = partner_values(real, runs["exact"], held_out=later(real, tmp_path / "later.parquet"))
    assert value.to_json()["users"] == len(pl.read_parquet(tmp_path / "later.parquet"))


def test_events_that_were_trained_on_are_refused(real: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    own = pl.read_parquet(real / "interactions.parquet").select("user_id", "item_id", "timestamp")
    new = pl.read_parquet(later(real, tmp_path / "later.parquet"))
    both = tmp_path / "both.parquet"
    pl.concat([new, own.head(3)]).write_parquet(both)
    with pytest.raises(DataError, match=rf"got 3 of {new.height + 3} that were"):
        partner_values(real, runs["private"], held_out=both)


def test_an_item_met_again_later_is_not_asked_for(real: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    own = pl.read_parquet(real / "interactions.parquet").select("user_id", "item_id", "timestamp")
    again = own.with_columns(timestamp=pl.lit(2_000_000_001, dtype=pl.Int64))
    file = tmp_path / "again.parquet"
    again.write_parquet(file)
    with pytest.raises(EmptyHistoryError, match="users=0"):
        partner_values(real, runs["private"], held_out=file)


def test_what_cannot_be_measured_is_refused(partners: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = partner_folder(partners, 0)
    with pytest.raises(ConfigError, match=r"privacy.mode=none for --without-noise, got mode=distributed"):
        partner_values(folder, runs["private"], without_noise=runs["private"])
    with pytest.raises(AdapterMismatchError, match="the catalogue that the adapter"):
        partner_values(folder, runs["other"])
    with pytest.raises(DataError, match="a prepared federation"):
        partner_values(tmp_path, runs["private"])
    with pytest.raises(ConfigError, match="only with one partner's folder"):
        partner_values(partners, runs["private"], held_out=tmp_path / "file")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match="user_id, item_id and timestamp"):
        partner_values(folder, runs["private"], held_out=tmp_path / "junk.parquet")


def test_the_command_prints_a_table_or_one_document(veilrec: Veilrec, partners: Path, runs: dict[str, Path]) -> None:
    folder = str(partner_folder(partners, 0))
    code, out, _ = veilrec("partner", "value", folder, "--run", str(runs["exact"]), "--json")
    assert code == 0
    document = json.loads(out)
    assert [one["partner"] for one in document["partners"]] == ["partner-000"]
    code, out, _ = veilrec("partner", "value", folder, "--run", str(runs["exact"]))
    assert code == 0 and "partner-000: the global model against alone" in out
