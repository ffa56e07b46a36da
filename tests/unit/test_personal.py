"""What a partner adds at home: it is made of its own users, it helps where the global prior is noise, and stays."""

from __future__ import annotations

import pickle
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from partner_setting import CONFIG, ITEMS, SIMULATED, changed, simulated_premises

from client.learner import Learner
from client.ranking.left_out import LeftOut, leave_last_out
from client.ranking.personal import (
    NOTHING,
    PERSONAL_FILE,
    WITHOUT_NOISE,
    PersonalPrior,
    Taken,
    mixed,
    own_prior,
    personalise,
)
from client.ranking.personal_files import PERSONAL_FOLDER
from shared.adapter import Release
from shared.config import PriorConfig
from shared.errors import AdapterMismatchError, IntegrityError, PolicyViolationError, ProtocolError
from shared.model.prior import CollaborativePrior, uninformed
from shared.wire_answers import ALLOWED, pack_answer

if TYPE_CHECKING:
    from conftest import HistoriesOf

PLAIN = changed(CONFIG, {**SIMULATED, "prior": {"kind": "hybrid"}})


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tmp_path_factory.mktemp("personal")
    return Learner(simulated_premises(folder, folder / "vectors.sqlite"), "cpu")


def release_of(learner: Learner, prior: CollaborativePrior, mode: str = "distributed") -> Release:
    model = learner.workbench(PLAIN.model, 0).model
    return Release(PLAIN, model, prior, {"fingerprint": "a" * 64, "privacy": {"mode": mode}})


def noise(n_items: int = ITEMS, seed: int = 0) -> CollaborativePrior:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n_items, n_items)).astype(np.float32)
    return CollaborativePrior(rng.normal(size=n_items).astype(np.float32), matrix)


def personal(weight: float = 0.5, share: float = 0.5) -> PersonalPrior:
    return PersonalPrior("a" * 64, Taken(weight, share, 0.5), noise(seed=1))


# --- what it is made of ---------------------------------------------------------------------------


def test_nothing_taken_is_the_global_prior_to_the_bit() -> None:
    shared = noise()
    same = mixed(shared, noise(seed=1), 0.0, 0.0)
    assert same.item_to_item is shared.item_to_item
    assert (same.popularity == shared.popularity).all()


def test_an_item_is_unmet_only_where_neither_the_federation_nor_the_partner_met_it() -> None:
    """`shared.model.prior.completed` goes by it: forgetting it would leave new items to chance."""
    shared = replace(noise(), unseen=np.array([1, 1, 0, 0, *[0] * (len(noise().popularity) - 4)], np.float32))
    own = replace(noise(seed=1), unseen=np.array([1, 0, 1, 0, *[0] * (len(noise().popularity) - 4)], np.float32))
    assert mixed(shared, own, 0.0, 0.5).unseen is shared.unseen
    both = mixed(shared, own, 0.4, 0.5).unseen
    assert both is not None and both[:4].tolist() == [1, 0, 0, 0]


def test_what_texts_weigh_is_a_matter_of_the_federation_s_noise_and_of_what_one_s_own_data_leave_of_it() -> None:
    texts = np.array([5.0, 0.5], dtype=np.float32)
    shared = replace(noise(), text_weights=texts)
    for one in (shared, replace(shared, item_to_item=None)):
        told = mixed(one, noise(seed=1), 0.4, 0.5, 0.5).text_weights
        assert told is not None and told.tolist() == [2.5, 0.5]
    assert mixed(shared, noise(seed=1), 0.0, 0.5, 0.5).text_weights is texts, "nothing of one's own takes its place"
    assert mixed(shared, noise(seed=1), 0.4, 0.5).text_weights is texts
    assert mixed(replace(shared, item_to_item=None), noise(seed=1), 0.4, 0.5).text_weights is texts


def test_the_scale_of_one_s_own_weights_does_not_matter() -> None:
    shared, own = noise(), noise(seed=1)
    assert own.item_to_item is not None
    loud = CollaborativePrior(own.popularity, own.item_to_item * 1000)
    one, other = mixed(shared, own, 0.4, 1.0), mixed(shared, loud, 0.4, 1.0)
    assert one.item_to_item == pytest.approx(other.item_to_item, abs=1e-5)
    assert (one.popularity == own.popularity).all()


