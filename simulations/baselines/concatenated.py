"""BERT on concatenated text: what federated recommenders with language models usually do, and what it costs.

A history is one text, "title. review; title. review; ..." with the newest event first, cut at 128 word pieces. The
whole BERT reads it, with LoRA of rank 8 on query and value of every layer (PEFT); the mean of the last hidden states is
the user, the frozen BERT's vector of an item is the item, and the loss is the cross-entropy of one next item a user.

The private form takes one gradient a user by Opacus' hooks, through the federated model's own
`client.training.UserGradients`: clipping, sums and the bill of the noise are the same as there.

Source: the recipe is that of the usual Flower and PEFT examples; LoRA: E. Hu et al., ICLR 2022; one clipped gradient
a user: H. B. McMahan et al., "Learning differentially private recurrent language models", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from client.batches import next_new_items
from client.training import UserGradients
from shared.config import DEFAULT_BASE
from shared.errors import ConfigError
from shared.model.behaviour import BehaviourStage, CatalogueVectors, trainable_parameters
from shared.model.weights import find_base, has_fast_bf16, load_bert, load_tokenizer
from shared.schema import Catalogue, Histories, UserHistory
from simulations.baselines.noise import step_noise
from simulations.baselines.problem import Budget, Problem, Settings

TOKENS, PADDING = 128, 8
"""Word pieces of a text, and the steps to which texts are padded."""
RANK, ALPHA, TARGETS = 8, 16, ("query", "value")
TEMPERATURE = 20.0
MICROBATCH = 32
GRID: tuple[Settings, ...] = tuple(
    {"rounds": 30, "cohort": 64, "clip_norm": 0.5, "learning_rate": rate} for rate in (1e-3, 3e-3)
)
"""Two settings: on a processor a round of this takes as long as an epoch of the others."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts of B users: word pieces and their mask ``(B, S)``, and the item to predict ``(B,)``; all int64."""

    pieces: Tensor
    mask: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on another device."""
        return TextBatch(self.pieces.to(device), self.mask.to(device), self.targets.to(device))


class HistoryTexts:
    """Turns histories into word pieces.

    Parameters
    ----------
    catalogue : Catalogue
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._titles = catalogue.titles
        self._tokenizer = load_tokenizer(find_base(DEFAULT_BASE))

    def training(
        self, histories: Histories, users: NDArray[np.int64], rng: np.random.Generator, padding: int = PADDING
    ) -> Iterator[TextBatch]:
        """One example a user: the text before an item that was new to the user, drawn evenly, and that item.

        Users without such an item give none. A text is padded to a multiple of `padding` by its own length alone, so
        that nobody's gradient depends on who else is in the batch; ``padding=TOKENS`` pads all to one length.
        """
        texts, targets = [], []
        for user in users:
            history = histories[int(user)]
            following = next_new_items(history.items)
            places = np.flatnonzero(following >= 0)
            if len(places):
                place = int(rng.choice(places))
                texts.append(self._text(history, histories.review_texts, place + 1))
                targets.append(int(following[place]))
        yield from self._batches(texts, np.array(targets, dtype=np.int64), padding)

    def latest(self, histories: Histories, users: NDArray[np.int64]) -> TextBatch:
        """The whole histories of users, in their order; targets are 0."""
        texts = [self._text(histories[int(k)], histories.review_texts, len(histories[int(k)])) for k in users]
        return self._padded(self._pieces(texts), np.zeros(len(texts), dtype=np.int64))

    def _text(self, history: UserHistory, reviews: tuple[str, ...], end: int) -> str:
        parts = []
        for place in range(end - 1, max(end - 1 - TOKENS, -1), -1):  # an event is a word piece at least
            row = int(history.reviews[place])
            parts.append(f"{self._titles[int(history.items[place])]}. {reviews[row] if row >= 0 else ''}".strip())
        return "; ".join(parts)

    def _batches(self, texts: list[str], targets: NDArray[np.int64], padding: int) -> Iterator[TextBatch]:
        alike: dict[int, list[int]] = {}
        pieces = self._pieces(texts)
        for k, ids in enumerate(pieces):
            alike.setdefault(min(-(-len(ids) // padding) * padding, TOKENS), []).append(k)
        for width, group in sorted(alike.items()):
            for start in range(0, len(group), MICROBATCH):
                rows = group[start : start + MICROBATCH]
                yield self._padded([pieces[k] for k in rows], targets[rows], width)

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        return list(self._tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]) if texts else []

    def _padded(self, pieces: list[list[int]], targets: NDArray[np.int64], width: int = 0) -> TextBatch:
        table = np.zeros((len(pieces), width or max(map(len, pieces))), dtype=np.int64)
        mask = np.zeros_like(table)
        for row, ids in enumerate(pieces):
            table[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return TextBatch(torch.from_numpy(table), torch.from_numpy(mask), torch.from_numpy(targets))


class ConcatenatedText(nn.Module):
    """The whole BERT with LoRA on query and value; its inputs are `TextBatch`es.

    Parameters
    ----------
    seed : int
        Of LoRA's random A matrices.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS))
            self.bert = get_peft_model(load_bert(find_base(DEFAULT_BASE)), lora).base_model.model
        self.eval()  # no dropout: what a user adds must depend on that user alone

    def forward(self, batch: TextBatch, catalogue: CatalogueVectors, prior: Tensor) -> Tensor:
        """Cross-entropy of each user's next item, shape ``(B,)``; `prior` is added to the logits."""
        losses: Tensor = F.cross_entropy(self.score(batch, catalogue) + prior, batch.targets, reduction="none")
        return losses

    def score(self, batch: TextBatch, catalogue: CatalogueVectors) -> Tensor:
        """Logits, shape ``(B, I)``."""
        hidden = self.bert(input_ids=batch.pieces, attention_mask=batch.mask).last_hidden_state  # (B, S, H)
        mask = batch.mask.unsqueeze(-1).to(hidden.dtype)
        user = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)  # (B, H)
        return TEMPERATURE * user @ catalogue.items.T


class UsualClient:
    """One client: a model of its own, as it is loaded anew in every round where clients share nothing.

    Parameters
    ----------
    private : bool
        Whether gradients are taken user by user and clipped.
    seed : int
    device : torch.device, optional
        Where the model lies, and the catalogue that it is given.
    """

    def __init__(self, *, private: bool, seed: int = 0, device: torch.device | None = None) -> None:
        self.model = ConcatenatedText(seed).to(device or torch.device("cpu"))
        self.parameters = list(trainable_parameters(self.model).values())
        # `UserGradients` asks of a model only that row n of its losses is user n: true of this one too.
        self._gradients = UserGradients(cast(BehaviourStage, self.model)) if private else None

    def gradient_sum(
        self, batches: Iterable[TextBatch], catalogue: CatalogueVectors, clip_norm: float, *, bf16: bool = False
    ) -> Tensor:
        """Sum over users of their gradients, shape ``(P,)`` float64: clipped in the private form, else as they are.

        With `bf16` products are in bfloat16, whose rounding no noise is accounted to hide: not where privacy is meant.
        """
        device = catalogue.items.device
        nothing = torch.zeros(1, device=device)
        if self._gradients is not None:
            given = cast(Iterable[Any], batches)
            clipped = self._gradients.clipped_sum(given, catalogue, lambda _: nothing, clip_norm, bf16=bf16)
            return torch.from_numpy(clipped.values)
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = self.model(batch.to(device), catalogue, nothing)
            losses.sum().backward()
        total = torch.cat([_taken(p).double().flatten() for p in self.parameters]).cpu()
        for p in self.parameters:
            p.grad = None
        return total


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Scores of users from the text of their whole history, as far as it fits."""

    model: ConcatenatedText
    texts: HistoryTexts
    catalogue: CatalogueVectors

    @torch.inference_mode()
    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I)."""
        parts = [
            self.model.score(self.texts.latest(histories, users[start : start + MICROBATCH]), self.catalogue).numpy()
            for start in range(0, len(users), MICROBATCH)
        ]
        return np.concatenate(parts).astype(np.float32)


def fit(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> TextScorer:
    """Train by rounds over the users of all partners: sums are exact, so this is what a federation would get.

    Settings: ``rounds``, ``cohort`` (users of a round, on average), ``clip_norm`` (of a user's gradient, in the private
    form alone), ``learning_rate`` (of Adam).

    Guarantees
    ----------
    With a budget, (epsilon, delta) at user level under add-or-remove, as in `simulations.baselines.noise.step_noise`:
    every user is in a round with one public probability, adds at most ``clip_norm`` over all partners, and the sum is
    divided by public numbers.

    Raises
    ------
    ConfigError
        If the problem brings no vectors of the items.
    """
    rate = min(1.0, settings["cohort"] / problem.population)
    rounds, clip_norm = int(settings["rounds"]), float(settings["clip_norm"])
    catalogue, bf16 = _catalogue(problem), budget is None and has_fast_bf16("cpu")
    stddev = step_noise(problem, budget, sampling_rate=rate, steps=rounds) * clip_norm
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    client, texts = UsualClient(private=budget is not None, seed=seed), HistoryTexts(problem.catalogue)
    optimizer = torch.optim.Adam(client.parameters, lr=float(settings["learning_rate"]), betas=(0.9, 0.99))
    for _ in range(rounds):
        total = torch.zeros(sum(p.numel() for p in client.parameters), dtype=torch.float64)
        for part in problem.histories:
            users = np.flatnonzero(rng.random(len(part)) < rate)
            batches = texts.training(part, users, rng)
            total += client.gradient_sum(batches, catalogue, clip_norm / problem.partners_per_user, bf16=bf16)
        total += stddev * torch.randn(total.shape, generator=noise)
        _step(client.parameters, optimizer, total / (rate * problem.population))
    return TextScorer(client.model, texts, catalogue)


def _catalogue(problem: Problem) -> CatalogueVectors:
    if problem.vectors is None:
        raise ConfigError("Expected vectors of the items, shape=(items, 2, width), got None.")
    both = torch.from_numpy(problem.vectors.astype(np.float32))
    return CatalogueVectors(both[:, 0].contiguous(), both[:, 1].contiguous())


def _taken(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    parts = torch.split(gradient.float(), [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
    optimizer.step()
