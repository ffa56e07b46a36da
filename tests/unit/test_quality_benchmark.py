"""What a quality study asks for, the data sets it names, and the cache that keeps what is done."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from quality_setting import PARTNERS, TINY, shop_folder, tiny_shop, tiny_study

from client.data.ingest import write
from shared.errors import ConfigError
from simulations.benchmarks.quality import options
from simulations.benchmarks.quality.cache import Cache, Result
from simulations.benchmarks.quality.dataset import Dataset, open_dataset, split
from simulations.benchmarks.quality.measure import Measured, measure
from simulations.benchmarks.quality.study import FROM_A_RUN, Cell, Study
from simulations.evaluation import evaluate
from simulations.presets import settings_of
from simulations.results import MODEL_PARTS

PRIVATE = {"popularity": True, "als": False}
METHODS = ("federated", "prior_only", "popularity", "als")


def opened(path: Path) -> Dataset:
    return open_dataset(str(path), users=0, items=0, partners=PARTNERS)


# Studies


def test_a_study_knows_the_parts_of_a_run() -> None:
    """Told twice: the study's names are read where torch is not."""
    assert FROM_A_RUN == MODEL_PARTS


def test_a_study_comes_to_a_cell_for_every_method_promise_and_seed() -> None:
    study = Study(("ml",), METHODS, ("iid", "taste"), epsilons=(None, 3.0), seeds=2)
    cells = list(study.cells("ml", PRIVATE))
    assert len(cells) == len(set(cells)) == 2 * (3 + 2 * 2 * 2)
    pooled = [cell for cell in cells if cell.partition == "pooled" and cell.seed == 0]
    assert [(cell.method, cell.epsilon) for cell in pooled] == [
        ("popularity", None),
        ("popularity", 3.0),
        ("als", None),
    ]
    assert {cell.delta for cell in cells if cell.epsilon is None} == {None}
    assert {cell.delta for cell in cells if cell.epsilon == 3.0} == {1e-6}


def test_a_method_without_a_private_form_is_a_reference_whatever_epsilons_are_asked_for() -> None:
    (cell,) = Study(("ml",), ("als",), epsilons=(3.0, 1.0), seeds=1).cells("ml", PRIVATE)
    assert cell.epsilon is None


def test_the_marketplace_brings_its_own_partition() -> None:
    study = Study(("marketplace",), ("federated", "local_only"), ("iid", "taste"), seeds=1)
    assert {cell.partition for cell in study.cells("marketplace", PRIVATE)} == {"given"}


def test_the_command_of_a_study_tells_all_that_was_asked_and_no_folder() -> None:
    study = Study(("/home/mallory/ml", "marketplace"), ("federated",), epsilons=(None, 8.0), settings=TINY)
    told = study.command()
    assert "mallory" not in told
    assert "--data PATH/ml,marketplace" in told
    assert "--epsilons none,8" in told
    assert "--set model.lora_rank=2" in told
    assert "--users 6000" in told
    assert "--users" not in study.command(["/home/mallory/ml"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data": ("a/ml", "b/ml")}, "data with at least one entry and none twice"),
        ({"methods": ()}, "methods with at least one"),
        ({"epsilons": (None, None)}, "epsilons with at least one"),
        ({"partitions": ("iid", "random")}, "got random"),
        ({"epsilons": (0.0,)}, "epsilons above 0"),
        ({"epsilons": (math.inf,)}, "epsilons above 0"),
        ({"settings": {"model": {"max_history": 50}}}, "no model.max_history"),
        ({"delta": 1.0}, "delta between"),
        ({"seeds": 0}, "seeds >= 1"),
        ({"partners": 0}, "partners >= 1"),
    ],
)
def test_what_cannot_be_studied_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(**({"data": ("ml",), "methods": ("als",)} | asked))  # type: ignore[arg-type]


def test_options_are_read() -> None:
    assert options.names_of("a, b,") == ("a", "b")
    assert options.epsilons_of("none,8,1.5") == (None, 8.0, 1.5)
    tree = settings_of(["training.rounds=5", "model.base=some-bert", "training.microbatch=2"])
    assert tree == {"training": {"rounds": 5, "microbatch": 2}, "model": {"base": "some-bert"}}
    assert options.default_cache().name == "quality"


def test_options_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="none,8,3,1"):
        options.epsilons_of("lots")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        settings_of(["rounds=5"])


# Data sets


def test_the_order_of_the_rows_leaves_no_trace_in_the_digest_and_a_rating_does(tmp_path: Path) -> None:
    shop = tiny_shop()
    first = opened(shop_folder(tmp_path))
    write(replace(shop, interactions=shop.interactions.reverse()), tmp_path / "shuffled" / "shop")
    assert opened(tmp_path / "shuffled" / "shop").digest == first.digest
    better = shop.interactions.with_columns(rating=pl.when(pl.col("user_id") == "u00").then(5.0).otherwise("rating"))
    write(replace(shop, interactions=better), tmp_path / "rated" / "shop")
    assert opened(tmp_path / "rated" / "shop").digest != first.digest


def test_the_scale_of_ratings_is_told_from_the_best_one(tmp_path: Path) -> None:
    assert opened(shop_folder(tmp_path)).rating_max == 5
    shop = tiny_shop()
    write(replace(shop, interactions=shop.interactions.with_columns(rating=pl.lit(8.5))), tmp_path / "ten")
    assert opened(tmp_path / "ten").rating_max == 10


