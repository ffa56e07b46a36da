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

from shared.config import ModelConfig
from shared.errors import ConfigError
from shared.model.weights import BaseModel, choose_device, find_base, has_fast_bf16, load_bert, load_tokenizer

if TYPE_CHECKING:
    from transformers import BertModel

TextVectors = NDArray[np.float16]
"""Shape ``(texts, 2, H)``: text vector, then item vector; or ``(texts, 1, H)``: text vectors alone."""

PADDING = 8
"""Texts are padded to multiples of this many word pieces."""


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
        self._berts: dict[bool, BertModel] = {}

    @classmethod
    def of(cls, config: ModelConfig, device: torch.device | None = None) -> TextStage:
        """The text stage of a model's configuration.

        Raises
        ------
        ConfigError
            If the base model is not there.
        """
        base = find_base(config.base)
        return cls(base, adapted_layers=config.adapted_layers, max_tokens=config.max_tokens, device=device)

    def recipe(self, *, items: bool) -> str:
        """What vectors depend on besides the text: the cache's key.

        The rounding of the machine is no part of it: item vectors, which are public, may be made in bfloat16.
        """
        kind = "items" if items else "texts"
        return f"mean-v2|{self.base.sha256}|k={self.adapted_layers}|tokens={self.max_tokens}|{kind}"

    def encode(
        self,
        texts: Sequence[str],
        *,
        items: bool = True,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> TextVectors:
        """Encode texts, shape ``(len(texts), 2, H)``; an empty text gives zeros.

        With ``items=False`` only text vectors are made, shape ``(len(texts), 1, H)``, by the lower layers alone.
        Such texts are users' own: they are computed in float32 and padded by their own length, so that one user's
        review moves no other user's vector. `progress` is called with the number of texts done after each batch.
        """
        bert = self._load(items)
        out = np.zeros((len(texts), 2 if items else 1, bert.config.hidden_size), dtype=np.float16)
        done = 0
        for width, group in self._padded_widths(texts):
            for start in range(0, len(group), batch_size):
                rows = group[start : start + batch_size]
                out[rows] = self._encode_batch([texts[k] for k in rows], items, width)
                done += len(rows)
                if progress:
                    progress(done)
        return out

    def _padded_widths(self, texts: Sequence[str]) -> list[tuple[int, list[int]]]:
        """The texts that are not empty, by the number of word pieces to which each is padded."""
        full = [k for k, text in enumerate(texts) if text]
        if not full:
            return []
        pieces = self._tokenizer([texts[k] for k in full], truncation=True, max_length=self.max_tokens)["input_ids"]
        groups: dict[int, list[int]] = {}
        for k, ids in zip(full, pieces, strict=True):
            groups.setdefault(min(-(-len(ids) // PADDING) * PADDING, self.max_tokens), []).append(k)
        return sorted(groups.items())

    def _load(self, items: bool) -> BertModel:
        if items not in self._berts:
            bert = load_bert(self.base)
            depth = bert.config.num_hidden_layers
            if self.max_tokens > bert.config.max_position_embeddings:
                most = bert.config.max_position_embeddings
                raise ConfigError(f"Expected model.max_tokens <= {most}, got {self.max_tokens}.")
            if self.adapted_layers > depth:
                raise ConfigError(f"Expected model.adapted_layers <= {depth}, got {self.adapted_layers}.")
            if not items:
                bert.encoder.layer = bert.encoder.layer[: depth - self.adapted_layers]
            self._berts[items] = bert.to(self.device)
            self._tokenizer = load_tokenizer(self.base)
        return self._berts[items]

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str], items: bool, width: int) -> TextVectors:
        bert = self._load(items)
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=width, return_tensors="pt"
        ).to(self.device)
        bf16 = items and has_fast_bf16(self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            hidden = bert(**tokens, output_hidden_states=True).hidden_states
        mask = tokens["attention_mask"].unsqueeze(-1).float()  # (B, S, 1)
        # Behind the embeddings and the layers below the adapted ones; then behind all.
        depths = (len(hidden) - 1 - self.adapted_layers, -1) if items else (-1,)
        means = [(hidden[depth].float() * mask).sum(1) / mask.sum(1) for depth in depths]  # each (B, H)
        if items:
            means[1] = torch.nn.functional.normalize(means[1], dim=-1)
        return torch.stack(means, dim=1).cpu().numpy().astype(np.float16)  # (B, 2 or 1, H)
