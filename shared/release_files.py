"""Read the files of a release: what was signed, and nothing else, without the model and without torch.

In this order, each before the next: the signature over the manifest's bytes, the manifest's keys and types, size and
SHA-256 of every file, the tensors. Nothing is unpickled, and a file that the manifest does not name is not opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from shared.config import RunConfig, parse_config
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError
from shared.model.prior import CollaborativePrior
from shared.release_manifest import FILES, parse_manifest
from shared.release_signature import Trust, check_signature

MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
PRIOR_PREFIX = "prior."
PRIOR_ARRAYS = ("popularity", "item_to_item", "widen", "unseen", "text_weights")
MOST_JSON_BYTES = 2**20
MOST_TENSOR_BYTES = 2**32
"""Two matrices of 256 columns over a million items take half of it."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReleaseParts:
    """What the files of a release hold.

    Attributes
    ----------
    manifest : dict
    config : RunConfig
    lora : mapping of str to array
        Under PEFT's names.
    rest : mapping of str to array
        What else was trained, under the model's own names.
    prior : CollaborativePrior
    """

    manifest: dict[str, Any]
    config: RunConfig
    lora: Mapping[str, Vector]
    rest: Mapping[str, Vector]
    prior: CollaborativePrior


def read_manifest(folder: Path, trust: Trust | None = None) -> dict[str, Any]:
    """The manifest of a release; with `trust` the signature is checked before a byte of it is parsed.

    Raises
    ------
    InvalidSignatureError
        If there is no signature of a trusted key over exactly these bytes.
    IntegrityError
        If there is no manifest, or it is not one.
    """
    data = _read(folder, MANIFEST_FILE, MOST_JSON_BYTES)
    if trust is not None:
        check_signature(data, _read(folder, SIGNATURE_FILE, MOST_JSON_BYTES), trust, folder / SIGNATURE_FILE)
    return parse_manifest(data, folder / MANIFEST_FILE)


def read_contents(folder: Path, manifest: dict[str, Any]) -> dict[str, bytes]:
    """The files that a manifest names, by name, each of the size and digest that it tells.

    Raises
    ------
    IntegrityError
        If a file is absent, leads out of the folder, or is another.
    """
    return {name: _checked(folder, name, manifest) for name in FILES}


def read_release(folder: Path, trust: Trust | None = None) -> ReleaseParts:
    """Read and check a release, all but the fit of its tensors to a model.

    Parameters
    ----------
    folder : Path
    trust : VerifyKey or frozenset of VerifyKey, optional
        Whose signature is asked for. Without one digests alone are checked, as is enough for one's own run folder.

    Raises
    ------
    InvalidSignatureError, IntegrityError
        As `read_manifest` and `read_contents`, or if a file does not hold what a release holds.
    """
    manifest = read_manifest(folder, trust)
    return parse_contents(manifest, read_contents(folder, manifest), folder)


def parse_contents(manifest: dict[str, Any], contents: Mapping[str, bytes], folder: Path) -> ReleaseParts:
    """What the contents of the files mean; `folder` is named in errors.

    Raises
    ------
    IntegrityError
        If a file does not hold what a release holds.
    """
    file = folder / "config.json"
    try:
        config = parse_config(contents["config.json"].decode(), str(file))
    except (ConfigError, UnicodeDecodeError) as error:
        raise IntegrityError(str(error) if isinstance(error, ConfigError) else f"{file}: Expected UTF-8.") from None
    if config.model.base != manifest["base"]:
        raise IntegrityError(f"{file}: Expected model.base={manifest['base']}, as the manifest tells.")
    lora = read_tensors(contents["adapter_model.safetensors"], folder / "adapter_model.safetensors")
    rest = read_tensors(contents["behaviour.safetensors"], folder / "behaviour.safetensors")
    prior = _read_prior(
        {n.removeprefix(PRIOR_PREFIX): t for n, t in rest.items() if n.startswith(PRIOR_PREFIX)}, folder
    )
    own = {name: array for name, array in rest.items() if not name.startswith(PRIOR_PREFIX)}
    axes = {n for array in (*lora.values(), *own.values()) for n in array.shape}
    # A configuration that these tensors do not fit could ask for a model that no memory holds.
    if not {config.model.lora_rank, config.model.head_rank, config.model.item_rank} - {0} <= axes:
        raise IntegrityError(f"{folder}: Expected tensors of the ranks that config.json tells.")
    return ReleaseParts(manifest, config, lora, own, prior)


def read_tensors(data: bytes, file: Path) -> dict[str, Vector]:
    """The arrays of a safetensors file, all of them float32, finite and not empty.

    Raises
    ------
    IntegrityError
        If one is not, or the file is none.
    """
    try:
        views = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        raise IntegrityError(f"{file}: Expected safetensors.") from None
    if any(view["dtype"] != "F32" for _, view in views):
        raise IntegrityError(f"{file}: Expected tensors of dtype=float32.")
    try:
        arrays = {name: np.frombuffer(view["data"], dtype="<f4").reshape(view["shape"]) for name, view in views}
    except ValueError:  # more axes than numpy has
        raise IntegrityError(f"{file}: Expected safetensors.") from None
    if any(array.size == 0 or not np.isfinite(array).all() for array in arrays.values()):
        raise IntegrityError(f"{file}: Expected tensors that are finite and not empty.")
    return arrays


def _read_prior(arrays: dict[str, Vector], folder: Path) -> CollaborativePrior:
    if "popularity" not in arrays or not set(arrays) <= set(PRIOR_ARRAYS):
        raise IntegrityError(f"{folder}: Expected a prior of the arrays {', '.join(PRIOR_ARRAYS)}, the first for sure.")
    prior = CollaborativePrior(**arrays)
    try:
        prior.check(prior.popularity.size)
    except AdapterMismatchError as error:
        raise IntegrityError(f"{folder}: {error}") from None
    return prior


def _checked(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    most = MOST_JSON_BYTES if name.endswith(".json") else MOST_TENSOR_BYTES
    sizes = manifest.get("sizes")
    data = _read(folder, name, most if sizes is None else min(most, sizes[name]))
    digest = manifest["files"][name]
    if hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityError(f"{folder / name}: Expected sha256={digest}.")
    return data


def _read(folder: Path, name: str, most: int) -> bytes:
    """A plain file inside the folder, of up to `most` bytes: its writer can neither fill the memory nor stop us."""
    path = folder / name
    inside = os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))  # noqa: PTH118
    data: bytes | None = None
    try:
        with open(path, "rb", opener=_not_waiting) as file:
            about = os.fstat(file.fileno())
            if inside and stat.S_ISREG(about.st_mode) and about.st_size <= most:
                data = file.read(about.st_size + 1)
    except OSError as error:
        raise IntegrityError(f"{path}: Expected a file of the release, got {type(error).__name__}.") from None
    if data is None or len(data) > most:
        raise IntegrityError(f"{path}: Expected a plain file in the folder of the release, of size <= {most}.")
    return data


def _not_waiting(path: str, flags: int) -> int:
    """A named pipe in the place of a file would be waited for without end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