def test_a_cells_promise_goes_into_its_configuration_and_settings_overrule_the_preset(tmp_path: Path) -> None:
    data, cell = opened(shop_folder(tmp_path)), Cell("shop", "iid", PARTNERS, "federated", 3.0, 1e-6, 7)
    config = data.config(cell, {**TINY, "privacy": {"clip_norm": 0.25, "epsilon": 99}})
    assert (config.privacy.mode, config.privacy.epsilon, config.privacy.delta) == ("distributed", 3.0, 1e-6)
    assert (config.privacy.clip_norm, config.training.rounds, config.seed) == (0.25, 2, 7)
    assert data.config(replace(cell, epsilon=None, delta=None), {}).privacy.mode == "none"


def test_the_marketplace_of_a_study_is_one_shop_for_all_seeds() -> None:
    first, again = (open_dataset("marketplace", users=20, items=136, partners=2) for _ in range(2))
    assert first.given
    assert first.digest == again.digest
    assert first.users >= 20
    config = first.config(Cell("marketplace", "given", 2, "federated", None, None, 3), {})
    assert config.privacy.partners_per_user == 2
    assert set(first.spread("iid", 2, 3).get_column("partner")) == {0, 1}


def test_all_partitions_measure_the_same_users_in_the_same_order(tmp_path: Path) -> None:
    data = opened(shop_folder(tmp_path))
    scorer = lambda histories, users: np.tile(np.arange(24.0), (len(users), 1))  # noqa: E731
    found = []
    for method in ("iid", "taste"):
        parts = split(data, method=method, partners=PARTNERS, seed=1).parts  # type: ignore[arg-type]
        found.append(measure(lambda _, __: scorer, parts, 24))
    assert [len(part.histories) for part in parts] == [12, 12, 12]
    assert found[0].metrics["ndcg@10"] > 0
    assert found[0].metrics["cold_users"] + found[0].metrics["tail_users"] > 0
    for name in ("users", "ranks", "targets"):
        assert np.array_equal(getattr(found[0], name), getattr(found[1], name))
    assert found[0].metrics == pytest.approx(found[1].metrics)
    pooled = split(data, method="iid", partners=1, seed=1).parts[0]
    direct = evaluate(scorer, pooled.histories, pooled.targets).metrics(np.ones(24, dtype=np.int64))
    assert found[0].metrics["ndcg@10"] == pytest.approx(direct["ndcg@10"])


# The cache


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Cache, str, Path]:
    """A cache with one result, its key, and its folder."""
    cache, cell = Cache(tmp_path), Cell("shop", "iid", PARTNERS, "federated", None, None, 0)
    key = cache.key("cell", {"data": "x"})
    users = np.arange(3, dtype=np.uint64)
    found = Measured({"ndcg@10": 0.5}, users, np.array([0.0, 1.5, 9.0]), np.zeros(3, dtype=np.int32))
    cache.put(key, cell, found, {"training": {"rounds": 2}}, 1.5)
    return cache, key, tmp_path / "cells"


def test_the_cache_gives_back_what_it_got(kept: tuple[Cache, str, Path]) -> None:
    found = kept[0].get(kept[1])
    assert isinstance(found, Result)
    assert found.cell == Cell("shop", "iid", PARTNERS, "federated", None, None, 0)
    assert (found.metrics, found.seconds, len(found.code)) == ({"ndcg@10": 0.5}, 1.5, 12)
    assert found.ranks.tolist() == [0.0, 1.5, 9.0]


@pytest.mark.parametrize("ending", ["json", "npz"])
@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_a_damaged_result_counts_as_absent(kept: tuple[Cache, str, Path], ending: str, damage: str) -> None:
    cache, key, folder = kept
    file = folder / f"{key}.{ending}"
    whole = file.read_bytes()
    file.unlink()
    if damage != "absent":
        file.write_bytes(whole[:-20] if damage == "cut" else b"[1]")
    assert cache.get(key) is None


def test_the_key_follows_from_everything_that_decides_a_result(tmp_path: Path) -> None:
    cache, decides = Cache(tmp_path), {"cell": {"seed": 0}, "data": "x"}
    keys = [cache.key("cell", decides), cache.key("cell", decides | {"data": "y"}), cache.key("tuning", decides)]
    assert len(set(keys)) == 3
    assert cache.key("cell", dict(reversed(decides.items()))) == keys[0]


def test_notes_are_kept_and_damaged_ones_are_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.note("key") is None
    cache.put_note("key", {"ridge": 5})
    assert cache.note("key") == {"ridge": 5}
    (tmp_path / "tuning" / "key.json").write_text(json.dumps([1]))
    assert cache.note("key") is None


def test_two_processes_do_not_work_on_one_cell(tmp_path: Path) -> None:
    with Cache(tmp_path).workplace("key") as folder:
        (folder / "begun").touch()
        with pytest.raises(ConfigError, match="one process a cell"), Cache(tmp_path).workplace("key"):
            pass
    with Cache(tmp_path).workplace("key") as again:
        assert (again / "begun").exists()


def test_a_study_of_the_shop_knows_its_methods(tmp_path: Path) -> None:
    study = tiny_study(shop_folder(tmp_path), ["federated"])
    assert [cell.data for cell in study.cells(study.data[0], {})] == ["shop"]
