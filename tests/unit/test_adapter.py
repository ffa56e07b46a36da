"""Releases: what is read is what was written, any change is found, and PEFT reads it as its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from shared import adapter, files
from shared.adapter import flatten_parameters, load_parameters, load_release, save_release
from shared.config import ModelConfig, RunConfig
from shared.errors import AdapterMismatchError, IntegrityError
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch, trainable_parameters
from shared.model.prior import CollaborativePrior
from shared.model.weights import BaseModel, find_base, load_bert
from shared.release_manifest import FILES, fingerprint_of

ITEMS = 5
CONFIG = RunConfig(
    model=ModelConfig(adapted_layers=2, lora_rank=2, lora_alpha=4, head_rank=2, item_rank=3, max_events=8), seed=3
)
PRIOR = CollaborativePrior(np.linspace(-1, 1, ITEMS, dtype=np.float32), item_to_item=np.eye(ITEMS, dtype=np.float32))
CHANGED = 0.02
CATALOGUE = "c" * 64
Tensors = dict[str, np.ndarray[Any, Any]]


def trained_model() -> BehaviourStage:
    """A model none of whose parameters is what it began as."""
    model = BehaviourStage(find_base(CONFIG.model.base), CONFIG.model, n_items=ITEMS, seed=3)
    flat = flatten_parameters(model)
    load_parameters(model, flat + np.random.default_rng(0).normal(scale=CHANGED, size=len(flat)).astype(np.float32))
    return model


@pytest.fixture(scope="module")
def model() -> BehaviourStage:
    return trained_model()


@pytest.fixture(scope="module")
def saved(model: BehaviourStage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("release")
    save_to(folder, model)
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.fixture
def release(saved: dict[str, bytes], tmp_path: Path) -> Path:
    """A fresh copy of a release, to be harmed."""
    for name, data in saved.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def save_to(folder: Path, model: BehaviourStage) -> None:
    save_release(
        folder,
        model,
        PRIOR,
        CONFIG,
        catalogue_digest=CATALOGUE,
        privacy={"mode": "distributed", "epsilon": 7.5, "delta": 1e-5},
        version=4,
    )


def batch(width: int) -> tuple[EventBatch, CatalogueVectors]:
    rng = np.random.default_rng(1)
    items = torch.tensor([[0, 3, 1], [4, 2, -1]])
    texts, vectors = (torch.from_numpy(rng.normal(size=(ITEMS, width)).astype(np.float32)) for _ in range(2))
    events = EventBatch(
        items=items,
        events=torch.tensor([[0, 2, 3], [4, 0, 0]]),
        ratings=torch.tensor([[0, 0, 4], [5, 0, 0]]),
        lengths=torch.tensor([3, 2]),
        texts=None,
        targets=-torch.ones_like(items),
    )
    return events, CatalogueVectors(texts, torch.nn.functional.normalize(vectors, dim=-1))


def scores(model: BehaviourStage) -> torch.Tensor:
    events, catalogue = batch(model.width)
    with torch.inference_mode():
        return model.score(model.hidden(events, catalogue), catalogue)


# --- flat vectors ---------------------------------------------------------------------------------


def test_parameters_survive_flattening(model: BehaviourStage) -> None:
    flat = flatten_parameters(model)
    assert flat.dtype == np.float32
    assert flat.shape == (sum(p.numel() for p in trainable_parameters(model).values()),)
    fresh = BehaviourStage(find_base(CONFIG.model.base), CONFIG.model, n_items=ITEMS, seed=0)
    assert not torch.equal(scores(fresh), scores(model))
    load_parameters(fresh, flat)
    assert torch.equal(scores(fresh), scores(model))


def test_partners_begin_alike() -> None:
    one, other = (
        flatten_parameters(BehaviourStage(find_base(CONFIG.model.base), CONFIG.model, n_items=ITEMS, seed=seed))
        for seed in (3, 3)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("harm", ["short", "long", "two axes", "nan", "inf"])
def test_a_flat_vector_that_does_not_fit_leaves_the_model_as_it_was(model: BehaviourStage, harm: str) -> None:
    before = flatten_parameters(model)
    flat = before + 1
    flat = {"short": flat[1:], "long": np.append(flat, flat[:1]), "two axes": flat[None]}.get(harm, flat)
    if harm in ("nan", "inf"):
        flat[-1] = float(harm)
    with pytest.raises(AdapterMismatchError):
        load_parameters(model, flat)
    np.testing.assert_array_equal(flatten_parameters(model), before)


# --- a release ------------------------------------------------------------------------------------


def test_a_release_scores_as_the_model_that_was_saved(model: BehaviourStage, release: Path) -> None:
    found = load_release(release)
    assert found.config == CONFIG
    assert torch.equal(scores(found.model), scores(model))
    for name, array in PRIOR.arrays().items():
        np.testing.assert_array_equal(found.prior.arrays()[name], array)
    assert found.prior.item_to_item is not None
    assert found.manifest["privacy"] == {"mode": "distributed", "epsilon": 7.5, "delta": 1e-5}
    assert (found.manifest["version"], found.manifest["catalogue_sha256"]) == (4, CATALOGUE)


def test_a_release_is_the_files_of_the_contract(saved: dict[str, bytes]) -> None:
    assert set(saved) == {*FILES, "manifest.json"}
    manifest = json.loads(saved["manifest.json"])
    assert manifest["files"] == {name: sha256(saved[name]).hexdigest() for name in FILES}
    assert manifest["sizes"] == {name: len(saved[name]) for name in FILES}
    assert manifest["base_sha256"] == find_base(CONFIG.model.base).sha256


def test_the_same_model_is_the_same_release_to_the_byte(
    model: BehaviourStage, saved: dict[str, bytes], tmp_path: Path
) -> None:
    save_to(tmp_path, model)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == saved


def test_another_model_has_another_fingerprint(model: BehaviourStage, release: Path, tmp_path: Path) -> None:
    fingerprint = load_release(release).fingerprint
    flat = flatten_parameters(model)
    other = trained_model()
    flat[0] += 1
    load_parameters(other, flat)
    save_to(tmp_path / "other", other)
    assert load_release(tmp_path / "other").fingerprint != fingerprint


def test_a_save_that_was_cut_short_is_no_release(
    model: BehaviourStage, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files.write_bytes

    def crash(path: Path, data: bytes) -> None:
        if path.name == "behaviour.safetensors":
            raise KeyboardInterrupt
        whole(path, data)

    monkeypatch.setattr(adapter, "write_bytes", crash)
    with pytest.raises(KeyboardInterrupt):
        save_to(release, model)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        load_release(release)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(release: Path, saved: dict[str, bytes], name: str) -> None:
    data = saved[name]
    step = max(1, len(data) // 25)
    for position in (*range(0, len(data), step), len(data) - 1):
        (release / name).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(IntegrityError, match=name):
            load_release(release)


def test_a_changed_byte_of_the_manifest_is_found(
    release: Path, saved: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says: digests, what was spent, the base model, the catalogue. (White space says nothing.)"""
    monkeypatch.setattr(adapter, "BehaviourStage", _not_reached)
    data = saved["manifest.json"]
    meaning = json.loads(data)
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        try:
            if json.loads(changed) == meaning:
                continue
        except ValueError:
            pass
        (release / "manifest.json").write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            load_release(release)


