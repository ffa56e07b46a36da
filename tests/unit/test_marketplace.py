"""The embedded marketplace: what it promises, and that it is a shop from which one can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.schema import EVENT_KINDS
from simulations.marketplace import MAX_EVENTS, OPENED, MarketplaceConfig, generate, stream, write
from simulations.marketplace_archetypes import ARCHETYPES
from simulations.marketplace_catalogue import KINDS, draw_goods
from simulations.marketplace_goods import CATEGORIES, PLAIN
from simulations.marketplace_people import draw_partners, gather
from simulations.marketplace_text import AUDIENCES, STYLES, THEMES

SMALL = MarketplaceConfig(users=300, items=200, partners=3, seed=7)
SHOP = MarketplaceConfig(users=2000, seed=1)


@pytest.fixture(scope="module")
def small() -> tuple[pl.DataFrame, pl.DataFrame]:
    return generate(SMALL)


@pytest.fixture(scope="module")
def shop() -> tuple[pl.DataFrame, pl.DataFrame]:
    return generate(SHOP)


def test_the_same_configuration_gives_the_same_frames(small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    interactions, items = generate(SMALL)
    assert interactions.equals(small[0])
    assert items.equals(small[1])


def test_another_seed_gives_another_shop(small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    interactions, items = generate(MarketplaceConfig(users=300, items=200, partners=3, seed=8))
    assert not interactions.equals(small[0])
    assert not items.equals(small[1])


@settings(max_examples=8, deadline=None)
@given(chunk=st.integers(1, 70))
def test_the_chunk_size_changes_no_row(chunk: int) -> None:
    config = MarketplaceConfig(users=60, items=200)
    assert pl.concat(list(stream(config, chunk))).equals(generate(config)[0])


def test_people_are_the_same_in_a_bigger_shop(small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    fewer = generate(MarketplaceConfig(users=120, items=200, partners=3, seed=7))[0]
    assert small[0].head(len(fewer)).equals(fewer)


def test_columns_and_types_are_those_of_the_shared_form(small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    interactions, items = small
    assert interactions.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "event": pl.String,
        "rating": pl.Float64,
        "review": pl.String,
        "partner": pl.Int32,
    }
    assert items.columns == ["item_id", "title", "text", "categories"]
    assert items.schema == dict.fromkeys(items.columns, pl.String)
    assert len(items) == SMALL.items
    assert items["item_id"].to_list() == sorted(set(items["item_id"]))
    assert items["title"].n_unique() == SMALL.items
    assert items.select(pl.all().str.len_chars().min()).row(0) > (0, 0, 0, 0)
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert set(interactions["event"]) == {"view", "cart", "purchase", "rating", "review"} < set(EVENT_KINDS)
    assert interactions["partner"].unique().sort().to_list() == [0, 1, 2]
    assert interactions.drop("rating").null_count().sum_horizontal().item() == 0


def test_ratings_and_texts_are_where_they_belong(small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    rated = pl.col("event").is_in(["rating", "review"])
    interactions = small[0]
    assert interactions.filter(rated != pl.col("rating").is_not_null()).is_empty()
    assert interactions.filter((pl.col("event") == "review") != (pl.col("review") != "")).is_empty()
    assert set(interactions["rating"].drop_nulls()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_people_are_as_active_as_in_a_shop(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    people = shop[0].group_by("user_id").agg(pl.len().alias("n"), pl.col("partner").n_unique().alias("p"))
    assert len(people) == SHOP.users
    assert people["n"].min() == 5
    assert 12 <= np.median(people["n"]) <= 20
    assert 100 < np.max(people["n"].to_numpy()) <= MAX_EVENTS
    assert people["p"].max() == 2
    assert 0.06 < np.mean(people["p"].to_numpy() == 2) < 0.13  # some of the 12 % visit only one of theirs


def test_time_runs_forward_for_each_person(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    interactions = shop[0]
    assert interactions.equals(interactions.sort("user_id", "timestamp", maintain_order=True))
    span = np.ptp(interactions["timestamp"].to_numpy()) / 86_400
    assert 0.97 * SHOP.days < span <= SHOP.days + 1
    assert not interactions.select("user_id", "item_id", "timestamp", "event").is_duplicated().any()


def test_buyers_have_looked_before(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    looks = shop[0].filter(pl.col("event") == "view").select("user_id", "item_id").unique()
    bought = shop[0].filter(pl.col("event") == "purchase")
    assert 0.7 < len(bought.join(looks, on=["user_id", "item_id"], how="semi")) / len(bought) < 1.0


def test_partners_differ_in_what_is_sold(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    sold = shop[0].join(shop[1], on="item_id").with_columns(pl.col("categories").str.split(" > ").list.first())
    counts = sold.pivot("partner", index="categories", values="timestamp", aggregate_function="len")
    shares = counts.drop("categories").fill_null(0).to_numpy().astype(float)
    shares /= shares.sum(axis=0)
    assert max(np.abs(shares[:, a] - shares[:, b]).sum() for a in range(4) for b in range(a)) > 0.3


def test_there_are_new_people_and_new_items_near_the_end(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    late = shop[0]["timestamp"].max() - 0.08 * SHOP.days * 86_400  # type: ignore[operator]
    firsts = shop[0].group_by("user_id").agg(pl.col("timestamp").min())
    assert 0.04 < (firsts["timestamp"] > late).mean() < 0.2  # type: ignore[operator]
    goods = draw_goods(SHOP.items, SHOP.seed)
    assert 0.05 < np.mean(goods.release > 0.97) < 0.15
    first = shop[0].group_by("item_id").agg(pl.col("timestamp").min())
    for item, when in first.iter_rows():
        released = OPENED + goods.release[int(item.removeprefix("item-"))] * SHOP.days * 86_400
        assert when > released - 900  # minutes earlier at most: a look at the other partner first


def test_interests_drift_from_one_archetype_to_another() -> None:
    crowd = gather(range(500), 0, draw_partners(3, 0), 548, 0.1)
    assert (crowd.tastes.archetypes[:, 0] != crowd.tastes.archetypes[:, 1]).all()
    interest, fraction = crowd.visits.interest, crowd.visits.fraction
    assert interest[fraction > 0.9].mean() > interest[fraction < 0.5].mean() + 0.3


def test_reviews_are_varied_and_agree_with_the_rating(shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    reviews = shop[0].filter(pl.col("event") == "review")
    words = reviews["review"].str.split(" ").list.len()
    assert 15 <= np.median(words) <= 25
    assert reviews["review"].n_unique() > 0.9 * len(reviews)
    assert not reviews["review"].str.contains(r"[{}]|  |\.\.").any()
    assert not shop[1]["text"].str.contains(r"[{}]|  |\.\.|\b[Aa] [aeiou]\w+ (?:and|for)\b").any()
    praise, blame = (
        "love|pleased|happ|five stars|best|superb",
        "waste|avoid|sent it back|not recommend|disappoint",
    )
    good = reviews.filter(pl.col("rating") >= 4)["review"].str.to_lowercase()
    bad = reviews.filter(pl.col("rating") <= 2)["review"].str.to_lowercase()
    assert good.str.contains(praise).mean() > 0.25  # type: ignore[operator]
    assert good.str.contains(blame).mean() < 0.05  # type: ignore[operator]
    assert bad.str.contains(blame).mean() > 0.3  # type: ignore[operator]


def test_the_vocabulary_is_consistent() -> None:
    nouns = [kind.noun for kind in KINDS]
    assert len(set(nouns)) == len(nouns)
    assert PLAIN.issubset(nouns)
    assert all(then in nouns and then != kind.noun for kind in KINDS for then in kind.then)
    assert all(len(kind.features) >= 3 and kind.materials for kind in KINDS)
    for category in CATEGORIES:
        assert max(category.styles) < len(STYLES)
        assert max(category.audiences) < len(AUDIENCES)
        assert max(category.themes) < len(THEMES)
    assert all(abs(sum(a.categories.values()) - 1) < 1e-9 and abs(sum(a.tiers) - 1) < 1e-9 for a in ARCHETYPES)


def test_what_is_written_is_what_is_generated(tmp_path: Path, small: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    write(SMALL, tmp_path / "shop")
    assert sorted(p.name for p in (tmp_path / "shop").iterdir()) == ["interactions.parquet", "items.parquet"]
    assert pl.read_parquet(tmp_path / "shop" / "interactions.parquet").equals(small[0])
    assert pl.read_parquet(tmp_path / "shop" / "items.parquet").equals(small[1])


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: MarketplaceConfig) -> pl.DataFrame:
        raise OSError("disk full")

    monkeypatch.setattr("simulations.marketplace.catalogue", fail)
    with pytest.raises(OSError, match="disk full"):
        write(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("users", 0), ("items", 100), ("partners", 0), ("seed", -1), ("days", 10), ("shared_users", 1.5)],
)
def test_a_configuration_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"Expected {field}"):
        MarketplaceConfig(**{field: value})  # type: ignore[arg-type]


def test_a_chunk_holds_at_least_one_person() -> None:
    with pytest.raises(ConfigError, match="chunk_users"):
        next(stream(SMALL, 0))


def test_one_person_and_one_partner_are_enough() -> None:
    interactions, _ = generate(MarketplaceConfig(users=1, items=200, partners=1))
    assert interactions["user_id"].n_unique() == 1
    assert interactions["partner"].to_list() == [0] * len(interactions)


# --- is there something to learn? Seeded; the margins are several standard errors wide ----------------


class Task:
    """Leave-last-out on distinct items: `seen` (users, items) 0/1, `order` rows by visit, `target` rows."""

    def __init__(self, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
        rows = {item: row for row, item in enumerate(items["item_id"])}
        self.order: list[NDArray[np.int64]] = []
        self.reviews: list[str] = []
        targets = []
        for _, history in interactions.group_by("user_id", maintain_order=True):
            sequence = np.array([rows[item] for item in history["item_id"]])
            keep = np.flatnonzero(sequence != sequence[-1])
            texts = [text for text, kept in zip(history["review"], sequence != sequence[-1], strict=True) if kept]
            targets.append(sequence[-1])
            self.order.append(sequence[keep])
            self.reviews.append(next((text for text in reversed(texts) if text), ""))
        self.target = np.array(targets)
        self.seen = np.zeros((len(targets), len(items)))
        for user, sequence in enumerate(self.order):
            self.seen[user, sequence] = 1.0
        self.popularity = self.seen.sum(axis=0)

    def gains(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """NDCG@10 of each user, ties counted half."""
        scores = np.where(self.seen > 0, -np.inf, scores)
        own = scores[np.arange(len(scores)), self.target][:, None]
        rank = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
        return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


@pytest.fixture(scope="module")
def task(shop: tuple[pl.DataFrame, pl.DataFrame]) -> Task:
    return Task(*shop)


def cosine_scores(task: Task, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.sqrt(np.maximum(task.popularity, 1.0))
    similarity = task.seen.T @ task.seen / norm[:, None] / norm
    np.fill_diagonal(similarity, 0.0)
    return np.asarray(weights @ similarity)


def recent(task: Task, decay: float) -> NDArray[np.float64]:
    weights = np.zeros_like(task.seen)
    for user, sequence in enumerate(task.order):
        weights[user, sequence] = decay ** np.arange(len(sequence))[::-1]
    return weights


def words_of(texts: list[str], fitted_on: list[str]) -> NDArray[np.float64]:
    """TF-IDF rows of unit length: a reader far weaker than BERT, but one that needs no weights."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit(fitted_on)
    return np.asarray(vectorizer.transform(texts).toarray())


