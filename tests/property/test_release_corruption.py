"""A thousand corrupted releases: each is refused with an error of ours, and the shelf serves what it served.

The seeds are fixed. Nothing here loads BERT but the making of one release: signature and digests come first, and what
a trusted but mistaken coordinator signs is refused by the layer that parses.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from signed_releases import KEY, STRANGER, Contents, model, saved, signed, write

from client.ranking.release_memory import ReleaseMemory
from client.ranking.releases import ReleaseShelf
from shared.adapter import arranged
from shared.errors import AdapterMismatchError, IntegrityError, InvalidSignatureError
from shared.model.behaviour import trainable_parameters
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE, read_release
from shared.release_manifest import FILES, manifest_bytes

TRIALS = 50
LORA, REST = "adapter_model.safetensors", "behaviour.safetensors"
ALL = (*FILES, MANIFEST_FILE, SIGNATURE_FILE)
SERVED, NEWER = 2, 3
Corrupt = Callable[[random.Random], Contents]


@cache
def newer() -> Mapping[str, bytes]:
    """Version 3 as it was signed: what every corruption begins with."""
    return signed(saved(), version=NEWER)


@cache
def other() -> Mapping[str, bytes]:
    """Another valid release of the same coordinator."""
    tensors = load_tensors(saved()[LORA])
    files = {**saved(), LORA: save_tensors({name: array + 1 for name, array in tensors.items()})}
    return signed(files, version=NEWER + 1, catalogue_sha256="e" * 64)


def edited(random_: random.Random, name: str) -> bytes:
    """The tensors of a file, one of them renamed, of another shape or type, absent, or no number."""
    tensors = load_tensors(saved()[name])
    victim = random_.choice(sorted(set(tensors) - {"prior.item_to_item"}))  # a release may be without that one
    array = tensors.pop(victim)
    flat = array.copy().ravel()
    flat[random_.randrange(flat.size)] = random_.choice([np.nan, np.inf, -np.inf])
    harmed = {
        "renamed": {victim + random_.choice(["x", ".weight", "\u0000"]): array},
        "shape": {victim: np.concatenate([array.ravel(), array.ravel()])},
        "axes": {victim: array[None]},
        "type": {victim: array.astype(random_.choice([np.float64, np.float16, np.int32, np.uint8]))},
        "absent": {},
        "empty": {victim: array[:0]},
        "no number": {victim: flat.reshape(array.shape)},
        "one more": {victim: array, f"extra.{random_.randrange(100)}": array},
        "in both": {
            victim: array,
            random_.choice(sorted(load_tensors(saved()[REST if name == LORA else LORA]))): array,
        },
    }
    return save_tensors({**tensors, **harmed[random_.choice(sorted(harmed))]})


@dataclass(frozen=True)
class Bomb:
    """It makes a file where it is unpickled."""

    marker: str

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.marker, "w")


MARKER = "exploded"


def flipped(name: str) -> Corrupt:
    def corrupt(random_: random.Random) -> Contents:
        files = newer()
        data = bytearray(files[name])
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        return {**files, name: bytes(data)}

    return corrupt


def cut(random_: random.Random) -> Contents:
    files, name = newer(), random_.choice(ALL)
    return {**files, name: files[name][: random_.randrange(len(files[name]))]}


def longer(random_: random.Random) -> Contents:
    files, name = newer(), random_.choice(ALL)
    return {**files, name: files[name] + random_.choice([b"\0", b" ", b"\n", files[name], random_.randbytes(9)])}


def absent(random_: random.Random) -> Contents:
    files = dict(newer())
    del files[random_.choice(ALL)]
    return files


def swapped(random_: random.Random) -> Contents:
    """Some files of one valid release, the others of another."""
    one, two = newer(), other()
    differing = [name for name in ALL if one[name] != two[name]]
    taken = random_.sample(differing, random_.randrange(1, len(differing)))
    return {**one, **{name: two[name] for name in taken}}


def pickled(random_: random.Random) -> Contents:
    return {**newer(), random_.choice(ALL): pickle.dumps(Bomb(MARKER), protocol=random_.randrange(6))}


def edited_tensors(random_: random.Random) -> Contents:
    name = random_.choice([LORA, REST])
    return {**newer(), name: edited(random_, name)}


def refingerprinted(random_: random.Random) -> Contents:
    """Files and manifest fit each other, but the signature is the old one."""
    name = random_.choice([LORA, REST])
    files = signed({**saved(), name: edited(random_, name)}, version=random_.randrange(NEWER, 100))
    return {**files, SIGNATURE_FILE: newer()[SIGNATURE_FILE]}


def retold(random_: random.Random) -> Contents:
    """A better story in the manifest, fingerprinted again, not signed again."""
    files = newer()
    manifest = json.loads(files[MANIFEST_FILE])
    privacy = {**manifest["privacy"], "epsilon": random_.uniform(0, 7)}
    manifest |= random_.choice([{"privacy": privacy}, {"version": random_.randrange(4, 2**31)}, {"format": 1.0}])
    return {**files, MANIFEST_FILE: manifest_bytes(manifest)}


def of_a_stranger(random_: random.Random) -> Contents:
    return signed(saved(), STRANGER, version=random_.randrange(1, 100))


def older(random_: random.Random) -> Contents:
    """Whole and well signed: only the partner's memory shows what is wrong with it."""
    return signed(saved(), version=1, catalogue_sha256=random_.randbytes(32).hex())


