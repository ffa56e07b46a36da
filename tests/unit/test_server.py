"""The coordinator's optimiser and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState, apply_mean_gradient
from shared.config import TrainingConfig
from shared.errors import CheckpointError
from shared.model.prior import CollaborativePrior

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(20, 7)) * np.logspace(-6, 2, 7)
BEGIN = RNG.normal(size=7).astype(np.float32)
TRAINING = TrainingConfig(rounds=20, learning_rate=0.01, beta1=0.9, beta2=0.99, average_from=1.0)


def trained(config: TrainingConfig, gradients: Iterable[np.ndarray[Any, Any]] = GRADIENTS) -> list[ServerState]:
    states = [ServerState.start(BEGIN)]
    for gradient in gradients:
        states.append(apply_mean_gradient(states[-1], gradient, config))
    return states


# --- optimiser ------------------------------------------------------------------------------------


def test_adam_is_that_of_torch() -> None:
    reference = torch.nn.Parameter(torch.from_numpy(BEGIN.astype(np.float64)))
    optimizer = torch.optim.Adam([reference], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for gradient, state in zip(GRADIENTS, trained(TRAINING)[1:], strict=True):
        reference.grad = torch.from_numpy(gradient)
        optimizer.step()
        np.testing.assert_allclose(state.parameters, reference.detach().numpy(), rtol=0, atol=1e-9)


def test_average_is_plain_gradient_descent() -> None:
    config = TRAINING.model_copy(update={"server_optimizer": "average"})
    expected = BEGIN.astype(np.float64) - 0.01 * np.cumsum(GRADIENTS, axis=0)
    states = trained(config)[1:]
    np.testing.assert_allclose([state.parameters for state in states], expected, rtol=1e-12, atol=1e-12)
    assert not states[-1].momentum.any() and not states[-1].variance.any()


@pytest.mark.parametrize(("average_from", "kept"), [(0.75, 5), (0.5, 10), (0.01, 20), (0.8, 4)])
def test_what_is_released_is_the_mean_of_the_last_iterates(average_from: float, kept: int) -> None:
    states = trained(TRAINING.model_copy(update={"average_from": average_from}))[1:]
    expected = np.mean([state.parameters for state in states[-kept:]], axis=0)
    assert states[-1].averaged == kept
    np.testing.assert_allclose(states[-1].released, expected, rtol=1e-6)


def test_without_averaging_the_last_iterate_is_released() -> None:
    last = trained(TRAINING)[-1]
    np.testing.assert_array_equal(last.released, last.parameters.astype(np.float32))


def test_an_untrained_model_is_released_as_it_began() -> None:
    np.testing.assert_array_equal(ServerState.start(BEGIN).released, BEGIN)


# --- checkpoints ----------------------------------------------------------------------------------

PRIOR = CollaborativePrior(np.array([0.5, -0.5, 0.0], dtype=np.float32), item_to_item=np.eye(3, dtype=np.float32))
RECORD = {"round": 1, "stage": "prior", "epsilon": 0.1 + 0.2}


def after_prior() -> Checkpoint:
    return Checkpoint("run", 1, ServerState.start(BEGIN), PRIOR, [RECORD])


def after_rounds(rounds: int) -> Checkpoint:
    state = trained(TRAINING.model_copy(update={"average_from": 0.1}), GRADIENTS[:rounds])[-1]
    return replace(after_prior(), round=1 + rounds, state=state, records=[RECORD] * (1 + rounds))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    arrays = all(
        np.array_equal(getattr(one.state, name), getattr(other.state, name))
        for name in ("parameters", "momentum", "variance", "mean_parameters")
    )
    priors = (one.prior is None) == (other.prior is None) and (
        one.prior is None
        or other.prior is None
        or all(np.array_equal(a, other.prior.arrays()[name]) for name, a in one.prior.arrays().items())
    )
    numbers = (one.run_id, one.round, one.state.steps, one.state.averaged, one.records)
    return (
        arrays
        and priors
        and numbers
        == (
            other.run_id,
            other.round,
            other.state.steps,
            other.state.averaged,
            other.records,
        )
    )


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for checkpoint in (after_prior(), after_rounds(1), after_rounds(7)):
        store.save(checkpoint)
        found = CheckpointStore(tmp_path).load("run")
        assert found is not None
        assert same(found, checkpoint)


def test_a_checkpoint_before_the_prior_has_none(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(replace(after_prior(), prior=None))
    found = CheckpointStore(tmp_path).load("run")
    assert found is not None and found.prior is None


def test_there_is_no_checkpoint_in_an_empty_folder(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").load("run") is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(after_prior())
    with pytest.raises(CheckpointError, match="Expected run_id=other, got run"):
        CheckpointStore(tmp_path).load("other")


def test_a_prior_of_another_run_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "a").save(after_prior())
    CheckpointStore(tmp_path / "b").save(replace(after_prior(), run_id="other"))
    (tmp_path / "b" / "prior.safetensors").replace(tmp_path / "a" / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"prior\.safetensors: Expected run_id=run"):
        CheckpointStore(tmp_path / "a").load("run")


def test_a_checkpoint_whose_prior_is_gone_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(after_prior())
    (tmp_path / "prior.safetensors").unlink()
    with pytest.raises(CheckpointError):
        store.load("run")


@pytest.mark.parametrize("name", ["state.safetensors", "prior.safetensors"])
def test_a_checkpoint_with_a_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    store, file = CheckpointStore(tmp_path), tmp_path / name
    store.save(after_prior())
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            store.load("run")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    store, file = CheckpointStore(tmp_path), tmp_path / "state.safetensors"
    store.save(after_prior())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        store.load("run")


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(after_rounds(1))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    store.save(after_prior())
    store.save(after_rounds(1))
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.save(after_rounds(2))
    monkeypatch.undo()
    found = store.load("run")
    assert found is not None and same(found, after_rounds(1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["prior.safetensors", "state.safetensors"]
