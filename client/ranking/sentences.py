"""An explanation as one sentence, which says no more than was measured.

At most two things are named, and only such as the score hangs on. Where it hangs on no one thing, the sentence says
what there is instead: the item's popularity, several things that each lift the item by themselves, or all of them.
"""

from __future__ import annotations

from client.ranking.explain import EventReason, Explanation, WordReason
from shared.schema import Catalogue

STANDS_OUT = 0.15
"""Least effect of what is named, as a part of all that lifts the item above the catalogue's mean."""
BESIDE = 0.5
"""Least effect of the second thing named, as a part of the first's."""
EACH = 0.5
"""Least that each of several things brings alone, as a part of what the whole history does."""
MOSTLY, PARTLY = 0.5, 0.25
"""Least effect of a word that is named, as a part of the sum of the effects of the things that are."""
DONE = {
    "purchase": "bought",
    "review": "reviewed",
    "rating": "rated",
    "checkin": "visited",
    "tip": "left a tip for",
    "cart": "put in the cart",
    "view": "viewed",
}
"""What the user did, the most telling first; other kinds of event are not put in words."""


def sentence(explanation: Explanation, catalogue: Catalogue) -> str:
    """Why the item is shown, for the user whom it is shown to: it may quote the user's own words.

    Parameters
    ----------
    explanation : Explanation
    catalogue : Catalogue
        Titles; an item without one goes by its id.
    """
    named = strongest(explanation)
    if named:
        because = f"because of {_all_of(named, catalogue)}"
        popular = "Popular, and " if explanation.popularity > named[0].effect else ""
        return _capital(f"{popular}{because}{_word_of(explanation, named)}.")
    asked = [reason for reason in explanation.words if reason.source == "query" and reason.effect > 0]
    if asked:
        words = [reason for reason in asked[:2] if reason.effect >= BESIDE * asked[0].effect]
        return f"Fits {' and '.join(_quoted(reason) for reason in words)} in your words."
    history = explanation.prior_effect + explanation.model_effect
    if explanation.popularity > max(history, 0.0):
        return "Popular; nothing that you met stands out as the reason."
    several = _several(explanation, history)
    if several:
        return f"Goes with several things that you met, such as {_all_of(several, catalogue)}."
    if explanation.reasons and history > 0:
        return "Fits all that you met; no one thing stands out as the reason."
    return "No reason stands out."


def strongest(explanation: Explanation) -> tuple[EventReason, ...]:
    """The one or two things that a sentence may name; none where none stands out."""
    lift = max(explanation.popularity, 0.0) + max(explanation.prior_effect + explanation.model_effect, 0.0)
    first = next(iter(explanation.reasons), None)
    if first is None or first.effect <= 0 or first.effect < STANDS_OUT * lift:
        return ()
    return tuple(reason for reason in explanation.reasons[:2] if reason.effect >= BESIDE * first.effect)


def _several(explanation: Explanation, history: float) -> tuple[EventReason, ...]:
    """Two things that each bring, alone, half of what the whole history does; none where there are no two."""
    bringing = [reason for reason in explanation.reasons if reason.alone >= EACH * history > 0]
    bringing.sort(key=lambda reason: -reason.alone)
    return tuple(bringing[:2]) if len(bringing) > 1 else ()


def _word_of(explanation: Explanation, named: tuple[EventReason, ...]) -> str:
    """The word that most of it hangs on, if one does."""
    items, whole = {reason.item for reason in named}, sum(reason.effect for reason in named)
    word = next((reason for reason in explanation.words if reason.item in items), None)
    if word is None or word.effect < PARTLY * whole:
        return ""
    how = "mostly" if word.effect >= MOSTLY * whole else "in part"
    where = " in your review" if word.source == "review" else ""
    return f", {how} for the word {_quoted(word)}{where}"


def _all_of(reasons: tuple[EventReason, ...], catalogue: Catalogue) -> str:
    return " and ".join(_thing(reason, catalogue) for reason in reasons)


def _thing(reason: EventReason, catalogue: Catalogue) -> str:
    if reason.item < 0:
        return "what you searched for"
    title = catalogue.titles[reason.item] or catalogue.item_ids[reason.item]
    done = next((words for kind, words in DONE.items() if kind in reason.kinds), None)
    return f"{title} ({done})" if done else title


def _quoted(word: WordReason) -> str:
    return f"\N{LEFT SINGLE QUOTATION MARK}{word.word}\N{RIGHT SINGLE QUOTATION MARK}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
