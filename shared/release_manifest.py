"""``manifest.json``: all that a release says of itself, checked key by key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import IntegrityError

FILES = ("adapter_config.json", "adapter_model.safetensors", "behaviour.safetensors", "config.json")
"""The files that a manifest speaks for."""
MOST_VERSIONS = 2**31 - 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Privacy(_Part):
    mode: Literal["distributed", "local", "none"]
    epsilon: Annotated[float, Field(ge=0)] | None
    delta: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _consistent(self) -> _Privacy:
        if (self.epsilon is None) != (self.mode == "none"):
            raise ValueError("epsilon is told in every mode but none")
        return self


class _Manifest(_Part):
    format: Annotated[int, Field(ge=1, le=1)]  # not a Literal, which takes True for 1
    version: Annotated[int, Field(ge=1, le=MOST_VERSIONS)]
    base: Annotated[str, Field(min_length=1, max_length=4096)]
    base_sha256: Sha256
    catalogue_sha256: Sha256
    privacy: _Privacy
    files: dict[str, Sha256]
    sizes: dict[str, Size] | None = None  # older run folders tell none
    fingerprint: Sha256

    @model_validator(mode="after")
    def _of_these_files(self) -> _Manifest:
        if set(self.files) != set(FILES) or (self.sizes is not None and set(self.sizes) != set(FILES)):
            raise ValueError(f"files and sizes are those of {', '.join(FILES)}")
        return self


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """SHA-256 over what a manifest says, its fingerprint left out."""
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """A manifest with its fingerprint, as it is written and signed."""
    whole = {**manifest, "fingerprint": fingerprint_of(manifest)}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def parse_manifest(data: bytes, file: Path) -> dict[str, Any]:
    """Read a manifest: its format, keys, types and fingerprint are as they must be.

    Raises
    ------
    IntegrityError
        Names the first key that is not.
    """
    try:
        told = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise _refused(file, "it is not JSON, or a key is there twice") from None
    try:
        _Manifest.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part in _Manifest.model_fields) or "manifest"
        raise _refused(file, f"{where}: {first['msg']}") from None
    manifest: dict[str, Any] = told
    if manifest["fingerprint"] != fingerprint_of(manifest):
        raise _refused(file, "its fingerprint is another's")
    return manifest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that is there twice means one thing to one reader and another to the next."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("twice")
    return dict(pairs)


def _no_number(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _refused(file: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{file}: Expected the manifest of a release (format=1): {why}.")
