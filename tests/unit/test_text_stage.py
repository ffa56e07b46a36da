"""The text stage, its cache, and the weights it trusts."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.text_cache import TextCache
from shared.config import DEFAULT_BASE
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError
from shared.model import weights
from shared.model.text import TextStage
from shared.model.weights import BaseModel, choose_device, find_base, has_fast_bf16, load_bert

WIDTH = 32
CPU = torch.device("cpu")
TEXTS = ["", "a red kettle", "quiet and boils fast", "a red kettle", "ünïcode 漢字", "long " * 200]


@pytest.fixture(scope="module")
def folder(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers and width 32 on disk, with MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    made = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(made)
    for file in base.path.glob("*token*"):
        shutil.copy(file, made)
    shutil.copy(base.path / "vocab.txt", made)
    return made


@pytest.fixture(scope="module")
def stage(folder: Path) -> TextStage:
    return TextStage(find_base(str(folder)), adapted_layers=1, max_tokens=16, device=CPU)


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache(tmp_path / "deep" / "cache.sqlite")


@pytest.fixture
def fresh_search() -> Iterator[None]:
    find_base.cache_clear()
    yield
    find_base.cache_clear()


# --- vectors


def test_each_text_gives_a_text_vector_and_an_item_vector_of_norm_one(stage: TextStage) -> None:
    vectors = stage.encode(TEXTS)
    assert vectors.shape == (6, 2, WIDTH) and vectors.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(vectors[1:, 1].astype(np.float64), axis=1), 1.0, atol=2e-3)
    assert np.array_equal(vectors[1], vectors[3])
    assert not np.allclose(vectors[1], vectors[2])


def test_an_empty_text_gives_zeros(stage: TextStage) -> None:
    assert not stage.encode(["", ""]).any()
    assert stage.encode([]).shape == (0, 2, WIDTH)
    assert not stage.encode([""], items=False).any()


def test_the_vectors_are_those_of_the_plain_bert(folder: Path, stage: TextStage) -> None:
    from transformers import AutoTokenizer

    bert = load_bert(find_base(str(folder)))
    tokens = AutoTokenizer.from_pretrained(folder)("a red kettle", return_tensors="pt")
    with torch.no_grad():
        hidden = bert(**tokens, output_hidden_states=True).hidden_states
    text, item = hidden[2][0].mean(0), torch.nn.functional.normalize(hidden[3][0].mean(0), dim=-1)
    found = stage.encode(["a red kettle"])[0]
    # fp16 of float32; bf16 where the processor has it.
    tolerance = 3e-2 if has_fast_bf16("cpu") else 2e-3
    np.testing.assert_allclose(found, torch.stack([text, item]).numpy(), atol=tolerance)


def test_text_vectors_alone_are_the_same_and_need_no_upper_layer(stage: TextStage) -> None:
    both, alone = stage.encode(TEXTS), stage.encode(TEXTS, items=False)
    assert alone.shape == (6, 1, WIDTH)
    np.testing.assert_allclose(alone[:, 0], both[:, 0], atol=2e-3)


def test_the_company_in_a_batch_does_not_change_a_vector(stage: TextStage) -> None:
    together, alone = stage.encode(TEXTS), np.concatenate([stage.encode([text]) for text in TEXTS])
    # Padding is masked; what is left is the rounding of another order of sums (bf16 where used).
    np.testing.assert_allclose(together, alone, atol=3e-2 if has_fast_bf16("cpu") else 2e-3)


def test_a_user_s_text_has_one_vector_whatever_others_wrote(stage: TextStage) -> None:
    """One user's review must not move the vector of another's: not by padding, not by the rounding of a batch."""
    own = stage.encode(["a red kettle"], items=False)
    for others in (["b"], ["kettle " * 14], ["a", "word " * 7, "kettle " * 30] * 5):
        together = stage.encode([*others, "a red kettle", *others], items=False)
        assert np.array_equal(together[len(others)], own[0])


def test_more_word_pieces_than_the_model_has_places_for_are_refused(folder: Path) -> None:
    """Before anything is paid: a text that is too long would end a round, and tell that somebody wrote it."""
    long = TextStage(find_base(str(folder)), adapted_layers=1, max_tokens=100_000, device=CPU)
    with pytest.raises(ConfigError, match=r"Expected model\.max_tokens <= \d+, got 100000"):
        long.encode(["a"])


def test_only_the_first_word_pieces_are_read(stage: TextStage) -> None:
    vectors = stage.encode(["word " * 14 + tail for tail in ("this", "that")])
    assert np.array_equal(vectors[0], vectors[1])


def test_progress_counts_every_text(stage: TextStage) -> None:
    told: list[int] = []
    stage.encode(TEXTS, batch_size=2, progress=told.append)
    assert told == [2, 4, 5]  # the empty text needs no work


def test_more_adapted_layers_than_bert_has_are_refused(folder: Path) -> None:
    deep = TextStage(find_base(str(folder)), adapted_layers=4, max_tokens=16, device=CPU)
    with pytest.raises(ConfigError, match=r"Expected model\.adapted_layers <= 3, got 4"):
        deep.encode(["a"])


# --- the cache


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the cache asked BERT again")

    monkeypatch.setattr(TextStage, "encode", refuse)


@pytest.mark.parametrize("items", [True, False])
def test_the_cache_gives_the_vectors_of_the_stage(stage: TextStage, cache: TextCache, items: bool) -> None:
    found = cache.vectors(stage, TEXTS, width=WIDTH, items=items)
    np.testing.assert_allclose(found, stage.encode(TEXTS, items=items), atol=3e-2)
    assert found.shape == (6, 2 if items else 1, WIDTH) and not found[0].any()


def test_a_text_is_read_once_and_never_again(
    stage: TextStage, cache: TextCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.vectors(stage, TEXTS, width=WIDTH)
    forbid_reading(monkeypatch)
    reopened = TextCache(tmp_path / "deep" / "cache.sqlite")
    assert np.array_equal(reopened.vectors(stage, TEXTS, width=WIDTH), first)
    assert np.array_equal(reopened.vectors(stage, TEXTS[::-1], width=WIDTH), first[::-1])
    with pytest.raises(AssertionError, match="asked BERT again"):
        reopened.vectors(stage, [*TEXTS, "a new text"], width=WIDTH)


def test_only_missing_texts_are_computed(stage: TextStage, cache: TextCache) -> None:
    told: list[tuple[int, int]] = []
    cache.vectors(stage, TEXTS, width=WIDTH, progress=lambda done, of: told.append((done, of)))
    cache.vectors(stage, [*TEXTS, "a new text"], width=WIDTH, progress=lambda done, of: told.append((done, of)))
    assert told == [(5, 5), (1, 1)]


def test_a_cached_vector_belongs_to_one_recipe(folder: Path, stage: TextStage, tmp_path: Path) -> None:
    base = stage.base
    recipes = {
        variant.recipe(items=items)
        for items in (True, False)
        for variant in (
            stage,
            TextStage(base, adapted_layers=2, max_tokens=16, device=CPU),
            TextStage(base, adapted_layers=1, max_tokens=17, device=CPU),
            TextStage(BaseModel(base.name, folder, "0" * 64), adapted_layers=1, max_tokens=16, device=CPU),
        )
    }
    assert len(recipes) == 8
    # The name and the place of a model are not part of it: the same weights are the same model.
    moved = BaseModel("another name", tmp_path, base.sha256)
    assert TextStage(moved, adapted_layers=1, max_tokens=16, device=CPU).recipe(items=True) in recipes


def test_another_recipe_is_computed_anew(stage: TextStage, cache: TextCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.vectors(stage, ["a red kettle"], width=WIDTH)
    forbid_reading(monkeypatch)
    other = TextStage(stage.base, adapted_layers=2, max_tokens=16, device=CPU)
    for variant, items in ((other, True), (stage, False)):
        with pytest.raises(AssertionError, match="asked BERT again"):
            cache.vectors(variant, ["a red kettle"], width=WIDTH, items=items)


def test_the_file_holds_no_text_and_only_its_owner_may_read_it(
    stage: TextStage, cache: TextCache, tmp_path: Path
) -> None:
    cache.vectors(stage, ["a very private sentence"], width=WIDTH)
    file = tmp_path / "deep" / "cache.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["cache.sqlite"]  # no journal is left beside it
    data = file.read_bytes()
    assert b"private" not in data
    assert hashlib.sha256(f"{stage.recipe(items=True)}\0a very private sentence".encode()).digest() in data


@pytest.mark.parametrize("harm", ["not a database", "cut", "another table"])
def test_a_file_that_is_no_cache_is_refused(stage: TextStage, tmp_path: Path, harm: str) -> None:
    file = tmp_path / "cache.sqlite"
    if harm == "not a database":
        file.write_bytes(b"this is no database, but it is long enough to be looked at as one" * 40)
    elif harm == "cut":
        TextCache(file).vectors(stage, [f"text {k}" for k in range(200)], width=WIDTH)
        file.write_bytes(file.read_bytes()[:5000])
    else:
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE vectors (something TEXT)")
        db.close()
    with pytest.raises(IntegrityError, match=r"cache\.sqlite: not a text cache"):
        TextCache(file).vectors(stage, ["text 1"], width=WIDTH)


def test_a_vector_of_another_size_is_refused(stage: TextStage, cache: TextCache, tmp_path: Path) -> None:
    cache.vectors(stage, ["a red kettle"], width=WIDTH)
    with pytest.raises(IntegrityError, match=f"Expected text vectors of bytes={4 * WIDTH * 2}"):
        cache.vectors(stage, ["a red kettle"], width=2 * WIDTH)
    with sqlite3.connect(tmp_path / "deep" / "cache.sqlite") as db:
        db.execute("UPDATE vectors SET data = x'00'")
    db.close()
    with pytest.raises(IntegrityError, match=f"Expected text vectors of bytes={4 * WIDTH}"):
        cache.vectors(stage, ["a red kettle"], width=WIDTH)


def test_no_texts_are_no_work(stage: TextStage, cache: TextCache, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_reading(monkeypatch)
    assert cache.vectors(stage, [], width=WIDTH).shape == (0, 2, WIDTH)


# --- weights


def test_the_default_model_is_the_publishers_file(base: BaseModel) -> None:
    assert base.name == DEFAULT_BASE
    assert base.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.usefixtures("fresh_search")
def test_other_weights_under_a_pinned_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PINNED, DEFAULT_BASE, "0" * 64)
    with pytest.raises(AdapterMismatchError, match="Expected sha256=0000"):
        find_base(DEFAULT_BASE)


@pytest.mark.usefixtures("fresh_search")
def test_one_changed_byte_of_the_weights_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.setitem(weights.PINNED, str(copy), find_base(str(copy)).sha256)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    find_base.cache_clear()
    with pytest.raises(AdapterMismatchError):
        find_base(str(copy))


@pytest.mark.usefixtures("fresh_search")
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGED, DEFAULT_BASE, "no_such_package_at_all")
    with pytest.raises(ConfigError, match="no_such_package_at_all is not installed"):
        find_base(DEFAULT_BASE)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        find_base(str(tmp_path))


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="no folder of this name"):
        find_base("nobody/no-such-model")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "cannot be loaded as a BERT"),
        ("{not json", "cannot be loaded as a BERT"),
        ('{"model_type": "gpt2"}', "Expected model_type=bert, got gpt2"),
        ('{"model_type": "distilbert"}', "Expected model_type=bert, got distilbert"),
        ('{"model_type": "bert"}', "cannot be loaded as a BERT"),  # the weights are no safetensors
    ],
)
def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path, config: str | None, told: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=told):
        load_bert(find_base(str(tmp_path)))


def test_weights_that_do_not_fit_their_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * WIDTH}))
    with pytest.raises(ConfigError, match="cannot be loaded as a BERT"):
        load_bert(find_base(str(copy)))


def test_a_loaded_bert_is_frozen(folder: Path) -> None:
    bert = load_bert(find_base(str(folder)))
    assert not bert.training
    assert not any(p.requires_grad for p in bert.parameters())


def test_a_device_is_chosen_or_refused() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device().type in {"cpu", "cuda", "mps"}
    for name in ("no-such-device", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ConfigError, match="Expected device in auto, cpu, cuda, mps"):
            choose_device(name)
