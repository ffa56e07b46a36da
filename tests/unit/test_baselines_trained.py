"""SASRec and federated matrix factorisation: what they learn, and what one user can do to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baseline_setting import ITEMS, histories_of, problem_of, walk

from client.batches import next_new_items
from shared import metrics
from simulations.baselines import federated_mf as mf
from simulations.baselines.linear import everybody, seen_items
from simulations.baselines.methods import METHODS, Budget
from simulations.baselines.sasrec import sasrec, windows
from simulations.baselines.sasrec_model import SasRec
from simulations.baselines.sasrec_private import clipped_gradients
from simulations.evaluation import evaluate

SETTINGS = {
    "width": 16,
    "layers": 1,
    "dropout": 0.1,
    "max_events": 6,
    "epochs": 12,
    "batch": 16,
    "learning_rate": 1e-2,
    "most_steps": 1000,
}
CROWD = walk(12, 120, 5)
FOLLOWING = np.array([(int(user.items[-1]) + 1) % 12 for user in CROWD], dtype=np.int32)


def ndcg(targets: np.ndarray) -> float:
    scorer = sasrec(problem_of(CROWD, items=12), SETTINGS, None, 0)
    return metrics.ndcg(evaluate(scorer, CROWD, targets).ranks, 1)


def test_sasrec_learns_what_follows_from_the_last_event() -> None:
    assert ndcg(FOLLOWING) > 0.95


def test_training_ends_after_the_most_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of eight batches."""
    taken = []

    class Counted(torch.optim.AdamW):
        def step(self) -> None:  # type: ignore[override]
            taken.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr("torch.optim.AdamW", Counted)
    for most, expected in ((1000, 16), (11, 11), (3, 3)):
        taken.clear()
        sasrec(problem_of(CROWD, items=12), {**SETTINGS, "epochs": 2, "most_steps": most}, None, 0)
        assert len(taken) == expected
        assert taken[0] == 1e-2
        assert taken[-1] == pytest.approx(1e-2 * (1 - 0.9 * (expected - 1) / expected))


def test_sasrec_knows_nothing_of_targets_that_were_dealt_out_anew() -> None:
    """Chance at the first place of seven candidates is 0.14, deviation 0.03."""
    other = np.array([(target + 3) % 12 for target in FOLLOWING], dtype=np.int32)
    assert ndcg(other) < 0.14


def test_every_event_but_the_first_is_a_target_and_windows_do_not_overlap() -> None:
    items = np.arange(47, dtype=np.int32)
    targets = next_new_items(items)
    for seed in range(20):
        cut = windows([items], [targets], 10, np.random.default_rng(seed))
        assert all(len(read) <= 10 for read, _ in cut)
        assert all((wanted == read + 1).all() for read, wanted in cut)
        wanted = np.concatenate([each for _, each in cut])
        assert sorted(wanted) == list(range(1, max(wanted) + 1)), "each once in an epoch, from the oldest on"
        assert max(wanted) in range(36, 47), "and to the newest, or less than a window from it"
    newest = [max(windows([items], [targets], 10, np.random.default_rng(k))[0][1]) for k in range(20)]
    assert newest.count(46) >= 5, "half of the time (false failure: 0.6 %, and the seeds are fixed)"


def test_a_history_with_nothing_to_predict_gives_no_window() -> None:
    few = [np.array(items, dtype=np.int32) for items in ([3], [3, 3, 3])]
    assert windows(few, [next_new_items(items) for items in few], 10, np.random.default_rng(0)) == []


def test_padding_and_the_future_change_no_state() -> None:
    model = SasRec(items=ITEMS, width=8, layers=2, heads=2, max_events=6, dropout=0.5).eval()
    alone = model(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3, -1, -1], [4] * 5]))[:1, :3], alone)
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3, 6, 5]]))[:, :3], alone)


def a_model() -> SasRec:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SasRec(items=ITEMS, width=8, layers=2, heads=2, max_events=6, dropout=0.0).eval()


def own_gradient(model: SasRec, items: list[int]) -> torch.Tensor:
    """The gradient of one user's mean loss by plain autograd."""
    targets = next_new_items(np.array(items, dtype=np.int32))[:-1][-6:]
    states = model(torch.tensor([items[:-1][-6:]]))[0]
    known = torch.from_numpy(targets) >= 0
    loss = F.cross_entropy(model.score(states)[known], torch.from_numpy(targets)[known])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_gradients_of_users_are_clipped_one_by_one_and_summed() -> None:
    users, model = [[0, 1, 2], [3, 4, 5, 6, 0, 1, 2, 2, 3], [5, 6]], a_model()
    owns = [own_gradient(model, user) for user in users]
    C = float(np.median([own.norm() for own in owns]))  # clips one of them, not all
    expected = sum(own * min(1.0, C / float(own.norm())) for own in owns)
    histories = histories_of(*users)
    got = clipped_gradients(model, histories, everybody(histories), C)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("user", [[0, 1], [6, 5, 4, 3, 2, 1, 0], [2, 2, 2, 3] * 30 + [5]], ids=len)
def test_one_user_moves_a_step_of_sasrec_by_the_clip_norm_at_most(user: list[int]) -> None:
    others, model = [[0, 1, 2], [3, 4, 5]], a_model()
    more, less = histories_of(*others, user), histories_of(*others)
    moved = clipped_gradients(model, more, np.arange(3), 0.01) - clipped_gradients(model, less, np.arange(2), 0.01)
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_users_without_a_next_item_and_empty_cohorts_add_nothing() -> None:
    histories = histories_of([1], [], [2, 2])
    for users in (everybody(histories), np.zeros(0, dtype=np.int64)):
        assert not clipped_gradients(a_model(), histories, users, 1.0).any()


