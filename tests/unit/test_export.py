"""Exports: other runtimes rank as the model does, and nothing of a partner's own is in what goes out."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import typer
from export_setting import (
    CONFIGS,
    ITEMS,
    SECRET,
    TIE,
    Shop,
    check_the_same_ranking,
    cosines,
    release_to,
    scored,
    shop_of,
    tiny_bert,
)
from torch import nn

from client.data.cleaning import clean
from client.data.ingest import RawData, read, write
from client.export_commands import export
from client.ranking import export as exporting
from client.ranking import export_onnx
from client.ranking.export import export_release
from client.ranking.personal import PersonalPrior, Taken, own_prior
from client.ranking.rank import LocalRanker
from shared.adapter import load_release
from shared.catalogue import build_catalogue
from shared.config import ModelConfig, PriorConfig
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError, InvalidSignatureError, VeilrecError
from shared.hazmat.signing import SigningKey
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.release_signature import check_signature, signature_text
from simulations.marketplace import MarketplaceConfig, generate


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """In float32 on every machine: in bfloat16 no other runtime reads a query as this one does."""
    root = tmp_path_factory.mktemp("shop")
    interactions, items = generate(MarketplaceConfig(users=60, items=ITEMS, partners=1, seed=4))
    data = RawData("shop", interactions.drop("partner"), items)
    found = shop_of(data, str(tiny_bert(root / "bert")), root)
    for name in CONFIGS:
        release_to(found, found.adapter(name), name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.model.text.has_fast_bf16", lambda _: False)
        yield found


@pytest.fixture(scope="module")
def exported(shop: Shop) -> dict[str, Path]:
    return {
        name: export_release(shop.adapter(name), shop.catalogue, shop.root / f"export {name}", shop.cache())
        for name in CONFIGS
    }


@pytest.fixture(scope="module")
def reference(exported: dict[str, Path]) -> ModuleType:
    """``rank.py`` as the export holds it."""
    spec = importlib.util.spec_from_file_location("exported_rank", exported["residuals"] / "onnx" / "rank.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # the export stays as it was written
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(exported: dict[str, Path], tmp_path: Path) -> Path:
    """An export to be harmed."""
    return Path(shutil.copytree(exported["residuals"], tmp_path / "copy"))


# --- the same ranking -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_ranks_as_the_model_does(shop: Shop, exported: dict[str, Path], reference: ModuleType, name: str) -> None:
    users = np.arange(len(shop.histories))
    assert len(set(np.minimum(shop.histories.lengths, 12))) > 5  # of different lengths
    expected, found = scored(shop, shop.adapter(name), reference.Ranker(exported[name]), users)
    np.testing.assert_allclose(found, expected, atol=TIE)
    check_the_same_ranking(expected, found)
    assert np.abs(expected - expected[:1]).max() > 0.5  # users are told apart


@pytest.mark.parametrize("array", ["inputs", "outputs", "item_to_item", "popularity", "likeness"])
def test_every_array_is_needed_for_the_same_ranking(
    shop: Shop, exported: dict[str, Path], reference: ModuleType, array: str
) -> None:
    ranker = reference.Ranker(exported["residuals"])
    if array == "likeness":
        ranker.settings["prior"]["likeness"] = 0.0
    else:
        place = {"item_to_item": "_matrix", "popularity": "_popularity"}.get(array, array)
        setattr(ranker, place, np.roll(getattr(ranker, place), 1, axis=0))
    expected, found = scored(shop, shop.adapter("residuals"), ranker, np.arange(20))
    with pytest.raises(AssertionError):
        check_the_same_ranking(expected, found)


def test_a_history_and_a_query_get_the_lists_of_the_local_ranker(
    shop: Shop, exported: dict[str, Path], reference: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.ingest.data_home", lambda: shop.root / "home" / "data")
    local = LocalRanker.open(shop.adapter("residuals"), shop.data, device="cpu")
    ranker = reference.Ranker(exported["residuals"], threads=1)
    cleaned = clean(shop.data)[0].interactions
    for user, events in list(cleaned.sort("timestamp").group_by("user_id", maintain_order=True))[:5]:
        if events["timestamp"].is_duplicated().any():
            continue
        history = events.select("event", "rating", "review", item="item_id").to_dicts()
        ranked = local.for_user(str(user[0]), 10).items
        assert [row[0] for row in ranker.rank(history, 10)] == [item.item_id for item in ranked]
        np.testing.assert_allclose([row[2] for row in ranker.rank(history, 10)], [r.score for r in ranked], atol=0.01)
    query = "a warm coat for a long walk in the rain"
    assert [row[0] for row in ranker.rank_query(query, 5)] == [item.item_id for item in local.for_query(query, 5).items]


def test_both_encoders_give_the_item_vectors(shop: Shop, exported: dict[str, Path], reference: ModuleType) -> None:
    passages, vectors = shop.catalogue.passages(), np.load(exported["sketch"] / "item_vectors.npy").astype(np.float32)
    ranker = reference.Ranker(exported["sketch"])
    below, above = ranker.encode([*passages, ""])
    assert (cosines(above[:-1], vectors) > 0.9999).all()
    assert not above[-1].any() and not below[-1].any()
    np.testing.assert_allclose(below[:-1], ranker.inputs, atol=5e-3, rtol=2e-3)  # no residuals; rounded to 16 bits
    assert np.mean(cosines(above[1:-1], vectors[:-1]) < 0.999) > 0.9  # another item's vector is another


def test_sentence_transformers_load_the_encoder(shop: Shop, exported: dict[str, Path]) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(exported["sketch"] / "sentence-transformers"), device="cpu")
    assert encoder.max_seq_length == CONFIGS["sketch"][0].max_tokens
    passages = [*shop.catalogue.passages(), " ".join(["longer than is read"] * 60)]
    found = encoder.encode(passages, show_progress_bar=False)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    stage = TextStage(find_base(shop.base), adapted_layers=1, max_tokens=64)
    expected = stage.encode(passages)[:, 1].astype(np.float32)
    assert (cosines(found, expected) > 0.9999).all()


@pytest.mark.slow
def test_on_real_histories_all_runtimes_rank_alike(real_data: Path, reference: ModuleType, tmp_path: Path) -> None:
    """ml_100k's 150 items with most ratings, read by MiniLM; in bfloat16 where this machine has it."""
    from sentence_transformers import SentenceTransformer

    data = read(real_data / "ml_100k")
    known = data.interactions["item_id"].value_counts(sort=True).head(150).select("item_id")
    some = RawData("ml", data.interactions.join(known, on="item_id"), data.items.join(known, on="item_id"))
    movies = shop_of(some, ModelConfig().base, tmp_path)
    release_to(movies, movies.adapter("residuals"), "residuals", spread=0.02)
    out = export_release(movies.adapter("residuals"), movies.catalogue, tmp_path / "out", movies.cache())
    users = np.arange(0, len(movies.histories), 3)
    expected, found = scored(movies, movies.adapter("residuals"), reference.Ranker(out), users)
    np.testing.assert_allclose(found, expected, atol=TIE)
    check_the_same_ranking(expected, found)
    encoder = SentenceTransformer(str(out / "sentence-transformers"), device="cpu")
    vectors = np.load(out / "item_vectors.npy").astype(np.float32)
    assert (cosines(encoder.encode(movies.catalogue.passages(), show_progress_bar=False), vectors) > 0.9999).all()


