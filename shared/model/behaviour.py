"""The behaviour stage: the upper BERT layers read a user's events and predict the next item.

Score of item i after event t of user u: ``s tau cos(W h_t, e_i) + a_i(h_t) + b(u)_i``, over the whole
catalogue; e_i is the item's vector from the frozen BERT, W = I + low rank, s a learned scale, a the
optional learned item-ID vectors, b the collaborative prior. All but LoRA, the head, the small embeddings and
the residuals is constant, and no operation mixes users: row n of a batch is one user, so the gradient
of row n's loss is the user's gradient.

Shapes: B users, T events, I items, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import ModelConfig
from shared.errors import ConfigError
from shared.model.candidates import SampledPrior, target_and_others
from shared.model.weights import BaseModel, load_bert
from shared.schema import EVENT_KINDS

if TYPE_CHECKING:
    from transformers import BertModel
    from transformers.models.bert.modeling_bert import BertLayer

RATING_STEPS = 5
AGE_EDGES = (1, 2, 3, 4, 6, 9, 14, 22, 35)
"""Ages, in events before the newest, at which a new recency embedding begins."""
QUERY_EVENT = EVENT_KINDS.index("query")
MASKED = torch.finfo(torch.float32).min
"""Added to the attention of an event on a later one."""
SCALE_GAIN = 10.0
"""The learned scale is ``exp(10 w)``, so that one number moves as fast as the many of a layer."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Histories of B users, the oldest event first, padded at the end.

    Attributes
    ----------
    items : (B, T) int64
        Catalogue rows; -1 for padding and for events without an item (a free-text query).
    events, ratings : (B, T) int64
        Event codes; rating steps 1 to 5, 0 for none.
    lengths : (B,) int64
    texts : (B, T, H) float32 or None
        Vectors of the user's own texts (reviews, queries), zeros where there is none.
    targets : (B, T) int64
        The next item after each event, -1 where there is none to learn from.
    """

    items: Tensor
    events: Tensor
    ratings: Tensor
    lengths: Tensor
    texts: Tensor | None
    targets: Tensor

    def to(self, device: torch.device) -> EventBatch:
        """The same batch on another device."""
        return EventBatch(
            self.items.to(device),
            self.events.to(device),
            self.ratings.to(device),
            self.lengths.to(device),
            None if self.texts is None else self.texts.to(device),
            self.targets.to(device),
        )


@dataclass(frozen=True, slots=True)
class CatalogueVectors:
    """The catalogue as the model sees it: `texts` (text vectors) and `items` (item vectors), each (I, H).

    `texts` may be float16: what is read of them is added to float32.
    """

    texts: Tensor
    items: Tensor

    def to(self, device: torch.device) -> CatalogueVectors:
        """The same vectors on another device."""
        return CatalogueVectors(self.texts.to(device), self.items.to(device))


class BehaviourStage(nn.Module):
    """The trained part of the recommender, with the frozen layers that it adapts.

    Parameters
    ----------
    base : BaseModel
    config : ModelConfig
    n_items : int
        Only used for item residuals (``item_rank > 0``).
    seed : int
        Of LoRA's random A matrices: public, so that all partners start alike.
    """

    def __init__(self, base: BaseModel, config: ModelConfig, *, n_items: int, seed: int = 0) -> None:
        super().__init__()
        bert = load_bert(base)
        self.config = config
        self.depth = int(bert.config.num_hidden_layers)
        self.width = width = int(bert.config.hidden_size)
        if config.adapted_layers > self.depth:
            raise ConfigError(f"Expected model.adapted_layers <= {self.depth}, got {config.adapted_layers}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = _adapted_layers(bert, config, self.depth)
            self._bert = bert.config  # that of every layer
            self.event_embedding = _zero_embedding(len(EVENT_KINDS), width)
            self.rating_embedding = _zero_embedding(RATING_STEPS + 1, width)
            self.age_embedding = _zero_embedding(len(AGE_EDGES) + 1, width)
            self.scale = _zero_embedding(1, 1)
            self.head = _LowRank(width, config.head_rank, width) if config.head_rank else None
            self.residuals = _ItemResiduals(n_items, config.item_rank, width) if config.item_rank else None
        self.dropout = nn.Dropout(0.0)
        # No dropout but inside `dropping_out`: what a user adds to a noised sum must depend on that user and the
        # round alone.
        self.eval()

    def forward(self, batch: EventBatch, catalogue: CatalogueVectors, prior: Tensor | SampledPrior) -> Tensor:
        """Mean cross-entropy of each user's positions, shape ``(B,)``; users without a target give 0.

        `prior` holds the prior's logits, ``(B, T, I)``, or those of a sample of a large catalogue.
        """
        hidden, known, targets = self.hidden(batch, catalogue), batch.targets >= 0, batch.targets.clamp(min=0)
        if isinstance(prior, SampledPrior):
            logits = self._score_some(hidden, catalogue, targets, prior.items) + prior.logits  # (B, T, 1 + K)
            targets = torch.zeros_like(targets)
        else:
            logits = self.score(hidden, catalogue) + prior  # (B, T, I)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        return (loss * known).sum(1) / known.sum(1).clamp(min=1)

    def hidden(self, batch: EventBatch, catalogue: CatalogueVectors) -> Tensor:
        """States after each event, shape ``(B, T, H)``."""
        x = self._embedded(batch, catalogue)
        return self._through(self.layers, x)

    def newest(self, batch: EventBatch, catalogue: CatalogueVectors) -> Tensor:
        """States after the newest event alone, shape ``(B, H)``: what ranking needs, for little more than half."""
        x = self._embedded(batch, catalogue)
        return _at(self.layers[-1], self._through(self.layers[:-1], x), batch.lengths - 1)

    def _embedded(self, batch: EventBatch, catalogue: CatalogueVectors) -> Tensor:
        """What the layers read of each event, shape ``(B, T, H)``."""
        has_item = (batch.items >= 0).unsqueeze(-1)
        rows = batch.items.clamp(min=0)
        x = catalogue.texts[rows] * has_item
        if self.residuals is not None:
            x = x + self.residuals.inputs(rows) * has_item
        if batch.texts is not None:
            x = x + batch.texts
        steps = torch.arange(rows.shape[1], device=rows.device)
        age = (batch.lengths.unsqueeze(1) - 1 - steps).clamp(min=0)  # (B, T)
        x = x + self.event_embedding(batch.events) + self.rating_embedding(batch.ratings)
        embedded: Tensor = x + self.age_embedding(
            torch.bucketize(age, torch.tensor(AGE_EDGES, device=age.device), right=True)
        )
        return embedded

    def _through(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Each event reads itself and those before it. Padding lies behind the events, so that none reads it."""
        T, device = x.shape[1], x.device
        causal = torch.ones(T, T, dtype=torch.bool, device=device).tril()[None, None]
        if torch.is_autocast_enabled(device.type):
            # In bfloat16 the plain products of short histories are a third faster on a CPU than the fused kernel.
            self._bert._attn_implementation = "eager"
            causal = torch.zeros(causal.shape, device=device).masked_fill_(~causal, MASKED)
        else:
            self._bert._attn_implementation = "sdpa"
        for layer in layers:
            x = layer(x, attention_mask=causal)
        return x

    def score(self, hidden: Tensor, catalogue: CatalogueVectors) -> Tensor:
        """Logits without the prior, shape ``(B, T, I)``, or ``(B, I)`` for states ``(B, H)``."""
        hidden = self.dropout(hidden)
        logits = self._wanted(hidden) @ catalogue.items.T
        return logits if self.residuals is None else logits + self.residuals.outputs(hidden)

    def _score_some(self, hidden: Tensor, catalogue: CatalogueVectors, targets: Tensor, others: Tensor) -> Tensor:
        """`score` of each position's target and of some other items: ``(B, T, 1 + K)``."""
        hidden = self.dropout(hidden)
        wanted = self._wanted(hidden)
        logits = target_and_others((wanted * catalogue.items[targets]).sum(-1), wanted @ catalogue.items[others].T)
        if self.residuals is None:
            return logits
        learned = self.residuals.outputs(hidden)
        own = learned.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return logits + target_and_others(own, learned[..., others])

    def wanted(self, hidden: Tensor) -> Tensor | None:
        """Vectors, ``(B, H)``, whose products with item vectors are the scores; None where items have learned ones."""
        return None if self.residuals is not None else self._wanted(hidden)

    def _wanted(self, hidden: Tensor) -> Tensor:
        """``s tau W h / |W h|``, shape ``(..., H)``."""
        wanted = hidden if self.head is None else hidden + self.head(hidden)
        zero = torch.zeros(len(hidden), *[1] * (hidden.dim() - 2), dtype=torch.long, device=hidden.device)
        scale = self.config.temperature * torch.exp(SCALE_GAIN * self.scale(zero))  # (B, 1, 1) or (B, 1)
        vectors: Tensor = F.normalize(wanted, dim=-1) * scale
        return vectors

    @contextmanager
    def dropping_out(self, chance: float, seed: int) -> Iterator[None]:
        """Drop hidden states of the adapted layers and at their end, by a generator of its own.

        A mask hangs on the place in the batch and on the batches before: not for sums that noise is to hide.
        """
        drops = [module for module in self.modules() if isinstance(module, nn.Dropout)]
        device = next(self.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for drop in drops:
                drop.p, drop.training = chance, True
            try:
                yield
            finally:
                for drop in drops:
                    drop.training = False


def _at(layer: BertLayer, x: Tensor, places: Tensor) -> Tensor:
    """A BERT layer's output at one place of each row, ``(B, T, H)`` and ``(B,)`` to ``(B, H)``.

    Only keys and values are made of all places; the layer's other maps, five sixths of its work, of one.
    """
    attention, (B, T, H) = layer.attention.self, x.shape
    own = x[torch.arange(B, device=x.device), places].unsqueeze(1)  # (B, 1, H)
    query, key, value = (
        linear(y).view(B, -1, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)
        for linear, y in ((attention.query, own), (attention.key, x), (attention.value, x))
    )  # (B, heads, 1 or T, H / heads)
    reached = (torch.arange(T, device=x.device) <= places.unsqueeze(1))[:, None, None]  # (B, 1, 1, T)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=reached, scale=attention.scaling)
    attended = layer.attention.output(mixed.transpose(1, 2).reshape(B, 1, H), own)
    state: Tensor = layer.feed_forward_chunk(attended)[:, 0]
    return state


def _adapted_layers(bert: BertModel, config: ModelConfig, depth: int) -> nn.ModuleList:
    """The top k layers with LoRA from PEFT; the layers below are dropped."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules=lora_target_pattern(config, depth),
    )
    adapted = get_peft_model(bert, lora)
    return nn.ModuleList(adapted.base_model.model.encoder.layer[depth - config.adapted_layers :])


def lora_target_pattern(config: ModelConfig, depth: int) -> str:
    """A regular expression of the adapted linear maps, as PEFT's ``target_modules`` takes it."""
    layers = "|".join(str(k) for k in range(depth - config.adapted_layers, depth))
    targets = "|".join(target.replace(".", r"\.") for target in config.lora_targets)
    return rf".*encoder\.layer\.({layers})\.({targets})"


def _zero_embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.zeros_(embedding.weight)
    return embedding


class _LowRank(nn.Module):
    """A linear map of low rank that starts at zero: ``x -> up(down(x))``."""

    def __init__(self, width_in: int, rank: int, width_out: int) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, width_out, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., width_in)`` to ``(..., width_out)``."""
        mapped: Tensor = self.up(self.down(x))
        return mapped


class _ItemResiduals(nn.Module):
    """Learned vectors of items, as SASRec has them: added to text vectors at the input, and to logits at the output.

    One table for both sides: with two of them small data sets are learned by heart (docs/adr/0012).
    """

    def __init__(self, n_items: int, rank: int, width: int) -> None:
        super().__init__()
        self.factors = nn.Embedding(n_items, rank)
        nn.init.normal_(self.factors.weight, std=0.1)
        self.widen = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.widen.weight)
        self.narrow = nn.Linear(width, rank, bias=False)
        nn.init.zeros_(self.narrow.weight)
        self.out = nn.Linear(rank, n_items, bias=False)
        self.out.weight = self.factors.weight

    def replace_items(self, factors: Tensor) -> None:
        """Take another table, shape ``(I', rank)``, for both sides."""
        self.factors = nn.Embedding(*factors.shape)
        self.factors.weight = nn.Parameter(factors, requires_grad=False)
        self.out = nn.Linear(factors.shape[1], len(factors), bias=False)
        self.out.weight = self.factors.weight

    def inputs(self, rows: Tensor) -> Tensor:
        """Residuals of item rows, ``(B, T)`` to ``(B, T, H)``."""
        vectors: Tensor = self.widen(self.factors(rows))
        return vectors

    def outputs(self, hidden: Tensor) -> Tensor:
        """Residual logits, ``(..., H)`` to ``(..., I)``."""
        logits: Tensor = self.out(self.narrow(hidden))
        return logits


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name, in one fixed order: the order of every flat vector in a federation."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
