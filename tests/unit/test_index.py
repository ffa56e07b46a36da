"""The catalogue's index: built once, grown by what is new, refused where it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.ranking import index as index_module
from client.ranking.index import CatalogueIndex
from shared.errors import IntegrityError, StaleIndexError
from shared.schema import Catalogue

RECIPE = "mean|base|k=2"


def catalogue(**titles: str) -> Catalogue:
    ids = sorted(titles)
    return Catalogue(tuple(ids), tuple(titles[i] for i in ids), ("",) * len(ids), ("",) * len(ids))


class Reader:
    """A stand-in for BERT that remembers what it was given to read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, passages: Sequence[str]) -> NDArray[np.float16]:
        self.read += passages
        return np.stack([np.full((2, 3), sum(map(ord, passage)) % 1000, np.float16) for passage in passages])


def built(folder: Path, of: Catalogue, reader: Reader) -> CatalogueIndex:
    return CatalogueIndex.build(folder, of, RECIPE, reader)


def check(index: CatalogueIndex, of: Catalogue) -> None:
    """Every row holds what its own passage gives."""
    np.testing.assert_array_equal(index.vectors, Reader()(of.passages()))


def test_an_index_is_built_once(tmp_path: Path) -> None:
    shop, reader = catalogue(a="lamp", b="chair"), Reader()
    check(built(tmp_path, shop, reader), shop)
    check(built(tmp_path, shop, reader), shop)
    assert sorted(reader.read) == ["chair", "lamp"]
    assert isinstance(CatalogueIndex.open(tmp_path, shop, RECIPE).vectors, np.memmap)


def test_only_what_is_new_or_changed_is_read(tmp_path: Path) -> None:
    reader = Reader()
    built(tmp_path, catalogue(a="lamp", b="chair", c="desk"), reader)
    reader.read.clear()
    after = catalogue(a="oak lamp", b="chair", aa="pen")  # changed, kept at another row, new, and c gone
    check(built(tmp_path, after, reader), after)
    assert sorted(reader.read) == ["oak lamp", "pen"]
    assert len(list(tmp_path.glob("*.npy"))) == 2, "files of the old index are gone"


def test_removing_items_reads_nothing(tmp_path: Path) -> None:
    reader = Reader()
    built(tmp_path, catalogue(a="lamp", b="chair"), reader)
    reader.read.clear()
    fewer = catalogue(b="chair")
    check(built(tmp_path, fewer, reader), fewer)
    assert not reader.read


def test_a_stale_index_is_refused(tmp_path: Path) -> None:
    shop = catalogue(a="lamp")
    with pytest.raises(StaleIndexError, match="Build it anew"):
        CatalogueIndex.open(tmp_path, shop, RECIPE)
    built(tmp_path, shop, Reader())
    for other, recipe in ((catalogue(a="lamps"), RECIPE), (catalogue(b="lamp"), RECIPE), (shop, "mean|other|k=2")):
        with pytest.raises(StaleIndexError):
            CatalogueIndex.open(tmp_path, other, recipe)


def test_another_base_model_reads_everything_again(tmp_path: Path) -> None:
    shop, reader = catalogue(a="lamp", b="chair"), Reader()
    built(tmp_path, shop, reader)
    CatalogueIndex.build(tmp_path, shop, "mean|other|k=2", reader)
    assert sorted(reader.read) == ["chair", "chair", "lamp", "lamp"]


@pytest.mark.parametrize("broken", ["index.json", "vectors", "keys"])
def test_a_damaged_index_is_refused_and_made_anew(tmp_path: Path, broken: str) -> None:
    shop, reader = catalogue(a="lamp", b="chair"), Reader()
    built(tmp_path, shop, reader)
    file = next(tmp_path.glob(f"{broken}*"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(IntegrityError, match="Delete it"):
        CatalogueIndex.open(tmp_path, shop, RECIPE)
    check(built(tmp_path, shop, reader), shop)
    assert len(reader.read) == 4


def test_a_build_that_is_cut_off_leaves_the_old_index(tmp_path: Path) -> None:
    before = catalogue(a="lamp")
    built(tmp_path, before, Reader())

    def fails(passages: Sequence[str]) -> NDArray[np.float16]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CatalogueIndex.build(tmp_path, catalogue(a="lamp", b="chair"), RECIPE, fails)
    check(CatalogueIndex.open(tmp_path, before, RECIPE), before)


def test_progress_is_told_of_what_must_be_read(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    shop = catalogue(**{f"i{k:04d}": f"thing {k}" for k in range(1500)})
    CatalogueIndex.build(tmp_path, shop, RECIPE, Reader(), lambda done, of: told.append((done, of)))
    assert told == [(1024, 1500), (1500, 1500)]


def test_vectors_of_another_recipe_are_never_taken_for_those_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build for another base model that is killed before it tells of itself."""
    shop = catalogue(a="lamp")
    built(tmp_path, shop, Reader())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            CatalogueIndex.build(tmp_path, shop, "mean|other|k=2", lambda passages: Reader()(passages) + 1)
    check(CatalogueIndex.open(tmp_path, shop, RECIPE), shop)
