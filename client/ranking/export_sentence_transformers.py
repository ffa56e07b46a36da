"""The frozen text encoder as a folder that ``SentenceTransformer(folder)`` loads: its ``encode`` gives item vectors.

Written without the library: its format is a list of modules and a few small JSON files beside the base's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.config import ModelConfig
from shared.files import write_json
from shared.model.weights import find_base

BASE_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
"""What is copied of the base, byte for byte, where it is there."""
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def write_sentence_transformers(folder: Path, config: ModelConfig, width: int) -> None:
    """Write the encoder of a model: the base, the mean over tokens, norm 1.

    Raises
    ------
    ConfigError
        If the base is not on this machine.
    """
    base = find_base(config.base)
    folder.mkdir(parents=True, exist_ok=True)
    for name in BASE_FILES:
        if (base.path / name).is_file():
            shutil.copyfile(base.path / name, folder / name)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    rows = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", rows)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
    # No prompts: the text stage reads texts as they are.
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in POOLINGS}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    write_json(folder / "2_Normalize" / "config.json", {})
