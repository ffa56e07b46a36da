"""MovieLens folders as GroupLens publishes them: ml-100k, ml-1m/ml-10m, and ml-latest, ml-20m and later.

Genres are both the categories and the text of a film; the tags that a user gave to a film are that user's
review.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from client.data.formats.columns import seconds, to_interactions
from client.data.formats.files import delimited_table

RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
)
NO_GENRE = "(no genres listed)"

Frames = tuple[pl.DataFrame, pl.DataFrame]


def read_100k(folder: Path) -> Frames:
    """``u.data`` (tabs) and ``u.item`` (bars, Latin-1, one 0/1 column a genre)."""
    interactions = to_interactions(delimited_table(folder / "u.data", "\t", names=RATING_COLUMNS, quoted=False))
    columns = ["item_id", "title", "released", "video", "url", *GENRES_100K]
    table = delimited_table(folder / "u.item", "|", names=columns, encoding="latin-1", quoted=False)
    marked = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K if genre != "unknown"]
    genres = pl.concat_list(marked).list.drop_nulls().list.join(", ")
    return interactions, _films(table.frame, genres)


def read_dat(folder: Path) -> Frames:
    """``ratings.dat`` and ``movies.dat`` (columns separated by ``::``, Latin-1)."""
    ratings = delimited_table(folder / "ratings.dat", "::", names=RATING_COLUMNS, quoted=False)
    columns = ["item_id", "title", "genres"]
    films = delimited_table(folder / "movies.dat", "::", names=columns, encoding="latin-1", quoted=False)
    return to_interactions(ratings), _films(films.frame, _listed())


def read_csv(folder: Path) -> Frames:
    """``ratings.csv`` and ``movies.csv``, with ``tags.csv`` where it is there."""
    interactions = to_interactions(delimited_table(folder / "ratings.csv", ","))
    films = delimited_table(folder / "movies.csv", ",")
    films.require("movieId", "title", "genres")
    if (folder / "tags.csv").exists():
        interactions = _with_tags(interactions, folder / "tags.csv")
    return interactions, _films(films.frame.rename({"movieId": "item_id"}), _listed())


def _films(frame: pl.DataFrame, genres: pl.Expr) -> pl.DataFrame:
    return frame.select(
        pl.col("item_id", "title").fill_null(""), text=genres.fill_null(""), categories=genres.fill_null("")
    )


def _listed() -> pl.Expr:
    return pl.col("genres").replace(NO_GENRE, "").str.replace_all("|", ", ", literal=True)


def _with_tags(interactions: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Join a user's tags of a film, in the order of their time, to that user's rating of it."""
    table = delimited_table(path, ",")
    table.require("userId", "movieId", "tag", "timestamp")
    tags = (
        table.frame.select(user_id="userId", item_id="movieId", tag="tag", at=seconds(table, "timestamp"))
        .drop_nulls()
        .sort("user_id", "item_id", "at", "tag")
        .group_by("user_id", "item_id")
        .agg(pl.col("tag").str.join(", "))
    )
    joined = interactions.join(tags, on=["user_id", "item_id"], how="left", maintain_order="left")
    return joined.with_columns(review=pl.col("tag").fill_null("")).drop("tag")
