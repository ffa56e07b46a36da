"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from client.training import UserGradients
    from shared.config import ModelConfig
    from shared.model.behaviour import BehaviourStage, CatalogueVectors
    from shared.model.weights import BaseModel
    from shared.schema import Histories

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

REAL_DATA = Path(os.environ.get("VEILREC_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of minutes to those who ask for them."""
    if "soak" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes long: pytest -m soak"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data: set VEILREC_REAL_DATA to a folder that holds it")
    return REAL_DATA


@pytest.fixture(scope="session", autouse=True)
def veilrec_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own: no test reads or writes the imported data of the person who runs it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEILREC_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def base() -> BaseModel:
    """The packaged MiniLM, its digest checked."""
    from shared.config import DEFAULT_BASE
    from shared.model.weights import find_base

    return find_base(DEFAULT_BASE)


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    """The smallest recommender on MiniLM: one adapted layer, rank 2, 8 events."""
    from shared.config import ModelConfig

    return ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8)


HistoriesOf = Callable[[Sequence[Sequence[int]]], "Histories"]


@pytest.fixture(scope="session")
def histories_of() -> HistoriesOf:
    """A function that makes `Histories` from one list of item rows a user; users are named u000, u001, ..."""
    from shared.schema import EVENT_KINDS, Histories

    def make(items: Sequence[Sequence[int]]) -> Histories:
        lengths = [len(user) for user in items]
        flat = np.array([row for user in items for row in user], dtype=np.int32)
        n = len(flat)
        return Histories(
            users=tuple(f"u{k:03d}" for k in range(len(items))),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=flat,
            timestamps=np.arange(n, dtype=np.int64),
            events=np.full(n, EVENT_KINDS.index("purchase"), dtype=np.int8),
            ratings=np.full(n, np.nan, dtype=np.float32),
            reviews=np.full(n, -1, dtype=np.int32),
        )

    return make


@dataclass(frozen=True)
class World:
    """A behaviour stage on MiniLM whose trained parameters are all away from zero, and what it trains on.

    Random catalogue vectors stand in for BERT's, so that no text has to be read.
    """

    model: BehaviourStage
    gradients: UserGradients
    catalogue: CatalogueVectors
    n_items: int


@pytest.fixture(scope="session")
def world(base: BaseModel, tiny_model: ModelConfig) -> World:
    """One model with item residuals for all tests of gradients; they must not change its weights."""
    import torch

    from client.training import UserGradients
    from shared.model.behaviour import BehaviourStage, CatalogueVectors, trainable_parameters

    n_items = 30
    model = BehaviourStage(base, tiny_model.model_copy(update={"item_rank": 2}), n_items=n_items)
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    texts, items = torch.randn(2, n_items, model.width, generator=random)
    catalogue = CatalogueVectors(0.3 * texts, torch.nn.functional.normalize(items, dim=-1))
    return World(model, UserGradients(model), catalogue, n_items)


@pytest.fixture
def veilrec(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, stdout, stderr."""
    from simulations.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["veilrec", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return call
