"""The network of SASRec: item embeddings, causal self-attention, output tied to the embeddings.

Source: W.-C. Kang and J. McAuley, "Self-attentive sequential recommendation", ICDM 2018; with layer
normalisation before each block and a full softmax over the catalogue instead of sampled negatives
(A. Klenitskiy and A. Vasilev, "Turning dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023).

Shapes: B users, T events, I items, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING = -1


class SasRec(nn.Module):
    """Scores of the whole catalogue after each event.

    Parameters
    ----------
    items : int
        I.
    width, layers, heads : int
        D and the number and heads of the blocks.
    max_events : int
        The most events that are read; a place is counted from the oldest event of a row.
    dropout : float
        Of embeddings and of the output of each half of a block; 0 where rows must not mix with chance.
    """

    def __init__(self, *, items: int, width: int, layers: int, heads: int, max_events: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(items, width)
        self.places = nn.Embedding(max_events, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(items))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """States after each event, shape ``(B, T, D)``; `items` is ``(B, T)``, padded at the end with -1."""
        steps = torch.arange(items.shape[1], device=items.device)
        x = self.items(items.clamp(min=0)) + self.places(steps)
        x = self.dropout(x * (items >= 0).unsqueeze(-1))
        for block in self.blocks:  # padding lies behind the events, so a causal mask also hides it
            x = block(x)
        states: Tensor = self.norm(x)
        return states

    def score(self, states: Tensor) -> Tensor:
        """Logits of all items, ``(..., D)`` to ``(..., I)``."""
        return F.linear(states, self.items.weight, self.bias)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``."""
        B, T, D = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        # Written out: the fused kernel of the CPU has no batching rule, which gradients of users need.
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        fits = (q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5).masked_fill(~causal, -torch.inf)
        mixed = (fits.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D)
        x = x + self.dropout(self.mix(mixed))
        fed = self.narrow(F.gelu(self.widen(self.norm_feed(x))))
        mapped: Tensor = x + self.dropout(fed)
        return mapped
