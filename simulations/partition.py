"""Share the users of one data set among partners, as a federation would have found them.

A user goes to one partner whole: the user is the unit of privacy. Who goes where follows from user ids,
contents and the seed; the order of the rows leaves no trace.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import ConfigError, SchemaError

Method = Literal["iid", "dirichlet", "taste", "given"]

SEPARATORS = r"[|,;]"
"""Between the names of one item's categories."""

PROFILE_WORDS = 512
"""Size of a taste profile: the most frequent categories or words."""

KMEANS_STARTS = 4


def partition(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    *,
    partners: int,
    method: Method,
    seed: int,
    alpha: float = 0.5,
) -> pl.DataFrame:
    """Give every interaction the number of its partner.

    Parameters
    ----------
    interactions : polars.DataFrame
        Columns user_id, item_id; for "given" also ``partner``.
    items : polars.DataFrame
        Columns item_id, title, text, categories.
    partners : int
    method : {"iid", "dirichlet", "taste", "given"}
        - iid: by a keyed hash of the user id alone; a user keeps its partner whoever else is there.
        - dirichlet: label skew. A user's label is the category whose share of the user's events most exceeds
          its share of everybody's; each label is spread over the partners by a draw of Dirichlet(alpha).
        - taste: k-means over tf-idf profiles of the users' items, then partners of equal size.
        - given: the frame's own ``partner`` column, numbered by sorted value; here a user may be at several
          partners.
    seed : int
    alpha : float, default 0.5
        Small: partners differ much. Only for dirichlet.

    Returns
    -------
    polars.DataFrame
        The rows of `interactions` in their order, with an int32 column ``partner`` in [0, partners).

    Raises
    ------
    ConfigError
        If an argument is out of range, or a partner would have no user.
    SchemaError
        If "given" finds no ``partner`` column, or one with gaps.

    Notes
    -----
    Source of the label skew: T.-M. H. Hsu, H. Qi and M. Brown, "Measuring the effects of non-identical data
    distribution for federated visual classification", 2019, turned round: shares of partners per label.
    """
    if partners < 1:
        raise ConfigError(f"Expected partners of at least 1, got partners={partners}.")
    if method == "given":
        return _given(interactions, partners)
    users = interactions.get_column("user_id").unique().sort()
    if method == "iid":
        assigned = _below(_uniforms(users, seed, "iid"), partners)
    elif method == "dirichlet":
        assigned = _dirichlet(users, _labels(users, interactions, items), partners, seed, alpha)
    elif method == "taste":
        assigned = _taste(_profiles(users, interactions, items, partners), partners, seed)
    else:
        raise ConfigError(f"Expected method=iid, dirichlet, taste or given, got method={method}.")
    _check_everyone_has_users(assigned, partners)
    of_user = pl.DataFrame({"user_id": users, "partner": assigned.astype(np.int32)})
    bare = interactions.drop("partner", strict=False)
    return bare.join(of_user, on="user_id", how="left", maintain_order="left")


def _given(interactions: pl.DataFrame, partners: int) -> pl.DataFrame:
    if "partner" not in interactions.columns or interactions.get_column("partner").null_count():
        raise SchemaError("Expected a value in the column partner of every interaction for method=given.")
    numbers = interactions.get_column("partner").rank("dense").cast(pl.Int32) - 1
    _check_everyone_has_users(numbers.to_numpy(), partners)
    return interactions.with_columns(numbers.alias("partner"))


def _check_everyone_has_users(assigned: NDArray[np.integer], partners: int) -> None:
    found = len(np.unique(assigned))
    if found != partners:
        raise ConfigError(
            f"Expected users at all of partners={partners}, got users at {found}: "
            "take fewer partners, another seed, or for dirichlet a larger alpha."
        )