CORRUPTIONS: dict[str, Corrupt] = {
    **{f"a bit of {name}": flipped(name) for name in ALL},
    "signature, many bits": flipped(SIGNATURE_FILE),
    "manifest, many bits": flipped(MANIFEST_FILE),
    "cut": cut,
    "cut again": cut,
    "longer": longer,
    "absent": absent,
    "swapped": swapped,
    "swapped again": swapped,
    "pickled": pickled,
    "tensors edited": edited_tensors,
    "edited and fingerprinted": refingerprinted,
    "retold": retold,
    "of a stranger": of_a_stranger,
    "older": older,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ReleaseShelf]]:
    """A shelf that serves version 2, and a process that remembers it."""
    root = tmp_path_factory.mktemp("partner")
    write(root / "releases" / "good", signed(saved(), version=SERVED))
    shelf = ReleaseShelf(root / "releases", KEY.public, root / "state.json")
    best = shelf.latest()
    assert best is not None and best.known.version == SERVED
    ReleaseMemory(root / "state.json").served(best.known)
    yield root, shelf
    assert len(CORRUPTIONS) * TRIALS == 1000


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corrupted_release_is_refused_and_the_shelf_serves_what_it_served(
    kind: str, served: tuple[Path, ReleaseShelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, shelf = served
    monkeypatch.chdir(root)  # where a pickle would explode
    bad = write(root / "releases" / "bad", newer())
    random_, before = random.Random(f"release {kind}"), newer()
    for _ in range(TRIALS):
        files = CORRUPTIONS[kind](random_)
        assert files not in (newer(), other())
        write(bad, {name: data for name, data in files.items() if before.get(name) != data})
        for name in before.keys() - files.keys():
            (bad / name).unlink()
        before = files
        if kind != "older":
            with pytest.raises((IntegrityError, AdapterMismatchError)) as error:
                read_release(bad, KEY.public)
            assert "\n" not in str(error.value)
        best = shelf.latest()
        assert best is not None and best.known.version == SERVED
    best = ReleaseShelf(root / "releases", KEY.public, root / "state.json").latest()  # as a new process would
    assert best is not None and best.known.version == SERVED
    assert not (root / MARKER).exists()


def test_what_is_not_corrupted_is_served(served: tuple[Path, ReleaseShelf]) -> None:
    """Otherwise a shelf that takes nothing would pass above."""
    root, shelf = served
    bad = root / "releases" / "bad"
    for files, version in ((newer(), NEWER), (other(), NEWER + 1)):
        write(bad, files)
        best = shelf.latest()
        assert best is not None and best.known.version == version


def test_a_signature_is_checked_before_digests_and_digests_before_tensors(tmp_path: Path) -> None:
    files = {**newer(), MANIFEST_FILE: b"[", LORA: b"x"}
    with pytest.raises(InvalidSignatureError):
        read_release(write(tmp_path, files), KEY.public)
    with pytest.raises(IntegrityError, match=r"sha256|size"):
        read_release(write(tmp_path, {**newer(), LORA: saved()[LORA][:-1]}), KEY.public)


# --- a trusted coordinator that is mistaken -------------------------------------------------------


@pytest.mark.parametrize("name", [LORA, REST])
def test_tensors_that_were_signed_by_mistake_are_refused(name: str, tmp_path: Path) -> None:
    shapes = {key: tuple(parameter.shape) for key, parameter in trainable_parameters(model()).items()}
    offset = model().depth - model().config.adapted_layers
    whole = read_release(write(tmp_path, newer()), KEY.public)
    assert arranged(whole, shapes, offset, tmp_path).shape == (sum(map(int, map(np.prod, shapes.values()))),)
    random_ = random.Random(f"mistaken {name}")
    for _ in range(40):
        data = edited(random_, name)
        write(tmp_path, signed({**saved(), name: data}))
        with pytest.raises(IntegrityError):
            arranged(read_release(tmp_path, KEY.public), shapes, offset, tmp_path)


@pytest.mark.parametrize("name", [*FILES[1:]])
def test_bytes_that_were_signed_by_mistake_are_read_or_refused_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Headers of safetensors and JSON, bit by bit: the parsers never fail in a way of their own."""
    random_ = random.Random(f"bytes {name}")
    refused = 0
    write(tmp_path, newer())
    for _ in range(40):
        data = bytearray(saved()[name])
        for _ in range(random_.randrange(1, 4)):
            data[random_.randrange(min(len(data), 2500))] = random_.randrange(256)
        write(tmp_path, signed({**saved(), name: bytes(data)}))
        try:
            read_release(tmp_path, KEY.public)
        except IntegrityError:
            refused += 1
    assert refused > 20
