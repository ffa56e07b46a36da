"""The trained part of the model as one flat vector, and as the files of a release.

A release is a folder: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT reads them,
``behaviour.safetensors`` with the rest of what was trained and the collaborative prior, ``config.json``
with the model's configuration, and ``manifest.json`` with the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from shared.config import RunConfig, parse_config
from shared.errors import AdapterMismatchError, IntegrityError
from shared.files import write_bytes, write_json
from shared.model.behaviour import BehaviourStage, lora_target_pattern, trainable_parameters
from shared.model.prior import CollaborativePrior
from shared.model.weights import find_base

Vector = NDArray[np.float32]
PRIOR_PREFIX = "prior."
MANIFEST_KEYS = {"format", "version", "base_sha256", "catalogue_sha256", "privacy", "files", "fingerprint"}
PRIOR_ARRAYS = ("popularity", "item_to_item", "widen", "unseen")
FILES = ("adapter_config.json", "adapter_model.safetensors", "behaviour.safetensors", "config.json")


def flatten_parameters(model: BehaviourStage) -> Vector:
    """All trained parameters in their fixed order, shape ``(P,)``."""
    parts = [p.detach().cpu().flatten() for p in trainable_parameters(model).values()]
    return torch.cat(parts).numpy().astype(np.float32)


def load_parameters(model: BehaviourStage, flat: Vector) -> None:
    """Set the trained parameters from a flat vector, shape ``(P,)``.

    Raises
    ------
    AdapterMismatchError
        If the length is another, or a value is not finite; the model is then as it was.
    """
    parameters = trainable_parameters(model).values()
    size = sum(p.numel() for p in parameters)
    if flat.shape != (size,):
        raise AdapterMismatchError(f"Expected parameters of shape=({size},), got {flat.shape}.")
    if not np.isfinite(flat).all():
        raise AdapterMismatchError("Expected finite parameters.")
    rest = torch.from_numpy(np.ascontiguousarray(flat))
    with torch.no_grad():
        for p in parameters:
            values, rest = rest[: p.numel()], rest[p.numel() :]
            p.copy_(values.view_as(p))


@dataclass(frozen=True)
class Release:
    """An adapter that was read and checked: `config`, the model with its weights, and the prior."""

    config: RunConfig
    model: BehaviourStage
    prior: CollaborativePrior
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that the manifest says: digests of the files, base model, catalogue, privacy."""
        return str(self.manifest["fingerprint"])


