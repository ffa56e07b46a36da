"""How well the questions beside ranking are answered, on the held-out items of a run.

All figures are of users whose last item was held out before training. Nothing of it was looked at when a weight was
chosen: that was done on a tuning run, which holds the last but one out too (`simulations.benchmarks.rerank`); with its
folder the same figures are told of it.

- interests: is the held-out item of one of the three most probable categories; log-loss and calibration;
- wishes: NDCG@10 of a category of the held-out item in words, with and without the history, by weight;
- similar items: is the held-out item among the ten most like the one before it;
- similar users: how many of the 20 most alike met the held-out item, beside all users; and their votes' HR@10;
- audience: of all who do not have an item, are those who took it next the first? AUC, and recall in the first 5 %;
- offers: the same for the items that fit a category in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from client.ranking.audience import offer_in_words
from client.ranking.interests import mass
from client.ranking.rerank_stages import Groups
from client.ranking.similar import SimilarItems, nearest_users
from client.ranking.tastes import Tastes, temperature_of
from shared import metrics
from shared.adapter import load_release
from simulations.benchmarks.questions_setting import Matrix, Setting, ranks, setting_of, softmax, standardised, unit
from simulations.benchmarks.rerank import tuning_run
from simulations.segments import query_of_items
from simulations.simulate import resume

Row = dict[str, Any]
K, NEIGHBOURS, SAMPLE, BINS, LEAST_TAKERS, FIRST = 10, 20, 1000, 10, 3, 0.05
WISH_WEIGHTS, POPULARITY_WEIGHTS, TOGETHER_WEIGHTS = (
    (0.25, 0.5, 1.0, 2.0, 4.0),
    (0.0, 0.25, 0.5, 1.0),
    (0.0, 1.0, 2.0, 4.0),
)


SEARCH = (0.1, 10.0)
"""Temperatures among which one is fitted."""


# --- interests ------------------------------------------------------------------------------------


def interests(setting: Setting) -> list[Row]:
    """The held-out item's categories under the model, under popularity, and under the user's own histogram."""
    told = Groups.of(setting.engine.catalogue.categories, split=True)
    if not told.names:
        return []
    groups = _with_rest(told)
    given = temperature_of(setting.engine.release.config.prior)
    fitted = fitted_temperature(setting.scores, setting.targets)
    wanted = np.stack([mass(one, groups, split=True) for one in np.eye(len(told.codes), dtype=np.float32)])
    truth = wanted[setting.targets]
    popularity = np.tile(setting.counts / setting.counts.sum(), (len(truth), 1))
    own = setting.decayed / setting.decayed.sum(axis=1, keepdims=True)
    plain = setting.met / setting.met.sum(axis=1, keepdims=True)
    shares = {
        f"model, temperature {given:g}": softmax(setting.scores, given),
        f"model, temperature {fitted:.2f} (fitted to these)": softmax(setting.scores, fitted),
        "popularity": popularity,
        "own items": plain,
        "own items, newest most": own,
    }
    return [{"question": "interests", "method": name, **_told(p @ wanted, truth)} for name, p in shares.items()]


def _with_rest(groups: Groups) -> Groups:
    """Items of no group are in one more, so that every distribution adds up to 1."""
    codes = groups.codes.copy()
    codes[(codes < 0).all(axis=1), 0] = len(groups.names)
    return Groups((*groups.names, ""), codes)


def _told(shares: Matrix, truth: Matrix) -> Row:
    """Hit rate at 3, log-loss and expected calibration error of distributions over groups, (n, G) each."""
    users, named = np.arange(len(truth)), shares[:, :-1]
    top = np.argsort(-named, axis=1, kind="stable")[:, :3]
    sure, right = shares[users, top[:, 0]], truth[users, top[:, 0]]
    bins = np.array_split(np.argsort(sure, kind="stable"), BINS)
    error = sum(len(b) * abs(float(sure[b].mean() - right[b].mean())) for b in bins if len(b)) / len(truth)
    return {
        "hit@3": float((truth[users[:, None], top] > 0).any(axis=1).mean()),
        "log_loss": float(-(truth * np.log(np.maximum(shares, 1e-9))).sum(axis=1).mean()),
        "calibration_error": float(error),
        "users": len(truth),
    }


def fitted_temperature(scores: NDArray[np.float32], targets: NDArray[np.integer]) -> float:
    """The temperature of the least log-loss on held-out items.

    The loss is convex in ``1 / temperature``, so that a golden-section search finds its one minimum.

    Parameters
    ----------
    scores : array of float32, shape (n, I)
    targets : array of int, shape (n,)
        The item that each user took next.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    logits, wanted = torch.from_numpy(scores).double(), torch.from_numpy(targets.astype(np.int64))

    def loss(sharpness: float) -> float:
        return float(F.cross_entropy(logits * sharpness, wanted))

    low, high, part = 1 / SEARCH[1], 1 / SEARCH[0], (5**0.5 - 1) / 2
    while high - low > 1e-3:
        left, right = high - part * (high - low), low + part * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)