def test_before_joining_texts_weigh_by_how_few_a_partner_s_users_are(histories_of: HistoriesOf) -> None:
    own = own_prior(histories_of([[0, 1], [1, 2]]), 8, PriorConfig())
    assert own.text_weights is not None and own.text_weights[0] == 2.0  # the root of four items a user
    shared = replace(own, text_weights=np.array([0.5, 0.25], dtype=np.float32))
    alone = CollaborativePrior(np.zeros(8, dtype=np.float32), text_weights=shared.text_weights)
    for beside in (shared, alone):  # once joined, as the federation has it
        assert (mixed(beside, own, 0.8, 0.5).text_weights == shared.text_weights).all()
    assert own_prior(histories_of([]), 8, PriorConfig()).text_weights is not None


def test_where_the_release_has_popularity_alone_one_s_own_weights_are_all_there_is(histories_of: HistoriesOf) -> None:
    shared = CollaborativePrior(np.zeros(3, dtype=np.float32))
    own = own_prior(histories_of([[0, 1], [1]]), 3, PriorConfig())
    both = mixed(shared, own, 0.4, 0.5)
    assert both.item_to_item is own.item_to_item
    assert both.popularity == pytest.approx(own.popularity / 2)
    assert mixed(shared, own, 0.0, 0.0).item_to_item is None


def test_weights_in_two_factors_add_up_as_whole_ones_do(histories_of: HistoriesOf) -> None:
    people = histories_of([[k % 8, (k + 1) % 8, (k + 2) % 8] for k in range(40)])
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    shared = CollaborativePrior(np.zeros(8, dtype=np.float32), left, right)
    own = own_prior(people, 8, PriorConfig(max_items=4))
    assert own.widen is not None, "a catalogue this large is summed as a sketch"
    in_factors = mixed(shared, own, 0.4, 0.0)
    assert own.item_to_item is not None and in_factors.item_to_item is not None and in_factors.widen is not None
    whole = CollaborativePrior(shared.popularity, left @ right)
    expected = mixed(whole, CollaborativePrior(own.popularity, own.item_to_item @ own.widen), 0.4, 0.0)
    assert in_factors.item_to_item @ in_factors.widen == pytest.approx(expected.item_to_item, abs=1e-4)
    assert mixed(shared, CollaborativePrior(own.popularity, own.item_to_item @ own.widen), 0.4, 0.0).item_to_item == (
        pytest.approx(expected.item_to_item, abs=1e-4)
    )


def test_own_sums_hold_what_own_users_do(histories_of: HistoriesOf) -> None:
    own = own_prior(histories_of([[0, 1, 2]] * 40 + [[3, 4]] * 40), 6, PriorConfig())
    assert own.item_to_item is not None
    assert np.argmax(own.item_to_item[0]) == 1
    assert np.argmax(own.item_to_item[3]) == 4
    assert np.argmin(own.popularity) == 5


# --- the split ------------------------------------------------------------------------------------


def test_the_item_met_last_leaves_the_history_with_all_its_events(histories_of: HistoriesOf) -> None:
    rest, targets = leave_last_out(histories_of([[0, 1, 2, 1, 3, 1], [5, 6, 7, 8], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]]))
    assert targets.tolist() == [1, -1, -1, 4]
    assert [rest[k].items.tolist() for k in range(4)] == [[0, 2, 3], [5, 6, 7, 8], [4, 4, 4, 4, 4], [0, 1, 2, 3]]


# --- the choice -----------------------------------------------------------------------------------


def chosen(learner: Learner, people: list[list[int]], release: Release, histories_of: HistoriesOf) -> PersonalPrior:
    own = Learner(learner.premises, "cpu")
    own._histories = (PLAIN.model.max_history, histories_of(people))
    return personalise(own, release)


def taste(users: int, seed: int = 0) -> list[list[int]]:
    """Everybody goes round the catalogue from a place of their own: the next item follows from the last one."""
    starts = np.random.default_rng(seed).integers(ITEMS, size=users)
    return [[(int(start) + step) % ITEMS for step in range(6)] for start in starts]


def test_where_the_global_prior_is_noise_much_of_one_s_own_is_taken(
    learner: Learner, histories_of: HistoriesOf
) -> None:
    own = chosen(learner, taste(120), release_of(learner, noise()), histories_of)
    assert own.adds
    assert own.taken.weight >= 0.8