def save_release(
    folder: Path,
    model: BehaviourStage,
    prior: CollaborativePrior,
    config: RunConfig,
    *,
    catalogue_digest: str,
    privacy: dict[str, Any],
    version: int,
) -> None:
    """Write a release; the manifest comes last, so that a folder without one is no release."""
    lora, rest = _split(model)
    rest |= {PRIOR_PREFIX + name: array for name, array in prior.arrays().items()}
    base = find_base(config.model.base)
    contents = {
        "adapter_config.json": _json(_peft_config(config, model.depth)),
        "adapter_model.safetensors": save_safetensors(lora, {"format": "pt"}),
        "behaviour.safetensors": save_safetensors(rest, {"format": "pt"}),
        "config.json": _json(config.model_dump(mode="json")),
    }
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, data in contents.items():
        write_bytes(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = {
        "format": 1,
        "version": version,
        "base": base.name,
        "base_sha256": base.sha256,
        "catalogue_sha256": catalogue_digest,
        "privacy": privacy,
        "files": digests,
    }
    write_json(folder / "manifest.json", {**manifest, "fingerprint": _fingerprint(manifest)})


def load_release(folder: Path) -> Release:
    """Read a release and check every digest before a file is parsed.

    Raises
    ------
    IntegrityError
        If a file is absent, changed, or does not hold what a release holds.
    AdapterMismatchError
        If the base model on this machine is another.
    """
    manifest = _read_manifest(folder)
    contents = {name: _checked(folder / name, manifest["files"].get(name)) for name in FILES}
    config = parse_config(contents["config.json"].decode(), str(folder / "config.json"))
    base = find_base(config.model.base)
    if base.sha256 != manifest["base_sha256"]:
        raise AdapterMismatchError(f"{folder}: Expected base sha256={manifest['base_sha256']}, got {base.sha256}.")
    try:
        tensors = load_safetensors(contents["behaviour.safetensors"])
        lora = load_safetensors(contents["adapter_model.safetensors"])
    except SafetensorError:
        raise IntegrityError(f"{folder}: Expected safetensors.") from None
    prior = _read_prior(tensors, folder)
    model = BehaviourStage(base, config.model, n_items=len(prior.popularity), seed=config.seed or 0)
    _join(model, lora, {n: t for n, t in tensors.items() if not n.startswith(PRIOR_PREFIX)}, folder)
    return Release(config, model, prior, manifest)


def _split(model: BehaviourStage) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """Trained arrays under PEFT's names, and the others under their own."""
    lora: dict[str, Vector] = {}
    rest: dict[str, Vector] = {}
    for name, parameter in trainable_parameters(model).items():
        array = np.ascontiguousarray(parameter.detach().cpu().numpy())
        if ".lora_" in name:
            lora[_peft_name(name, model.depth - model.config.adapted_layers)] = array
        else:
            rest[name] = array
    return lora, rest


def _join(model: BehaviourStage, lora: dict[str, Vector], rest: dict[str, Vector], folder: Path) -> None:
    found = {**lora, **rest}
    offset = model.depth - model.config.adapted_layers
    flat: list[Vector] = []
    for name, parameter in trainable_parameters(model).items():
        array = found.pop(_peft_name(name, offset) if ".lora_" in name else name, None)
        if array is None or array.shape != tuple(parameter.shape) or array.dtype != np.float32:
            raise IntegrityError(f"{folder}: Expected float32 tensor {name} of shape={tuple(parameter.shape)}.")
        flat.append(array.ravel())
    if found:
        raise IntegrityError(f"{folder}: Expected no tensor beyond those of the model, got {sorted(found)[0]}.")
    load_parameters(model, np.concatenate(flat))


def _read_prior(tensors: dict[str, Vector], folder: Path) -> CollaborativePrior:
    arrays = {name.removeprefix(PRIOR_PREFIX): t for name, t in tensors.items() if name.startswith(PRIOR_PREFIX)}
    items = arrays["popularity"].size if "popularity" in arrays else 0
    if not items:
        raise IntegrityError(f"{folder}: Expected a prior with the popularity of items.")
    if not set(arrays) <= set(PRIOR_ARRAYS) or any(array.dtype != np.float32 for array in arrays.values()):
        raise IntegrityError(f"{folder}: Expected a prior of float32 arrays {', '.join(PRIOR_ARRAYS)}.")
    prior = CollaborativePrior(**arrays)
    try:
        prior.check(items)
    except AdapterMismatchError as error:
        raise IntegrityError(f"{folder}: {error}") from None
    return prior


def _peft_name(name: str, offset: int) -> str:
    """``layers.0.x.lora_A.default.weight`` to ``base_model.model.encoder.layer.<offset>.x.lora_A.weight``."""
    _, layer, *tail = name.split(".")
    inner = ".".join(part for part in tail if part != "default")
    return f"base_model.model.encoder.layer.{int(layer) + offset}.{inner}"


def _peft_config(config: RunConfig, depth: int) -> dict[str, Any]:
    model = config.model
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": model.base,
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": lora_target_pattern(model, depth),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _fingerprint(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        whole = set(manifest) >= MANIFEST_KEYS and isinstance(manifest["files"], dict)
        if not whole or manifest["format"] != 1 or manifest["fingerprint"] != _fingerprint(manifest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{file}: Expected the manifest of a release (format=1).") from None
    checked: dict[str, Any] = manifest
    return checked


def _checked(file: Path, digest: str | None) -> bytes:
    try:
        data = file.read_bytes()
    except OSError:
        raise IntegrityError(f"{file}: Expected a file of the release.") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityError(f"{file}: Expected sha256={digest}.")
    return data
