"""Training on a CUDA device: the gradients of the CPU, the same bound on one user, and every way of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from client.training import ROUNDING_SLACK, UserGradients
from shared.adapter import flatten_parameters, load_parameters
from shared.config import ModelConfig
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch
from simulations.benchmarks import training
from simulations.benchmarks.training import WAYS, Way

if TYPE_CHECKING:
    from conftest import World

    from shared.model.weights import BaseModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
C = 0.01  # far below the gradients here: every user is clipped
TOLERANCE = 1e-4
"""Of a gradient's norm: float32 on two devices. TF32, which keeps 10 bits of 23, is far outside."""
USERS, ITEMS, EVENTS = 65, 30, 8


@pytest.fixture(scope="module")
def there(world: World, base: BaseModel, tiny_model: ModelConfig) -> tuple[UserGradients, CatalogueVectors]:
    """The world's model and catalogue on the GPU."""
    model = BehaviourStage(base, tiny_model.model_copy(update={"item_rank": 2}), n_items=ITEMS).to(CUDA)
    load_parameters(model, flatten_parameters(world.model))
    return UserGradients(model), world.catalogue.to(CUDA)


@pytest.fixture(scope="module")
def batch() -> EventBatch:
    random = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, EVENTS + 1, (USERS,), generator=random)
    real = torch.arange(EVENTS) < lengths.unsqueeze(1)
    items, targets = (torch.where(real, torch.randint(ITEMS, real.shape, generator=random), -1) for _ in range(2))
    codes = torch.zeros_like(items)
    return EventBatch(items, codes, codes, lengths, None, targets)


def rows(batch: EventBatch, some: slice) -> EventBatch:
    parts = (batch.items, batch.events, batch.ratings, batch.lengths)
    return EventBatch(*(part[some] for part in parts), None, batch.targets[some])


def nothing(batch: EventBatch) -> Tensor:
    return torch.zeros(*batch.items.shape, ITEMS, device=batch.items.device)


def check_gradients(world: World, there: tuple[UserGradients, CatalogueVectors], batch: EventBatch) -> None:
    """Row by row, the GPU's gradients are those of the CPU."""
    here, _ = world.gradients.of(batch, world.catalogue, nothing(batch))
    gradients, catalogue = there
    on_gpu = batch.to(CUDA)
    other, _ = gradients.of(on_gpu, catalogue, nothing(on_gpu))
    assert other.device.type == "cuda" and bool((here.norm(dim=1) > 100 * C).any())
    assert bool(((other.cpu() - here).norm(dim=1) <= TOLERANCE * here.norm(dim=1)).all())


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_the_gradients_of_a_gpu_are_those_of_the_cpu(
    world: World, there: tuple[UserGradients, CatalogueVectors], batch: EventBatch
) -> None:
    check_gradients(world, there, batch)


def test_products_of_fewer_bits_are_caught(
    world: World, there: tuple[UserGradients, CatalogueVectors], batch: EventBatch, tf32: None
) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    with pytest.raises(AssertionError):
        check_gradients(world, there, batch)


def test_one_user_more_moves_a_gpus_sum_by_no_more_than_the_clip_norm(
    there: tuple[UserGradients, CatalogueVectors], batch: EventBatch
) -> None:
    """With every user in one batch and then one fewer, so that the GPU may choose other kernels."""
    gradients, catalogue = there
    for users in (2, 33, USERS):
        more, less = (
            gradients.clipped_sum([rows(batch, some)], catalogue, nothing, C).values
            for some in (slice(0, users), slice(0, users - 1))
        )
        moved = float(torch.from_numpy(more - less).norm())
        assert 0.5 * C < moved <= C, f"users={users}"
        assert moved <= C * (1 - ROUNDING_SLACK / 2), "half of what is kept free for rounding is used up"


def test_under_noise_a_gpu_computes_in_float32(there: tuple[UserGradients, CatalogueVectors]) -> None:
    gradients, catalogue = there
    assert not gradients.rows_stand_alone(catalogue, {EVENTS}, nothing)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.prepare_shop(5, 136, tmp_path_factory.mktemp("shop") / "partners")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_of_the_benchmark_trains_on_a_gpu(shop: Path, way: Way) -> None:
    turn = training.veilrec_turns(way, shop) if way.method == "veilrec" else training.usual_turns(way, shop, 3)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert turn()["users_per_s"] > 0
    assert torch.cuda.max_memory_allocated() > before