def test_texts_weigh_less_where_one_s_own_users_contradict_them(learner: Learner, histories_of: HistoriesOf) -> None:
    vectors = learner.workbench(PLAIN.model, 0).catalogue.items.cpu().numpy()
    way = [0]
    while len(way) < ITEMS:  # on to the item whose text is least like the last one's
        way.append(min(set(range(ITEMS)) - set(way), key=lambda item: float(vectors[item] @ vectors[way[-1]])))
    people = [[way[item] for item in one] for one in taste(120)]
    loud = replace(noise(), text_weights=np.array([20.0, 0.0], dtype=np.float32))
    assert chosen(learner, people, release_of(learner, loud), histories_of).taken.likeness_share == 0.5
    assert chosen(learner, people, release_of(learner, noise()), histories_of).taken.likeness_share == 1.0


def test_where_the_global_prior_knows_more_than_few_users_little_is_taken(
    learner: Learner, histories_of: HistoriesOf
) -> None:
    shared = own_prior(histories_of(taste(500, seed=1)), ITEMS, PLAIN.prior)
    own = chosen(learner, taste(8, seed=3), release_of(learner, shared), histories_of)
    assert own.taken.weight <= 0.2


def test_a_smaller_loss_without_a_better_ranking_takes_nothing(
    learner: Learner, histories_of: HistoriesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at partners of a few hundred users: their own sums smooth what is sure, and rank worse."""
    release = release_of(learner, noise())
    assert chosen(learner, taste(120), release, histories_of).adds
    monkeypatch.setattr(LeftOut, "ndcg", lambda *_: 0.3)
    assert chosen(learner, taste(120), release, histories_of).taken == NOTHING


def test_users_with_nothing_to_leave_out_leave_the_global_model(learner: Learner, histories_of: HistoriesOf) -> None:
    own = chosen(learner, [[0, 1], [2, 3, 4]], release_of(learner, noise()), histories_of)
    assert not own.adds


def test_a_release_without_noise_knows_the_answers_and_is_not_asked(
    learner: Learner, histories_of: HistoriesOf
) -> None:
    own = chosen(learner, taste(20), release_of(learner, noise(), mode="none"), histories_of)
    assert own.taken == WITHOUT_NOISE


def test_a_release_becomes_the_partner_s_own_and_stays_as_it_was(learner: Learner) -> None:
    release = release_of(learner, noise())
    own = personal().over(release)
    assert own.model is release.model and own.config is release.config
    assert own.prior.item_to_item is not release.prior.item_to_item
    with pytest.raises(AdapterMismatchError, match="fingerprint="):
        personal().over(replace(release, manifest={"fingerprint": "b" * 64}))


# --- it stays -------------------------------------------------------------------------------------


def test_it_is_kept_on_the_premises_for_its_owner_alone(tmp_path: Path) -> None:
    assert PersonalPrior.load(tmp_path) is None
    personal().save(tmp_path)
    file = tmp_path / PERSONAL_FOLDER / PERSONAL_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    back = PersonalPrior.load(tmp_path)
    assert back is not None
    assert (back.release, back.taken) == ("a" * 64, Taken(0.5, 0.5, 0.5))
    for name, array in personal().own.arrays().items():
        assert (back.own.arrays()[name] == array).all()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_personal_prior_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PERSONAL_FOLDER).mkdir()
    (tmp_path / PERSONAL_FOLDER / PERSONAL_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match="a partner's own prior"):
        PersonalPrior.load(tmp_path)


def test_no_message_has_room_for_it() -> None:
    own: Any = personal()
    with pytest.raises(ProtocolError):
        pack_answer(own)
    fields = {name for kind in ALLOWED.values() for name in kind} | set(ALLOWED)
    assert not any("personal" in name.lower() or name == "own" for name in fields)


def test_it_refuses_to_be_pickled() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(PolicyViolationError, match="stay on its premises"):
            pickle.dumps(personal(), protocol)
    with pytest.raises(PolicyViolationError):
        pickle.dumps({"inside": [personal()]})


def test_a_release_with_popularity_alone_takes_one_s_own_weights(learner: Learner, histories_of: HistoriesOf) -> None:
    own = chosen(learner, taste(60), release_of(learner, uninformed(ITEMS)), histories_of)
    assert own.taken.weight > 0
    assert own.over(release_of(learner, uninformed(ITEMS))).prior.item_to_item is own.own.item_to_item