def _uniforms(users: pl.Series, seed: int, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each user, from its id, the seed and the purpose alone; shape ``(users,)``."""
    keyed = hashlib.blake2b(key=f"{seed}|{purpose}".encode(), digest_size=8)
    digests = bytearray()
    for user in users.cast(pl.String).to_list():
        one = keyed.copy()
        one.update(user.encode())
        digests += one.digest()
    whole = np.frombuffer(bytes(digests), dtype=">u8")
    return (whole >> np.uint64(11)).astype(np.float64) / 2.0**53  # 53 bits: exact, and never 1


def _below(uniforms: NDArray[np.float64], partners: int) -> NDArray[np.int64]:
    return (uniforms * partners).astype(np.int64)


# --- label skew -----------------------------------------------------------------------------------


def _dirichlet(users: pl.Series, labels: list[str], partners: int, seed: int, alpha: float) -> NDArray[np.int64]:
    if not 0 < alpha < np.inf:
        raise ConfigError(f"Expected alpha above 0, got alpha={alpha}.")
    uniforms = _uniforms(users, seed, "dirichlet")
    assigned = np.zeros(len(users), dtype=np.int64)
    for label in sorted(set(labels)):
        # A generator for each label: a new label does not move the users of the others.
        digest = hashlib.blake2b(label.encode(), key=str(seed).encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        edges = np.cumsum(rng.dirichlet(np.full(partners, alpha)))[:-1]
        of_label = np.array([one == label for one in labels])
        assigned[of_label] = np.searchsorted(edges, uniforms[of_label], side="right")
    return assigned


def _labels(users: pl.Series, interactions: pl.DataFrame, items: pl.DataFrame) -> list[str]:
    """Label of each user: its category of largest excess over everybody's share; empty without categories.

    The plain most frequent category would give nearly all users of a film site the label "Drama".
    """
    pairs = interactions.select("user_id", "item_id").join(_categories(items), on="item_id", how="inner")
    everybody = pairs.group_by("category").agg((pl.len() / pairs.height).alias("usual"))
    dominant = (
        pairs.group_by("user_id", "category")
        .len("n")
        .with_columns(share=pl.col("n") / pl.col("n").sum().over("user_id"))
        .join(everybody, on="category")
        .sort((pl.col("share") - pl.col("usual")).round(9), "category", descending=[True, False])
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("category").first())
    )
    found = users.to_frame("user_id").join(dominant, on="user_id", how="left", maintain_order="left")
    return found.get_column("category").fill_null("").to_list()


def _categories(items: pl.DataFrame) -> pl.DataFrame:
    """One row for each item and category, columns item_id and category."""
    named = pl.col("categories").fill_null("").str.replace_all(SEPARATORS, "|").str.split("|")
    return (
        items.select("item_id", category=named)
        .explode("category", empty_as_null=True)
        .with_columns(pl.col("category").str.strip_chars())
        .filter(pl.col("category") != "")
        .unique()
    )


# --- taste ----------------------------------------------------------------------------------------


def _taste(profiles: NDArray[np.float32], partners: int, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):  # threads would add up a cluster in any order
        means = KMeans(partners, n_init=KMEANS_STARTS, random_state=seed % 2**32)
        distances = means.fit(profiles).transform(profiles)  # (users, partners)
    return _balanced(distances)


def _profiles(users: pl.Series, interactions: pl.DataFrame, items: pl.DataFrame, partners: int) -> NDArray[np.float32]:
    """What each user's items are about: tf-idf of their categories, of norm 1; shape ``(users, words)``.

    Where categories cannot tell as many tastes apart as there are partners, the words of titles and texts do.
    """
    seen = interactions.select("user_id", "item_id").join(users.to_frame("user_id").with_row_index("row"), on="user_id")
    for words in (_categories(items), _title_words(items)):
        profiles = _tf_idf(seen, words, len(users))
        if len(np.unique(profiles, axis=0)) >= partners:
            return profiles
    raise ConfigError(f"Expected users of at least partners={partners} different tastes: take fewer partners.")


def _tf_idf(seen: pl.DataFrame, words: pl.DataFrame, users: int) -> NDArray[np.float32]:
    """tf-idf over the words (columns item_id, category) of the items seen (columns row, item_id)."""
    from sklearn.feature_extraction.text import TfidfTransformer

    frequent = words.group_by("category").len().sort("len", "category", descending=[True, False])
    columns = frequent.head(PROFILE_WORDS).select("category").with_row_index("column")
    counted = seen.join(words.join(columns, on="category"), on="item_id").group_by("row", "column").agg(n=pl.len())
    counts = np.zeros((users, max(columns.height, 1)))
    counts[counted.get_column("row").to_numpy(), counted.get_column("column").to_numpy()] = counted.get_column("n")
    profiles: NDArray[np.float32] = TfidfTransformer().fit_transform(counts).toarray().astype(np.float32)
    return profiles


def _title_words(items: pl.DataFrame) -> pl.DataFrame:
    text = pl.concat_str(pl.col("title", "text").fill_null(""), separator=" ").str.to_lowercase()
    return (
        items.select("item_id", category=text.str.extract_all(r"\w{3,}"))
        .explode("category", empty_as_null=True)
        .drop_nulls()
        .unique()
    )


def _balanced(distances: NDArray[np.floating]) -> NDArray[np.int64]:
    """Assign each user to a near partner so that sizes differ by one at most; shape ``(users,)``.

    Those who lose most by their second choice choose first.
    """
    users, partners = distances.shape
    room = np.full(partners, users // partners)
    room[: users % partners] += 1
    preferences = np.argsort(distances, axis=1, kind="stable")
    near = np.sort(distances, axis=1)[:, : min(2, partners)]
    order = np.argsort(near[:, 0] - near[:, -1], kind="stable")
    assigned = np.zeros(users, dtype=np.int64)
    for user in order:
        choice = next(p for p in preferences[user] if room[p])
        room[choice] -= 1
        assigned[user] = choice
    return assigned
