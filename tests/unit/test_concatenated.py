"""BERT on concatenated text: what a history reads as, what a gradient is, and that training helps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.model.behaviour import CatalogueVectors, trainable_parameters
from shared.schema import Catalogue, Histories
from simulations.baselines.concatenated import GRID, PADDING, TOKENS, HistoryTexts, TextBatch, UsualClient, fit
from simulations.baselines.problem import Budget, Problem

HistoriesOf = Callable[[Sequence[Sequence[int]]], Histories]
TITLES = ("red cup", "blue cup", "red chair", "blue chair", "green lamp", "old clock")
SETTINGS = {"rounds": 1, "cohort": 4, "clip_norm": 0.5, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    n = len(TITLES)
    return Catalogue(tuple(f"i{k}" for k in range(n)), TITLES, ("",) * n, ("",) * n)


@pytest.fixture(scope="module")
def texts(catalogue: Catalogue) -> HistoryTexts:
    return HistoryTexts(catalogue)


@pytest.fixture(scope="module")
def vectors() -> CatalogueVectors:
    drawn = torch.randn(2, len(TITLES), 384, generator=torch.Generator().manual_seed(5))
    return CatalogueVectors(drawn[0], torch.nn.functional.normalize(drawn[1], dim=-1))


@pytest.fixture(scope="module")
def client() -> UsualClient:
    """Of the private form, its parameters away from where LoRA starts."""
    one = UsualClient(private=True)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in one.parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return one


def read(texts: HistoryTexts, batch: TextBatch, row: int = 0) -> str:
    told: str = texts._tokenizer.decode(batch.pieces[row][batch.mask[row] > 0], skip_special_tokens=True)
    return told


def drawn(texts: HistoryTexts, histories: Histories, padding: int = PADDING, seed: int = 0) -> list[TextBatch]:
    users = np.arange(len(histories))
    return list(texts.training(histories, users, np.random.default_rng(seed), padding))


# --- what is read ---------------------------------------------------------------------------------


def test_a_history_is_one_text_with_the_newest_event_first(texts: HistoryTexts, histories_of: HistoriesOf) -> None:
    histories = histories_of([[0, 3, 2]])
    with_review = replace(histories, reviews=np.array([-1, 0, -1], np.int32), review_texts=("so comfortable",))
    batch = texts.latest(with_review, np.array([0]))
    assert read(texts, batch) == "red chair. ; blue chair. so comfortable ; red cup."


def test_a_text_ends_before_the_item_that_is_to_be_predicted(texts: HistoryTexts, histories_of: HistoriesOf) -> None:
    histories, seen = histories_of([[0, 1, 2, 3]]), set()
    for seed in range(20):
        (batch,) = drawn(texts, histories, seed=seed)
        target = int(batch.targets[0])
        assert TITLES[target] not in read(texts, batch)
        assert read(texts, batch).startswith(TITLES[target - 1])
        seen.add(target)
    assert seen == {1, 2, 3}


def test_users_with_no_new_item_to_predict_give_no_example(texts: HistoryTexts, histories_of: HistoriesOf) -> None:
    assert drawn(texts, histories_of([[4], [2, 2, 2]])) == []


def test_a_text_is_cut_and_padded_by_its_own_length_alone(texts: HistoryTexts, histories_of: HistoriesOf) -> None:
    long, short = [0, 1, 2, 3] * 40, [0, 1]
    (alone,) = drawn(texts, histories_of([short]))
    together = drawn(texts, histories_of([short, [*long, 5]]))
    assert [batch.pieces.shape[1] for batch in together] == [alone.pieces.shape[1], TOKENS]
    (fixed,) = drawn(texts, histories_of([short, [*long, 5]]), padding=TOKENS)
    assert fixed.pieces.shape == (2, TOKENS)


# --- gradients ------------------------------------------------------------------------------------


def test_a_private_sum_is_that_of_each_user_s_own_clipped_gradient(
    client: UsualClient, texts: HistoryTexts, vectors: CatalogueVectors, histories_of: HistoriesOf
) -> None:
    histories, norm = histories_of([[0, 1], [2, 3], [4, 5]]), 0.05
    plain = copy.copy(client)
    plain._gradients = None
    batches = drawn(texts, histories)
    expected = torch.zeros(sum(p.numel() for p in client.parameters), dtype=torch.float64)
    for batch in batches:
        for row in range(len(batch.targets)):
            one = TextBatch(batch.pieces[row : row + 1], batch.mask[row : row + 1], batch.targets[row : row + 1])
            gradient = plain.gradient_sum([one], vectors, norm)
            assert gradient.norm() > norm  # else clipping would not be seen
            expected += gradient * (norm / gradient.norm())
    clipped = client.gradient_sum(batches, vectors, norm)
    torch.testing.assert_close(clipped, expected, rtol=0, atol=2e-3 * norm)


def test_without_privacy_gradients_are_summed_as_they_are_and_none_is_left_behind(
    client: UsualClient, texts: HistoryTexts, vectors: CatalogueVectors, histories_of: HistoriesOf
) -> None:
    plain = copy.copy(client)
    plain._gradients = None
    batches = drawn(texts, histories_of([[0, 1], [2, 3]]))
    first, again = (plain.gradient_sum(batches, vectors, 1e-9) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first.norm() > 1e-3
    assert plain.gradient_sum([], vectors, 1.0).norm() == 0


def test_lora_is_on_query_and_value_of_every_layer_and_nothing_else_is_trained(client: UsualClient) -> None:
    names = trainable_parameters(client.model)
    assert len(names) == 6 * 2 * 2
    assert {name.split(".attention.self.")[1].split(".")[0] for name in names} == {"query", "value"}
    assert sum(p.numel() for p in names.values()) == 6 * 2 * 2 * 8 * 384


# --- training -------------------------------------------------------------------------------------


def problem(catalogue: Catalogue, vectors: CatalogueVectors, histories: Histories) -> Problem:
    both = torch.stack([vectors.texts, vectors.items], dim=1).numpy()
    return Problem((histories,), len(catalogue), catalogue, both, population=4)


def test_training_raises_the_score_of_what_comes_next(
    catalogue: Catalogue, vectors: CatalogueVectors, histories_of: HistoriesOf
) -> None:
    histories = histories_of([[0, 5]] * 4)
    asked = problem(catalogue, vectors, histories)
    before, after = (
        fit(asked, {**SETTINGS, "rounds": rounds, "learning_rate": 5e-3}, None, 0)(histories_of([[0]]), np.array([0]))
        for rounds in (0, 4)
    )
    assert before.shape == after.shape == (1, len(catalogue))
    assert after[0].argmax() == 5
    assert after[0, 5] - after[0].mean() > before[0, 5] - before[0].mean() + 1


def test_a_budget_brings_noise_that_the_seed_decides(
    catalogue: Catalogue, vectors: CatalogueVectors, histories_of: HistoriesOf
) -> None:
    histories = histories_of([[0, 5]] * 4)
    asked, users = problem(catalogue, vectors, histories), np.array([0])

    def scores(epsilon: float) -> NDArray[np.float32]:
        return fit(asked, SETTINGS, Budget(epsilon, 1e-5), 1)(histories, users)

    loose = scores(8.0)
    np.testing.assert_array_equal(scores(8.0), loose)
    assert not np.allclose(scores(1.0), loose)  # the same users and gradients: only the noise is another


def test_item_vectors_are_needed(catalogue: Catalogue, histories_of: HistoriesOf) -> None:
    bare = Problem((histories_of([[0, 1]]),), len(catalogue), catalogue, None, population=4)
    with pytest.raises(ConfigError, match="Expected vectors of the items"):
        fit(bare, GRID[0], None, 0)