def _not_reached(*_: object, **__: object) -> None:
    raise AssertionError("a model was made of a release that was changed")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_found(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        load_release(release)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 1}', '{"format": 2, "files": {}}', "\xff"])
def test_a_manifest_that_is_none_is_refused(release: Path, text: str) -> None:
    (release / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError):
        load_release(release)


def test_a_file_that_the_manifest_does_not_name_is_refused(release: Path) -> None:
    reseal(release, lambda manifest: manifest["files"].pop("config.json"))
    with pytest.raises(IntegrityError, match=r"manifest\.json: .* config\.json"):
        load_release(release)


@pytest.mark.parametrize("key", ["base_sha256", "catalogue_sha256", "privacy", "files", "version"])
def test_a_manifest_that_says_less_than_it_must_is_refused(release: Path, key: str) -> None:
    reseal(release, lambda manifest: manifest.pop(key))
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        load_release(release)


# --- a release that is whole, and yet not what it should be ---------------------------------------


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Make a manifest that fits the files, as somebody who changed them would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    manifest["sizes"] = {name: (folder / name).stat().st_size for name in FILES}
    change(manifest)
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def retensor(file: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_tensors(file.read_bytes())
    change(tensors)
    file.write_bytes(save_tensors(tensors))
    reseal(file.parent)


LORA, REST = "adapter_model.safetensors", "behaviour.safetensors"


def first(tensors: Tensors, part: str) -> str:
    return next(name for name in sorted(tensors) if part in name)


def test_an_untouched_release_survives_resealing(release: Path, model: BehaviourStage) -> None:
    """Otherwise the tests below would prove nothing."""
    retensor(release / LORA, lambda tensors: None)
    assert torch.equal(scores(load_release(release).model), scores(model))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (LORA, lambda t: t.pop(first(t, "lora_A"))),
        (LORA, lambda t: t.update(extra=np.zeros(1, dtype=np.float32))),
        (LORA, lambda t: t.update({first(t, "lora_A"): np.zeros((2, 2), dtype=np.float32)})),
        (LORA, lambda t: t.update({first(t, "lora_B"): t[first(t, "lora_B")].astype(np.float64)})),
        (REST, lambda t: t.pop("scale.weight")),
        (REST, lambda t: t.update(extra=np.zeros(1, dtype=np.float32))),
        (REST, lambda t: t.update({"head.up.weight": t["head.up.weight"].T.copy()})),
        (REST, lambda t: t.pop("prior.popularity")),
        (REST, lambda t: t.update({"prior.users": np.zeros(ITEMS, dtype=np.float32)})),
        (REST, lambda t: t.update({"prior.item_to_item": np.zeros((ITEMS, 2), dtype=np.float32)})),
        (REST, lambda t: t.update({"prior.popularity": np.zeros((), dtype=np.float32)})),
        (REST, lambda t: t.update({"prior.popularity": np.zeros(ITEMS, dtype=np.float64)})),
    ],
    ids=[
        "no lora_A",
        "a tensor too many beside LoRA",
        "lora_A of another shape",
        "lora_B of another type",
        "no scale",
        "a tensor too many",
        "a head of another shape",
        "no popularity",
        "a prior too many",
        "item_to_item of another shape",
        "popularity without an axis",
        "popularity of another type",
    ],
)
def test_tensors_that_are_not_the_model_s_are_refused(
    release: Path, name: str, change: Callable[[Tensors], object]
) -> None:
    retensor(release / name, change)
    with pytest.raises(IntegrityError):
        load_release(release)