# --- wishes ---------------------------------------------------------------------------------------


def wishes(setting: Setting, *, seed: int = 0) -> list[Row]:
    """A category of the held-out item in words: alone, beside the history, and beside popularity."""
    asked = np.array(query_of_items(setting.engine.catalogue))[setting.targets]
    users = np.flatnonzero(asked != "")
    if not len(users):
        return []
    users = np.sort(np.random.default_rng(seed).permutation(users)[:SAMPLE])
    texts, place = np.unique(asked[users], return_inverse=True)
    stage, scorer = setting.engine.text, setting.engine.scorer
    fit = standardised(np.stack([scorer.query(str(text), stage, popularity=0.0) for text in texts]))[place]
    history = standardised(setting.scores[users])
    popular = standardised(setting.engine.release.prior.popularity[None])
    trials: dict[str, Matrix] = {"history": history}
    trials |= {f"wish, popularity {w:g}": fit + w * popular for w in POPULARITY_WEIGHTS}
    trials |= {f"history, wish {w:g}": history + w * fit for w in WISH_WEIGHTS}
    told = [(name, ranks(scores, setting, users)) for name, scores in trials.items()]
    return [
        {"question": "wishes", "method": name, f"ndcg@{K}": metrics.ndcg(places), "users": len(users)}
        for name, places in told
    ]


# --- similar items --------------------------------------------------------------------------------


def similar_items(setting: Setting) -> list[Row]:
    """From the newest item of each history to the held-out one."""
    engine = setting.engine
    vectors = engine.vectors.items.cpu().numpy()
    rows: list[Row] = []
    for weight in TOGETHER_WEIGHTS:
        similar = SimilarItems(vectors, engine.release.prior, together=weight)
        near = np.stack([_padded(similar.nearest(row, K).of(0)[0]) for row in range(len(vectors))])
        rows.append(_recall(f"text and {weight:g} together" if weight else "text", near, setting))
    alone = SimilarItems(vectors, engine.release.prior)
    together = np.stack([_first(alone._both_ways(row), row) for row in range(len(vectors))])
    popular = np.stack([_first(setting.counts.astype(np.float32), row) for row in range(len(vectors))])
    return [*rows, _recall("together alone", together, setting), _recall("popularity", popular, setting)]


def _recall(name: str, near: NDArray[np.int64], setting: Setting) -> Row:
    hit = (near[setting.newest] == setting.targets[:, None]).any(axis=1)
    return {"question": "similar items", "method": name, f"recall@{K}": float(hit.mean()), "users": len(hit)}


def _first(scores: NDArray[np.float32], but: int) -> NDArray[np.int64]:
    order = np.argsort(-scores, kind="stable")
    return np.asarray(order[order != but][:K], dtype=np.int64)