@pytest.mark.parametrize(("noise", "learns"), [(0.01, True), (1000.0, False)])
def test_private_sasrec_learns_as_far_as_the_noise_of_the_plan_lets_it(
    noise: float, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def step_noise(problem: object, budget: Budget, **plan: float) -> float:
        asked.append((budget, plan))
        return noise

    monkeypatch.setattr("simulations.baselines.sasrec_private.step_noise", step_noise)
    settings = {**SETTINGS, "steps": 25, "sampling_rate": 0.8, "clip_norm": 1.0, "learning_rate": 3e-2}
    scorer = sasrec(problem_of(CROWD, items=12, population=100), settings, Budget(3.0, 1e-5), 0)
    found = metrics.ndcg(evaluate(scorer, CROWD, FOLLOWING).ranks, 1)
    assert found > 0.9 if learns else found < 0.5
    assert asked == [(Budget(3.0, 1e-5), {"sampling_rate": 0.8, "steps": 25})]


def test_a_user_of_two_partners_is_clipped_to_half_the_norm_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped_to = []

    def clip_and_sum(gradients: torch.Tensor, clip_norm: float) -> torch.Tensor:
        clipped_to.append(clip_norm)
        return gradients.sum(0)

    monkeypatch.setattr("simulations.baselines.sasrec_private.clip_and_sum", clip_and_sum)
    monkeypatch.setattr("simulations.baselines.sasrec_private.step_noise", lambda *_, **__: 1.0)
    settings = {**SETTINGS, "steps": 1, "sampling_rate": 1.0, "clip_norm": 0.8}
    sasrec(problem_of(walk(ITEMS, 3, 4), walk(ITEMS, 3, 4), partners_per_user=2), settings, Budget(3.0, 1e-5), 0)
    assert clipped_to == [0.4, 0.4]


# --- federated matrix factorisation ---------------------------------------------------------------


def test_federated_factors_of_users_at_two_partners_get_twice_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {}
    for k, stddev in ((1, 0.0), (1, 0.6), (2, 0.3)):
        monkeypatch.setattr(mf, "step_noise", lambda *_, stddev=stddev, **__: stddev)
        problem = problem_of(walk(ITEMS, 3, 4), walk(ITEMS, 3, 4), partners_per_user=k)
        settings = {**METHODS["federated_mf"].private_grid[0], "factors": 4, "rounds": 2}
        factors[k, stddev] = mf.federated_mf(problem, settings, Budget(3.0, 1e-5), 0).factors
    np.testing.assert_array_equal(factors[1, 0.6], factors[2, 0.3])
    assert not np.allclose(factors[1, 0.6], factors[1, 0.0])


def test_a_user_s_vector_is_the_minimum_of_the_weighted_loss_and_the_sum_is_of_clipped_gradients() -> None:
    rng = np.random.default_rng(0)
    model = mf.FederatedMf(rng.normal(size=(ITEMS, 3)).astype(np.float32), alpha=4.0, ridge=0.5)
    histories = histories_of([0, 1, 1, 2], [3], [])
    x = torch.from_numpy(seen_items(histories, everybody(histories), ITEMS).toarray())
    p = torch.from_numpy(mf.user_vectors(seen_items(histories, everybody(histories), ITEMS), model)).requires_grad_()
    Q = torch.from_numpy(model.factors).requires_grad_()

    def loss(user: int) -> torch.Tensor:
        return (0.5 * (1 + 4 * x[user]) * (x[user] - Q @ p[user]) ** 2).sum() + 0.25 * (p[user] ** 2).sum()

    expected = torch.zeros_like(Q)
    for user in range(3):
        at_p, of_q = torch.autograd.grad(loss(user), (p, Q))
        assert at_p.abs().max() < 1e-4
        expected += of_q / max(1.0, float(of_q.norm()))
    got = mf.clipped_gradients(seen_items(histories, everybody(histories), ITEMS), model)
    np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-4)


def test_one_user_moves_the_item_gradient_by_one_at_most() -> None:
    model = mf.FederatedMf(np.random.default_rng(0).normal(size=(ITEMS, 3)).astype(np.float32), alpha=50.0, ridge=0.1)
    for user in ([0], list(range(6)), [1, 1, 1, 5]):
        histories = histories_of(user)
        moved = mf.clipped_gradients(seen_items(histories, everybody(histories), ITEMS), model)
        assert np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-4)


def test_federated_factors_beat_popularity_where_there_are_two_tastes() -> None:
    rng = np.random.default_rng(0)
    left = [rng.permutation(6)[:4].tolist() for _ in range(60)]
    right = [(6 + rng.permutation(6)[:4]).tolist() for _ in range(60)]
    histories = histories_of(*left, *right)
    targets = np.array([next(i for i in range(12) if i // 6 == k // 60 and i not in user) for k, user in
                        enumerate([*left, *right])], dtype=np.int32)  # fmt: skip
    problem = problem_of(histories, items=12, population=120)
    settings = {**METHODS["federated_mf"].grid[0], "factors": 4, "ridge": 1.0}
    found = [
        metrics.ndcg(evaluate(METHODS[name].fit(problem, own, None, 0), histories, targets).ranks, 2)
        for name, own in (("federated_mf", settings), ("popularity", {}))
    ]
    assert found[0] > 0.65 > found[1] + 0.2, "two of the own taste are unseen, and one of them is the target"