def test_parameters_that_are_no_numbers_are_refused(release: Path) -> None:
    retensor(release / REST, lambda t: t.update({"scale.weight": np.full((1, 1), np.nan, dtype=np.float32)}))
    with pytest.raises(IntegrityError, match="finite"):
        load_release(release)


def test_a_file_that_is_no_safetensors_is_refused(release: Path) -> None:
    (release / REST).write_bytes(b"not tensors")
    reseal(release)
    with pytest.raises(IntegrityError, match="Expected safetensors"):
        load_release(release)


def test_another_base_model_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_base", lambda name: BaseModel(name, release, "0" * 64))
    with pytest.raises(AdapterMismatchError, match=f"got {'0' * 64}"):
        load_release(release)


def test_a_configuration_with_an_unknown_key_is_refused(release: Path) -> None:
    config = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(json.dumps({**config, "shell": "rm"}))
    reseal(release)
    with pytest.raises(IntegrityError, match="shell"):
        load_release(release)


# --- PEFT -----------------------------------------------------------------------------------------


def test_peft_reads_a_release_as_its_own(model: BehaviourStage, release: Path) -> None:
    """The folder on a plain BertModel: its upper layers give the states of the behaviour stage."""
    from peft import PeftModel

    plain = load_bert(find_base(CONFIG.model.base))
    k = CONFIG.model.adapted_layers
    states = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 6, model.width)).astype(np.float32))

    def upper(layers: Any) -> torch.Tensor:
        x = states
        with torch.inference_mode():
            for layer in layers:
                x = layer(x)
        return x

    untrained = upper(plain.encoder.layer[-k:])
    peft = PeftModel.from_pretrained(plain, str(release)).eval()
    theirs = upper(peft.base_model.model.encoder.layer[-k:])
    ours = upper(model.layers)
    assert (ours - untrained).abs().max() > 1e-3  # the adapter does something
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_peft_adapts_only_the_upper_layers(release: Path) -> None:
    from peft import PeftModel

    peft = PeftModel.from_pretrained(load_bert(find_base(CONFIG.model.base)), str(release))
    adapted = {name.split(".layer.")[1].split(".")[0] for name, _ in peft.named_parameters() if "lora_" in name}
    assert adapted == {"4", "5"}
    assert sum("lora_" in name for name, _ in peft.named_parameters()) == 2 * 2 * 6
