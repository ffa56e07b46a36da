"""The trained part of the model as one flat vector, and as the files of a release.

A release is a folder: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT reads them,
``behaviour.safetensors`` with the rest of what was trained and the collaborative prior, ``config.json``
with the model's configuration, ``manifest.json`` with the SHA-256 of each, and ``manifest.sig``, the coordinator's
signature over the manifest. Files beside these are no part of it and are never opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors

from shared.config import RunConfig
from shared.errors import AdapterMismatchError, ConfigError, IntegrityError
from shared.files import write_bytes
from shared.model.behaviour import BehaviourStage, lora_target_pattern, trainable_parameters
from shared.model.prior import CollaborativePrior
from shared.model.weights import BaseModel, find_base
from shared.release_files import MANIFEST_FILE, PRIOR_PREFIX, SIGNATURE_FILE, ReleaseParts, Vector, read_release
from shared.release_manifest import fingerprint_of, manifest_bytes, parse_manifest
from shared.release_signature import Trust

Sign = Callable[[bytes], bytes]
"""From the bytes of a manifest to those of its signature file."""
Number = Callable[[str], int]
"""From the digest of a release without a version to its version."""


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
        """SHA-256 over all that the manifest says: digests of the files, base model, catalogue, privacy, version."""
        return str(self.manifest["fingerprint"])


def save_release(
    folder: Path,
    model: BehaviourStage,
    prior: CollaborativePrior,
    config: RunConfig,
    *,
    catalogue_digest: str,
    privacy: dict[str, Any],
    version: int | Number,
    sign: Sign | None = None,
) -> None:
    """Write a release; the manifest comes last, so that a folder without one is no release.

    Parameters
    ----------
    privacy : dict
        ``mode``, ``epsilon`` (None in mode ``none``) and ``delta``.
    version : int or callable
        From 1, or what gives it for the SHA-256 over all else that the manifest says.
    sign : callable, optional
        Gives ``manifest.sig`` for the bytes of the manifest. Without one the release is nobody's word.

    Raises
    ------
    IntegrityError
        If no reader would take the manifest; nothing is then written.
    """
    contents = _contents(model, prior, config)
    base = find_base(config.model.base)
    told = {
        "base": base.name,
        "base_sha256": base.sha256,
        "catalogue_sha256": catalogue_digest,
        "privacy": privacy,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        "sizes": {name: len(data) for name, data in contents.items()},
    }
    number = version if isinstance(version, int) else version(fingerprint_of(told))
    manifest = manifest_bytes({"format": 1, "version": number, **told})
    parse_manifest(manifest, folder / MANIFEST_FILE)
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        (folder / name).unlink(missing_ok=True)
    for name, data in contents.items():
        write_bytes(folder / name, data)
    if sign is not None:
        write_bytes(folder / SIGNATURE_FILE, sign(manifest))
    write_bytes(folder / MANIFEST_FILE, manifest)


def load_release(folder: Path, trust: Trust | None = None) -> Release:
    """Read a release and check signature and digests before a file is parsed.

    Parameters
    ----------
    folder : Path
    trust : VerifyKey or frozenset of VerifyKey, optional
        Whose signature is asked for. Without one digests alone are checked, as is enough for one's own run folder.

    Raises
    ------
    InvalidSignatureError
        If no trusted key signed this manifest.
    IntegrityError
        If a file is absent, changed, or does not hold what a release holds.
    AdapterMismatchError
        If the base model on this machine is another, or there is none.
    """
    parts = read_release(folder, trust)
    try:
        base = find_base(parts.config.model.base)
        _check_base(base, parts.manifest["base_sha256"], folder)
        n_items, seed = len(parts.prior.popularity), parts.config.seed or 0
        model = BehaviourStage(base, parts.config.model, n_items=n_items, seed=seed)
    except ConfigError as error:
        raise AdapterMismatchError(f"{folder}: {error}") from None
    shapes = {name: tuple(parameter.shape) for name, parameter in trainable_parameters(model).items()}
    load_parameters(model, arranged(parts, shapes, model.depth - parts.config.model.adapted_layers, folder))
    return Release(parts.config, model, parts.prior, parts.manifest)


def arranged(parts: ReleaseParts, shapes: Mapping[str, tuple[int, ...]], offset: int, folder: Path) -> Vector:
    """The tensors of a release as a model's flat vector, shape ``(P,)``.

    Parameters
    ----------
    parts : ReleaseParts
    shapes : mapping of str to shape
        The trained parameters of the model, in their order: all that a release may hold.
    offset : int
        Layers of the base BERT below the adapted ones.
    folder : Path
        Named in errors.

    Raises
    ------
    IntegrityError
        If a tensor is absent, of another shape, or one too many.
    """
    found = {**parts.lora, **parts.rest}
    if len(found) < len(parts.lora) + len(parts.rest):
        raise IntegrityError(f"{folder}: Expected every tensor in one file.")
    flat: list[Vector] = []
    for name, shape in shapes.items():
        home, own = (parts.lora, _peft_name(name, offset)) if ".lora_" in name else (parts.rest, name)
        array = home.get(own)
        if array is None or array.shape != shape:
            raise IntegrityError(f"{folder}: Expected float32 tensor {name} of shape={shape}.")
        del found[own]
        flat.append(array.ravel())
    if found:
        raise IntegrityError(f"{folder}: Expected no tensor beyond those of the model, got {len(found)} more.")
    return np.concatenate(flat)


def _check_base(base: BaseModel, digest: str, folder: Path) -> None:
    if base.sha256 != digest:
        raise AdapterMismatchError(f"{folder}: Expected base sha256={digest}, got {base.sha256}.")


def _contents(model: BehaviourStage, prior: CollaborativePrior, config: RunConfig) -> dict[str, bytes]:
    """The files that the manifest speaks for: the same bytes for the same model."""
    lora, rest = _split(model)
    rest |= {PRIOR_PREFIX + name: array for name, array in prior.arrays().items()}
    return {
        "adapter_config.json": _json(_peft_config(config, model.depth)),
        "adapter_model.safetensors": save_safetensors(lora, {"format": "pt"}),
        "behaviour.safetensors": save_safetensors(rest, {"format": "pt"}),
        "config.json": _json(config.model_dump(mode="json")),
    }


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