def test_item_cosine_is_far_above_popularity_and_ease_about_as_good(task: Task) -> None:
    popularity = task.gains(np.tile(task.popularity, (len(task.target), 1))).mean()
    cosine = task.gains(cosine_scores(task, task.seen)).mean()
    inverse = np.linalg.inv(task.seen.T @ task.seen + 100.0 * np.eye(len(task.popularity)))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0.0)
    assert 0.025 < popularity < 0.07
    assert 1.5 * popularity < cosine < 0.25
    assert 0.9 * cosine < task.gains(task.seen @ ease).mean() < 1.6 * cosine


def test_recent_items_tell_more_than_old_ones(task: Task) -> None:
    gain = task.gains(cosine_scores(task, recent(task, 0.8))) - task.gains(cosine_scores(task, task.seen))
    assert gain.mean() > 0.01


def test_the_catalogue_has_a_long_tail(task: Task) -> None:
    counts = np.sort(task.popularity)[::-1]
    assert counts[: len(counts) // 5].sum() > 0.4 * counts.sum()
    assert np.sum(counts <= 5) > 15


def test_cold_items_can_be_ranked_from_their_text(task: Task, shop: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    texts = [f"{title}. {text}" for title, text in shop[1].select("title", "text").iter_rows()]
    vectors = words_of(texts, texts)
    scores = task.seen @ vectors @ vectors.T / task.seen.sum(axis=1, keepdims=True)
    cold = np.flatnonzero(task.popularity <= 8)
    users = np.flatnonzero(np.isin(task.target, cold))
    assert len(users) > 25
    places = [np.mean(scores[user, task.target[user]] > scores[user, cold]) for user in users]
    assert np.mean(places) * len(cold) / (len(cold) - 1) > 0.6


def test_a_ranker_that_reads_the_last_review_beats_one_that_does_not(
    task: Task, shop: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    texts = [f"{title}. {text}" for title, text in shop[1].select("title", "text").iter_rows()]
    scores = cosine_scores(task, recent(task, 0.8))
    scores = (scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9)
    read = words_of(task.reviews, texts) @ words_of(texts, texts).T
    read = (read - read.mean(axis=1, keepdims=True)) / (read.std(axis=1, keepdims=True) + 1e-9)
    gain = task.gains(scores + 0.5 * read) - task.gains(scores)
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))