# --- what is refused ------------------------------------------------------------------------------


def test_a_graph_that_took_a_length_as_fixed_is_not_written(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, vectors: torch.Tensor) -> torch.Tensor:
            return vectors.mean(1) * len(vectors[0])  # a sum, at the length that was traced

    with pytest.raises(IntegrityError, match="Expected the numbers of the model"):
        export_onnx._write_graph(
            tmp_path / "g.onnx", Fixed(), {"vectors": torch.ones(3, 5, 2)}, {"vectors": "BT"}, ("wanted",)
        )


def test_a_graph_that_does_not_run_is_not_written(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, vectors: torch.Tensor) -> torch.Tensor:
            return (vectors * torch.arange(len(vectors[0]))[:, None]).sum(1)

    with pytest.raises(IntegrityError, match="Expected a graph that runs"):
        export_onnx._write_graph(
            tmp_path / "g.onnx", Fixed(), {"vectors": torch.ones(3, 5, 2)}, {"vectors": "BT"}, ("wanted",)
        )


def test_a_changed_file_is_not_ranked_with(copy: Path, reference: ModuleType) -> None:
    file = copy / "onnx" / "arrays.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"onnx/arrays\.npz: Expected the file that was exported"):
        reference.Ranker(copy)


@pytest.mark.parametrize("history", [[], [{"item": SECRET}], [{"event": SECRET}]])
def test_a_history_that_cannot_be_read_is_refused_without_its_words(
    exported: dict[str, Path], reference: ModuleType, history: list[dict[str, str]]
) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        reference.Ranker(exported["residuals"]).rank(history)
    assert SECRET not in str(caught.value)


