"""A partner's second adapter: as many steps as help on what it left out, from the released one, which stays."""

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
from client.ranking.left_out import TEMPERATURES, LeftOut
from client.ranking.personal import PersonalPrior, Taken
from client.ranking.personal_adapter import ADAPTER_FILE, PersonalAdapter, adapt
from client.ranking.personal_files import PERSONAL_FOLDER
from shared.adapter import Release, flatten_parameters
from shared.config import ITEM_RANK, MOST_LEARNED_ITEMS
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
    assert 0 < own.steps <= personal_adapter.BLOCK * personal_adapter.MOST_BLOCKS
    left_out = LeftOut.of(learner, release)
    mine = own.over(release)
    released, personal = (left_out.loss(left_out.text_scores(one.model), one.prior) for one in (release, mine))
    assert personal < released - 0.1
    assert (flatten_parameters(release.model) == before).all()
    assert (flatten_parameters(mine.model) == own.parameters).all()
    assert not any(p.grad is not None for p in release.model.parameters())


def test_the_loss_is_that_of_the_best_temperature(learner: Learner, release: Release) -> None:
    """Opinions beside one another are too sure together, and no ranking hangs on how sure they are."""
    left_out = LeftOut.of(learner, release)
    sure = 3.0 * np.random.default_rng(0).normal(size=(len(left_out), ITEMS)).astype(np.float32)
    expected = []
    for temperature in TEMPERATURES:
        total = 0.0
        for place, row in enumerate(sure / temperature):
            met, wanted = left_out.histories[int(left_out.asked[place])].items, int(left_out.wanted[place])
            total += float(np.log(np.exp(np.delete(row, np.unique(met))).sum()) - row[wanted])
        expected.append(total / len(sure))
    assert expected[0] != min(expected)
    assert left_out.loss(sure, uninformed(ITEMS)) == pytest.approx(min(expected), abs=1e-5)


def test_a_partner_s_own_model_has_item_vectors_of_its_own(release: Release, own: PersonalAdapter) -> None:
    """Beside the prior and without noise they can be afforded; a step over a large catalogue would move too many."""
    mine = own.over(release)
    assert release.model.residuals is None and mine.model.residuals is not None
    assert mine.config.model == mine.model.config and mine.config.model.item_rank == ITEM_RANK
    assert mine.prior is release.prior and mine.config.prior == release.config.prior
    large = personal_adapter.own_config(PLAIN, MOST_LEARNED_ITEMS + 1)
    assert large.model.item_rank == 0


def test_the_same_partner_learns_the_same(learner: Learner, release: Release, own: PersonalAdapter) -> None:
    again = adapt(learner, release, NOTHING)
    assert again.steps == own.steps and (again.parameters == own.parameters).all()


def test_where_no_step_helps_the_released_adapter_stays(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.1, 1.2, 1.3, 1.4])  # and four blocks later it is given up
    monkeypatch.setattr(LeftOut, "loss", lambda *_: next(losses))
    own = adapt(learner, release, NOTHING)
    assert own.steps == 0
    assert own.over(release) is release
    assert next(losses, None) is None


def test_the_best_block_is_taken_and_not_the_last(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.9, 0.8, 0.85, 0.9, 0.9, 0.9])
    monkeypatch.setattr(LeftOut, "loss", lambda *_: next(losses))
    assert adapt(learner, release, NOTHING).steps == 2 * personal_adapter.BLOCK


def test_what_is_surer_of_the_same_order_is_not_taken(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.9, 0.8, 0.85, 0.9, 0.9, 0.9])
    monkeypatch.setattr(LeftOut, "loss", lambda *_: next(losses))
    monkeypatch.setattr(LeftOut, "ndcg", lambda *_: 0.3)
    assert adapt(learner, release, NOTHING).steps == 0


def test_ndcg_is_that_of_the_items_left_out(learner: Learner, release: Release) -> None:
    left_out = LeftOut.of(learner, release)
    scores = np.random.default_rng(0).normal(size=(len(left_out), ITEMS)).astype(np.float32)
    expected = 0.0
    for place, row in enumerate(scores):
        left_in = np.setdiff1d(np.arange(ITEMS), left_out.histories[int(left_out.asked[place])].items)
        rank = int((row[left_in] >= row[left_out.wanted[place]]).sum())
        expected += 1 / np.log2(rank + 1) / len(scores)  # there are no more than ten
    assert left_out.ndcg(scores, uninformed(ITEMS)) == pytest.approx(expected)


def test_of_a_release_without_noise_no_step_is_taken_unseen(
    learner: Learner, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeftOut, "loss", lambda *_: pytest.fail("it knows the answers by heart"))
    exact = replace(release, manifest={**release.manifest, "privacy": {"mode": "none"}})
    assert adapt(learner, exact, NOTHING).steps == 0


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
    assert (back.release, back.steps) == (own.release, own.steps) and (back.parameters == own.parameters).all()
    file.write_bytes(b"junk")
    with pytest.raises(IntegrityError, match="a partner's own adapter"):
        PersonalAdapter.load(tmp_path)
    with pytest.raises(PolicyViolationError, match="stay on its premises"):
        pickle.dumps([own])
    answer: Any = own
    with pytest.raises(ProtocolError):
        pack_answer(answer)