def _padded(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([rows, np.full(K - len(rows), -1, dtype=np.int64)])


# --- similar users --------------------------------------------------------------------------------


def similar_users(setting: Setting, *, seed: int = 0) -> list[Row]:
    """Neighbours within the partner, by several vectors of users."""
    engine, tastes = setting.engine, Tastes(setting.engine)
    items = engine.vectors.items.cpu().numpy()
    shares = torch.from_numpy(softmax(setting.scores, tastes.temperature).astype(np.float32)).to(engine.device)
    random = np.random.default_rng(seed)
    ways: Mapping[str, NDArray[np.float32]] = {
        "wanted items": tastes.apart(shares).cpu().numpy(),
        "wanted items and own": _beside(tastes.apart(shares).cpu().numpy(), unit(setting.met.astype(np.float32))),
        "state of the behaviour stage": setting.states,
        "mean of own items": unit(setting.decayed @ items),
        "own items": unit(setting.met.astype(np.float32)),
        "chance": unit(random.normal(size=(len(shares), 16)).astype(np.float32)),
    }
    asked = np.sort(random.permutation(len(shares))[:SAMPLE])
    return [_neighbours(name, vectors, setting, asked) for name, vectors in ways.items()]


def _neighbours(name: str, vectors: NDArray[np.float32], setting: Setting, asked: NDArray[np.int64]) -> Row:
    shared, places = [], []
    for partner in np.unique(setting.partner[asked]):
        crowd, own = np.flatnonzero(setting.partner == partner), asked[setting.partner[asked] == partner]
        found, _ = nearest_users(vectors[own], vectors[crowd], NEIGHBOURS, itself=np.searchsorted(crowd, own))
        everybody = setting.met[crowd].mean(axis=0)
        for user, near in zip(own, found, strict=True):
            votes = setting.met[crowd[near[near >= 0]]].mean(axis=0)
            shared.append((votes[setting.targets[user]], everybody[setting.targets[user]]))
            places.append(ranks((votes + 1e-3 * everybody)[None], setting, np.array([user]))[0])
    theirs, all_of_them = np.array(shared).mean(axis=0)
    hit = metrics.hit_rate(np.array(places), K)
    return {
        "question": "similar users",
        "method": name,
        "lift": theirs / all_of_them,
        f"hr@{K}": hit,
        "users": len(places),
    }


# --- audience -------------------------------------------------------------------------------------


def audience(setting: Setting, *, seed: int = 0) -> list[Row]:
    """Whom an item is offered to: all who have it not; who took it next should come first."""
    items = setting.engine.vectors.items.cpu().numpy()
    shares = softmax(setting.scores, temperature_of(setting.engine.release.config.prior))
    order = np.argsort(np.argsort(np.where(setting.met, np.inf, -setting.scores), axis=1, kind="stable"), axis=1)
    activity = np.repeat(setting.decayed.astype(bool).sum(axis=1, keepdims=True), shares.shape[1], axis=1)
    ways: Mapping[str, NDArray[Any]] = {
        "probability": shares,
        "rank": -order,
        "raw score": setting.scores,
        "activity": activity,
        "item cosine": unit(setting.decayed @ items) @ items.T,
        "chance": np.random.default_rng(seed).random(shares.shape),
    }
    offered = np.flatnonzero(np.bincount(setting.targets, minlength=len(items)) >= LEAST_TAKERS)
    return [{"question": "audience", "method": name, **_first_takers(s, setting, offered)} for name, s in ways.items()]


def _first_takers(scores: NDArray[Any], setting: Setting, offered: NDArray[np.int64]) -> Row:
    """Means over takers: every user who took an item counts alike."""
    above: list[float] = []
    early: list[bool] = []
    for item in offered:
        without = np.flatnonzero(~setting.met[:, item])
        places = _places(scores[without, item], setting.targets[without] == item)
        above += places[0].tolist()
        early += places[1].tolist()
    return {
        "auc": float(np.mean(above)),
        "recall@5%": float(np.mean(early)),
        "items": len(offered),
        "users": len(above),
    }


def _places(scores: NDArray[Any], taken: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each taker: the share of others who stand behind (of equals half), and whether they are of the first 5 %."""
    other = np.sort(scores[~taken])
    behind = (np.searchsorted(other, scores[taken], "left") + np.searchsorted(other, scores[taken], "right")) / 2
    return behind / len(other), np.asarray(len(other) - behind < FIRST * len(scores))


def offers(setting: Setting) -> list[Row]:
    """Whom an offer in words is made to: who took one of its items next should come first.

    The words name a category; the offer is of the items that fit them best. All are asked who have not all of them.
    """
    tastes, items = Tastes(setting.engine), setting.engine.vectors.items.cpu().numpy()
    shares = softmax(setting.scores, tastes.temperature)
    wanted = unit(setting.decayed @ items) @ items.T
    found: dict[str, list[tuple[float, float]]] = {}
    for text in sorted(set(query_of_items(setting.engine.catalogue)) - {""}):
        rows = offer_in_words(tastes, text)
        open_to, taken = ~setting.met[:, rows], np.isin(setting.targets, rows)
        unmet, asked = (shares[:, rows] * open_to).sum(axis=1), open_to.any(axis=1)
        ways: Mapping[str, NDArray[Any]] = {
            "mean of what is not met": unmet / np.maximum(open_to.sum(axis=1), 1),
            "sum of what is not met": unmet,
            "sum of all": shares[:, rows].sum(axis=1),
            "how many are met": (~open_to).sum(axis=1),
            "item cosine": wanted[:, rows].mean(axis=1),
        }
        if taken.sum() >= LEAST_TAKERS:
            for name, one in ways.items():
                above, early = _places(one[asked], taken[asked])
                found.setdefault(name, []).append((float(above.mean()), float(early.mean())))
    return [
        {
            "question": "offers",
            "method": name,
            "auc": auc,
            "recall@5%": early,
            "offers": len(told),
            "users": len(shares),
        }
        for name, told in found.items()
        for auc, early in [np.mean(told, axis=0).tolist()]
    ]


# --- all of them ----------------------------------------------------------------------------------

QUESTIONS = (interests, wishes, similar_items, similar_users, audience, offers)


def questions_study(run: Path, tuning: Path | None = None) -> list[Row]:
    """All questions, on the held-out items of a run; with a folder for a tuning run, on those before them too.

    Returns
    -------
    list of dict
        ``split`` (``last`` or ``last_but_one``), ``question``, ``method`` and its figures.
    """
    splits = [("last", load_release(run / "adapter"), resume(run).workspace)]
    if tuning is not None:
        splits.insert(0, ("last_but_one", *tuning_run(run, tuning)))
    rows: list[Row] = []
    for split, release, workspace in splits:
        setting = setting_of(release, workspace)
        rows += [{"split": split, **row} for question in QUESTIONS for row in question(setting)]
    return rows


def _beside(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.concatenate([a, b], axis=1) / np.sqrt(2), dtype=np.float32)