def refused(shop: Shop, out: Path, **changes: Any) -> VeilrecError:
    with pytest.raises(VeilrecError) as caught:
        export_release(
            changes.pop("adapter", shop.adapter("sketch")),
            changes.pop("catalogue", shop.catalogue),
            out,
            shop.cache(),
            **changes,
        )
    return caught.value


def test_a_folder_that_holds_something_is_left_alone(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert isinstance(refused(shop, tmp_path), ConfigError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_catalogue_and_an_unknown_format_are_refused(shop: Shop, tmp_path: Path) -> None:
    other = build_catalogue(shop.data.items.head(ITEMS - 1))
    assert isinstance(refused(shop, tmp_path / "out", catalogue=other), AdapterMismatchError)
    assert isinstance(refused(shop, tmp_path / "out", formats=frozenset({"pickle"})), ConfigError)


def test_a_changed_adapter_is_refused(shop: Shop, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(shop.adapter("sketch"), tmp_path / "adapter"))
    file = adapter / "behaviour.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert isinstance(refused(shop, tmp_path / "out", adapter=adapter), IntegrityError)


def test_a_failure_on_the_way_leaves_nothing(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise IntegrityError("the disk is full")

    monkeypatch.setattr(exporting, "write_sentence_transformers", full)
    refused(shop, tmp_path / "out", formats=frozenset({"sentence-transformers"}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named_with_its_extra(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    error = refused(shop, tmp_path / "out")
    assert isinstance(error, ConfigError) and "veilrec[export]" in str(error)
    assert not list(tmp_path.iterdir())


# --- what is in it --------------------------------------------------------------------------------


def told(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def test_the_manifest_holds_the_release_and_a_digest_of_every_file(shop: Shop, exported: dict[str, Path]) -> None:
    folder, adapter = exported["residuals"], shop.adapter("residuals")
    manifest, release = told(folder), json.loads((adapter / "manifest.json").read_text())
    assert manifest["release"] == release
    assert {"version", "fingerprint", "base", "privacy"} <= set(manifest["release"])
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == there - {"manifest.json"}
    assert all(exporting._digest(folder / name) == digest for name, digest in manifest["files"].items())
    assert (folder / "release" / "manifest.json").read_bytes() == (adapter / "manifest.json").read_bytes()
    readme = (folder / "README.md").read_text()
    assert release["fingerprint"] in readme and "epsilon 7.5 at delta 1e-05" in readme


def test_the_signature_is_asked_for_and_travels_along(shop: Shop, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(shop.adapter("sketch"), tmp_path / "adapter"))
    key, other = SigningKey.generate(), SigningKey.generate()
    (adapter / "manifest.sig").write_bytes(signature_text(key, (adapter / "manifest.json").read_bytes()))
    formats = frozenset({"sentence-transformers"})
    error = refused(shop, tmp_path / "out", adapter=adapter, formats=formats, trust=other.public)
    assert isinstance(error, InvalidSignatureError)
    out = export_release(adapter, shop.catalogue, tmp_path / "out", shop.cache(), formats=formats, trust=key.public)
    manifest, signature = ((out / "release" / f"manifest.{kind}").read_bytes() for kind in ("json", "sig"))
    assert check_signature(manifest, signature, key.public, out) == key.public


def test_the_weights_of_the_encoder_are_those_of_the_base(shop: Shop, exported: dict[str, Path]) -> None:
    digest = told(exported["residuals"])["files"]["sentence-transformers/model.safetensors"]
    assert digest == told(exported["residuals"])["release"]["base_sha256"]


def test_one_format_can_be_had_alone(shop: Shop, tmp_path: Path) -> None:
    out = export_release(
        shop.adapter("sketch"),
        shop.catalogue,
        tmp_path / "o",
        shop.cache(),
        formats=frozenset({"sentence-transformers"}),
    )
    assert not (out / "onnx").exists() and "## onnx/" not in (out / "README.md").read_text()
    assert (out / "sentence-transformers" / "modules.json").is_file()


def test_rank_needs_numpy_onnxruntime_and_tokenizers_alone(exported: dict[str, Path]) -> None:
    tree = ast.parse((exported["residuals"] / "onnx" / "rank.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots = {str(name).split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"numpy", "onnxruntime", "tokenizers"}


def run_export(*arguments: str) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(export)
    app([*arguments], standalone_mode=False)


def leaks(folder: Path, words: list[bytes]) -> list[str]:
    """The files in which one of the words stands."""
    found = [path for path in folder.rglob("*") if path.is_file() and any(w in path.read_bytes() for w in words)]
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.fixture
def secret_run(shop: Shop, tmp_path: Path) -> tuple[Path, Path]:
    """A run beside whose adapter lie things of a partner's own, and data of other people with the same items."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(shop.adapter("sketch"), run / "adapter")
    for premises in (run, run / "adapter"):
        own = own_prior(shop.histories, len(shop.catalogue), PriorConfig(max_items=10))
        PersonalPrior(load_release(run / "adapter").fingerprint, Taken(0.8, 1.0), own).save(premises)
        (premises / "ledger.jsonl").write_text(SECRET)
    secret = pl.lit(SECRET)
    others = shop.data.interactions.with_columns(user_id=secret + pl.col("user_id"), review=secret + pl.col("review"))
    write(RawData("others", others.reverse().gather_every(2), shop.data.items), data)
    return run, data


def test_an_export_is_the_same_whoever_makes_it(
    shop: Shop, exported: dict[str, Path], secret_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """Byte for byte: no history, review or personal part of the partner that exports can be in it."""
    run, data = secret_run
    run_export("--run", str(run), "--data", str(data), "--out", str(tmp_path / "out"))
    assert told(tmp_path / "out")["files"] == told(exported["sketch"])["files"]
    assert not leaks(tmp_path / "out", [SECRET.encode(), str(shop.root).encode() + b"/runs", str(tmp_path).encode()])


def test_a_personal_part_or_a_word_in_an_export_would_be_seen(
    shop: Shop, exported: dict[str, Path], copy: Path, tmp_path: Path
) -> None:
    prior = load_release(shop.adapter("sketch")).prior
    personal = replace(prior, popularity=prior.popularity + 0.01)
    release_to(shop, tmp_path / "adapter", "sketch", personal)
    out = export_release(
        tmp_path / "adapter", shop.catalogue, tmp_path / "out", shop.cache(), formats=frozenset({"onnx"})
    )
    mine, theirs = told(out)["files"], told(exported["sketch"])["files"]
    assert mine["onnx/arrays.npz"] != theirs["onnx/arrays.npz"]
    assert mine["onnx/behaviour.onnx"] == theirs["onnx/behaviour.onnx"]
    (copy / "onnx" / "notes.txt").write_text(f"a review: {SECRET}")
    assert leaks(copy, [SECRET.encode()]) == ["onnx/notes.txt"]


def test_the_command_wants_one_source(tmp_path: Path) -> None:
    both = ("--run", str(tmp_path), "--adapter", str(tmp_path))
    for source in ((), both):
        with pytest.raises(ConfigError, match="Expected one of --run and --adapter"):
            run_export(*source, "--data", "x", "--out", str(tmp_path / "out"))
