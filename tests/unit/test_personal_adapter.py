"""A partner's second adapter: as many epochs as help on what it left out, from the released one, which stays."""

from __future__ import annotations

import copy
import pickle
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from partner_setting import CONFIG, ITEMS, SIMULATED, changed, simulated_premises

from client.learner import Learner
from client.ranking import personal_adapter
from client.ranking.left_out import LeftOut
from client.ranking.personal import PersonalPrior, Taken
from client.ranking.personal_adapter import ADAPTER_FILE, PersonalAdapter, adapt
from client.ranking.personal_files import PERSONAL_FOLDER
from shared.adapter import Release, flatten_parameters
from shared.errors import AdapterMismatchError, IntegrityError, PolicyViolationError, ProtocolError
from shared.model.prior import uninformed
from shared.wire_answers import pack_answer

if TYPE_CHECKING:
    from conftest import HistoriesOf

PLAIN = changed(CONFIG, {**SIMULATED, "prior": {"kind": "none"}, "model": {"temperature": 5.0}})
NOTHING = PersonalPrior("a" * 64, Taken(0.0, 0.0), uninformed(ITEMS))


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory, histories_of: HistoriesOf) -> Learner:
    """48 users who go round the catalogue: the next item follows from the last one."""
    folder = tmp_path_factory.mktemp("adapter")
    learner = Learner(simulated_premises(folder, folder / "vectors.sqlite"), "cpu")
    starts = np.random.default_rng(0).integers(ITEMS, size=48)
    people = [[(int(start) + step) % ITEMS for step in range(6)] for start in starts]
    learner._histories = (PLAIN.model.max_history, histories_of(people))
    return learner


@pytest.fixture(scope="module")
def release(learner: Learner) -> Release:
    model = copy.deepcopy(learner.workbench(PLAIN.model, 0).model)
    manifest: dict[str, Any] = {"fingerprint": "a" * 64, "privacy": {"mode": "distributed"}}
    return Release(PLAIN, model, uninformed(ITEMS), manifest)


@pytest.fixture(scope="module")
def own(learner: Learner, release: Release) -> PersonalAdapter:
    return adapt(learner, release, NOTHING)


def test_what_can_be_learned_is_learned_and_the_release_stays_as_it_was(
    learner: Learner, release: Release, own: PersonalAdapter
) -> None:
    before = flatten_parameters(release.model)
    assert 0 < own.epochs <= personal_adapter.MOST_EPOCHS
    left_out = LeftOut.of(learner, release)
    mine = own.over(release)
    released, personal = (left_out.loss(left_out.text_scores(one.model), one.prior) for one in (release, mine))
    assert personal < released - 0.1
    assert (flatten_parameters(release.model) == before).all()
    assert (flatten_parameters(mine.model) == own.parameters).all()
    assert not any(p.grad is not None for p in release.model.parameters())


def test_the_same_partner_learns_the_same(learner: Learner, release: Release, own: PersonalAdapter) -> None:
    again = adapt(learner, release, NOTHING)
    assert again.epochs == own.epochs and (again.parameters == own.parameters).all()


def test_where_no_epoch_helps_the_released_adapter_stays(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.1, 1.2])  # and two epochs later it is given up
    monkeypatch.setattr(LeftOut, "loss", lambda *_: next(losses))
    own = adapt(learner, release, NOTHING)
    assert own.epochs == 0
    assert own.over(release) is release
    assert next(losses, None) is None


def test_the_best_epoch_is_taken_and_not_the_last(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.9, 0.8, 0.85, 0.9])
    monkeypatch.setattr(LeftOut, "loss", lambda *_: next(losses))
    assert adapt(learner, release, NOTHING).epochs == 2


def test_of_a_release_without_noise_no_epoch_is_taken_unseen(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeftOut, "loss", lambda *_: pytest.fail("it knows the answers by heart"))
    exact = replace(release, manifest={**release.manifest, "privacy": {"mode": "none"}})
    assert adapt(learner, exact, NOTHING).epochs == 0


def test_it_is_of_one_release(release: Release, own: PersonalAdapter) -> None:
    with pytest.raises(AdapterMismatchError, match="fingerprint="):
        own.over(replace(release, manifest={"fingerprint": "b" * 64}))


def test_it_is_kept_on_the_premises_and_never_sent(tmp_path: Path, own: PersonalAdapter) -> None:
    assert PersonalAdapter.load(tmp_path) is None
    own.save(tmp_path)
    file = tmp_path / PERSONAL_FOLDER / ADAPTER_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = PersonalAdapter.load(tmp_path)
    assert back is not None
    assert (back.release, back.epochs) == (own.release, own.epochs) and (back.parameters == own.parameters).all()
    file.write_bytes(b"junk")
    with pytest.raises(IntegrityError, match="a partner's own adapter"):
        PersonalAdapter.load(tmp_path)
    with pytest.raises(PolicyViolationError, match="stay on its premises"):
        pickle.dumps([own])
    answer: Any = own
    with pytest.raises(ProtocolError):
        pack_answer(answer)
