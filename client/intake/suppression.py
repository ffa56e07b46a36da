"""Users who were erased stay known by a keyed hash alone, so that no later import brings them back."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from client.data.cleaning import CONTROL
from client.data.pseudonyms import PseudonymKey
from client.premises import Premises

KEY_FILE = "pseudonym.key"


def key_of(premises: Premises) -> PseudonymKey:
    """The partner's pseudonym key, the one that `client.learner.Learner` uses."""
    if premises.simulated:
        return PseudonymKey.derive(0)
    return PseudonymKey.load_or_create(premises.folder / KEY_FILE)


def mark_of(user_id: str, key: PseudonymKey) -> str:
    """HMAC-SHA256 of the user's id under the partner's pseudonym key, cut to 128 bits; not the user's pseudonym."""
    return key.pseudonym(f"\0suppressed {user_id}")  # no user's id begins so


def tidied(column: str) -> pl.Expr:
    """Ids as cleaning leaves them."""
    return pl.col(column).fill_null("").str.replace_all(CONTROL, " ").str.strip_chars()


def without(frame: pl.DataFrame, marks: Collection[str], key: PseudonymKey) -> pl.DataFrame:
    """The rows of users who were not erased.

    Parameters
    ----------
    frame : polars.DataFrame
        Column ``user_id``, tidy or not.
    """
    if not marks or frame.is_empty():
        return frame
    users = frame.select(tidied("user_id").unique()).to_series().to_list()
    gone = [user for user in users if mark_of(user, key) in marks]
    return frame.filter(~tidied("user_id").is_in(gone)) if gone else frame
