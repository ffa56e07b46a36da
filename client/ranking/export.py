"""Export a release for other runtimes: a folder of ONNX graphs, of a sentence encoder, or of both.

What goes out is read from a release that was verified a moment before, and from the public catalogue. A partner's own
part (`client.ranking.personal`) cannot get in: nothing here takes a release that was made in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from client.data.text_cache import TextCache
from client.ranking.export_onnx import compact, require_onnx, write_onnx
from client.ranking.export_readme import readme
from client.ranking.export_sentence_transformers import write_sentence_transformers
from client.workbench import catalogue_vectors
from shared.adapter import Release, load_release
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError
from shared.files import write_bytes, write_json
from shared.model.behaviour import CatalogueVectors
from shared.model.text import TextStage
from shared.model.weights import choose_device
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE
from shared.release_signature import Trust
from shared.schema import Catalogue

FORMATS = frozenset({"onnx", "sentence-transformers"})
FORMAT = 1
"""Of the export's manifest."""


def export_release(
    adapter: Path,
    catalogue: Catalogue,
    out: Path,
    cache: TextCache,
    *,
    formats: frozenset[str] = FORMATS,
    trust: Trust | None = None,
) -> Path:
    """Write a release and its catalogue to the new folder `out`; it appears whole, or not at all.

    Parameters
    ----------
    adapter : Path
        Folder of the release.
    catalogue : Catalogue
        That of the release.
    out : Path
        Not there yet, or an empty folder.
    cache : TextCache
        Of item vectors; those that are missing are computed.
    formats : frozenset of str
        Some of `FORMATS`.
    trust : VerifyKey or frozenset of VerifyKey, optional
        Whose signature the release must have; without one digests alone are checked.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If `out` holds something, a format is unknown, or what it needs is not installed.
    IntegrityError
        If the adapter is not what was released, or a graph does not compute what the model does.
    AdapterMismatchError
        If the release belongs to another catalogue.
    """
    _check(out, formats)
    release = load_release(adapter, trust)
    if release.manifest["catalogue_sha256"] != catalogue.digest:
        raise AdapterMismatchError("Expected the catalogue that the adapter was trained with: digests differ.")
    vectors = _vectors(release, catalogue, cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _copy_manifest(adapter, release, scratch / "release")
        _fill(scratch, release, catalogue, vectors, formats)
        scratch.replace(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return out


def _check(out: Path, formats: frozenset[str]) -> None:
    if not formats or not formats <= FORMATS:
        raise ConfigError(f"Expected format=all or one of {', '.join(sorted(FORMATS))}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: Expected out=a new or empty folder.")
    if "onnx" in formats:
        require_onnx()


def _vectors(release: Release, catalogue: Catalogue, cache: TextCache) -> CatalogueVectors:
    model = release.config.model
    return catalogue_vectors(TextStage.of(model, choose_device("cpu")), catalogue, cache, release.model.width)


def _copy_manifest(adapter: Path, release: Release, folder: Path) -> None:
    """Byte for byte, so that the coordinator's signature over it still holds."""
    told = (adapter / MANIFEST_FILE).read_bytes()
    if json.loads(told) != release.manifest:
        raise IntegrityError(f"{adapter}: Expected the manifest that was read before.")
    write_bytes(folder / MANIFEST_FILE, told)
    if (signature := adapter / SIGNATURE_FILE).is_file():
        write_bytes(folder / SIGNATURE_FILE, signature.read_bytes())


def _fill(
    folder: Path, release: Release, catalogue: Catalogue, vectors: CatalogueVectors, formats: frozenset[str]
) -> None:
    """The manifest comes last: a folder without one is no export."""
    write_json(folder / "items.json", {"item_ids": catalogue.item_ids, "titles": catalogue.titles})
    buffer = io.BytesIO()
    np.save(buffer, compact(vectors.items.numpy()), allow_pickle=False)
    write_bytes(folder / "item_vectors.npy", buffer.getvalue())
    write_bytes(folder / "README.md", readme(release, formats, len(catalogue)).encode())
    if "onnx" in formats:
        write_onnx(folder / "onnx", release, vectors, catalogue.passages())
    if "sentence-transformers" in formats:
        write_sentence_transformers(folder / "sentence-transformers", release.config.model, release.model.width)
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / "manifest.json", {"format": FORMAT, "release": release.manifest, "files": files})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
