"""The scan in 8-bit integers finds what a search of all items finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from client.ranking import scan as scan_module
from client.ranking.scan import Scan

ITEMS, WIDTH, DEPTH = 6000, 64, 20


@pytest.fixture(scope="module")
def items() -> Tensor:
    """Clusters, as catalogues have them: many items are nearly alike."""
    random = torch.Generator().manual_seed(1)
    centres = torch.randn(60, WIDTH, generator=random)
    vectors = centres[torch.arange(ITEMS) % 60] + 0.5 * torch.randn(ITEMS, WIDTH, generator=random)
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture(scope="module")
def bias() -> Tensor:
    return torch.randn(ITEMS, generator=torch.Generator().manual_seed(2)).exp()


@pytest.fixture(scope="module")
def vectors(items: Tensor) -> Tensor:
    return 8 * items[::500] + torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(3))


GAINS = torch.linspace(0, 1, 12)
NOBODY = [torch.zeros(0, dtype=torch.long)] * 12


def exact(items: Tensor, bias: Tensor, vectors: Tensor) -> Tensor:
    return vectors @ items.T + GAINS.unsqueeze(1) * bias


def check_found(scan: Scan, items: Tensor, bias: Tensor, vectors: Tensor) -> None:
    values, rows = scan.best(vectors, GAINS, DEPTH, NOBODY)
    expected = exact(items, bias, vectors).topk(DEPTH)
    torch.testing.assert_close(values, expected.values, atol=1e-4, rtol=1e-5)
    found = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(rows, expected.indices, strict=True)]
    assert sum(found) >= 0.99 * 12 * DEPTH


def test_the_best_are_found_with_their_exact_scores(items: Tensor, bias: Tensor, vectors: Tensor) -> None:
    check_found(Scan(items, bias), items, bias, vectors)


def test_a_scan_that_loses_popularity_is_caught(items: Tensor, bias: Tensor, vectors: Tensor) -> None:
    scan = Scan(items, bias)
    scan._bias = torch.zeros_like(bias)
    with pytest.raises(AssertionError):
        check_found(scan, items, bias, vectors)


def test_a_scan_with_the_wrong_step_is_caught(
    items: Tensor, bias: Tensor, vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "SHORTLIST", 50)
    scan = Scan(items, bias)
    check_found(scan, items, bias, vectors)
    scan._step = scan._step / 8
    with pytest.raises(AssertionError):
        check_found(scan, items, bias, vectors)


def test_a_batch_is_scanned_in_parts(
    items: Tensor, bias: Tensor, vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Scan(items, bias).best(vectors, GAINS, DEPTH, NOBODY)
    monkeypatch.setattr(scan_module, "MOST_SCORES", 5 * ITEMS)
    parts = Scan(items, bias).best(vectors, GAINS, DEPTH, NOBODY)
    assert torch.equal(whole[1], parts[1])


def test_what_is_barred_is_not_found(items: Tensor, bias: Tensor, vectors: Tensor) -> None:
    scan = Scan(items, bias)
    _, before = scan.best(vectors, GAINS, DEPTH, NOBODY)
    mask = torch.ones(ITEMS, dtype=torch.bool)
    mask[:5] = False
    barred = [before[0], mask, torch.ones(ITEMS, dtype=torch.bool), *NOBODY[3:]]
    values, rows = scan.best(vectors, GAINS, DEPTH, barred)
    assert not set(rows[0].tolist()) & set(before[0].tolist())
    assert sorted(rows[1][:5].tolist()) == [0, 1, 2, 3, 4] and (values[1][5:] == -torch.inf).all()
    assert (values[2] == -torch.inf).all()
    assert torch.equal(rows[3:], before[3:])


def test_standardised_scores_have_deviation_one(items: Tensor, bias: Tensor, vectors: Tensor) -> None:
    scaled, gains = Scan(items, bias).standardised(vectors, GAINS)
    scores = scaled @ items.T + gains.unsqueeze(1) * bias
    torch.testing.assert_close(scores.std(dim=1, unbiased=False), torch.ones(12), atol=1e-3, rtol=1e-3)
