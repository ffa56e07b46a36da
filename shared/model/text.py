"""The text stage: every text runs once through the frozen BERT.

A text gives two vectors of width H. Its *text vector* is the mean over tokens of the hidden state
after the lower L - k layers: what the behaviour stage reads. Its *item vector* is the normalised
mean of the last hidden state: what scores are made against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.model.weights import BaseModel, choose_device, has_fast_bf16, load_bert, load_tokenizer

if TYPE_CHECKING:
    from transformers import BertModel

TextVectors = NDArray[np.float16]
"""Shape ``(texts, 2, H)``: text vector, then item vector."""


class TextStage:
    """The frozen BERT as an encoder of texts.

    Parameters
    ----------
    base : BaseModel
    adapted_layers : int
        k; the text vector is taken below these layers.
    max_tokens : int
        Word pieces read of a text, special tokens included.
    device : torch.device, optional
    """

    def __init__(
        self, base: BaseModel, *, adapted_layers: int, max_tokens: int, device: torch.device | None = None
    ) -> None:
        self.base = base
        self.adapted_layers = adapted_layers
        self.max_tokens = max_tokens
        self.device = device or choose_device()
        self._bert: BertModel | None = None

    @property
    def recipe(self) -> str:
        """All that a vector depends on besides the text: the cache's key."""
        return f"mean-v1|{self.base.sha256}|k={self.adapted_layers}|tokens={self.max_tokens}"

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> TextVectors:
        """Encode texts, shape ``(len(texts), 2, H)``; an empty text gives zeros.

        `progress` is called with the number of texts done after each batch.
        """
        bert = self._load()
        out = np.zeros((len(texts), 2, bert.config.hidden_size), dtype=np.float16)
        # Alike lengths share a batch: padding is work for nothing.
        order = sorted((k for k, text in enumerate(texts) if text), key=lambda k: len(texts[k]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = self._encode_batch([texts[k] for k in rows])
            if progress:
                progress(start + len(rows))
        return out

    def _load(self) -> BertModel:
        if self._bert is None:
            bert = load_bert(self.base)
            depth = bert.config.num_hidden_layers
            if self.adapted_layers > depth:
                raise ConfigError(f"Expected model.adapted_layers <= {depth}, got {self.adapted_layers}.")
            self._bert = bert.to(self.device)
            self._tokenizer = load_tokenizer(self.base)
        return self._bert

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str]) -> TextVectors:
        bert = self._load()
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_fast_bf16(self.device.type)):
            hidden = bert(**tokens, output_hidden_states=True).hidden_states
        lower = hidden[len(hidden) - 1 - self.adapted_layers]
        mask = tokens["attention_mask"].unsqueeze(-1).float()  # (B, S, 1)
        both = [(state.float() * mask).sum(1) / mask.sum(1) for state in (lower, hidden[-1])]  # 2 x (B, H)
        both[1] = torch.nn.functional.normalize(both[1], dim=-1)
        return torch.stack(both, dim=1).cpu().numpy().astype(np.float16)  # (B, 2, H)
