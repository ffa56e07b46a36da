"""Ranking on a partner's premises with a released adapter: the library, and ``veilrec rank``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from client.data.ingest import RawData, write
from client.ranking.rank import LocalRanker, data_of
from client.ranking.scorer import ModelScorer
from shared.adapter import load_release
from shared.errors import (
    AdapterMismatchError,
    ConfigError,
    IntegrityError,
    UnknownUserError,
    VeilrecError,
)
from simulations.cli import main

if TYPE_CHECKING:
    from conftest import Done

K = 7
Veilrec = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ranker(whole: Done, shop_data: RawData) -> LocalRanker:
    return LocalRanker.open(whole.out / "adapter", shop_data, device="cpu")


@pytest.fixture(scope="module")
def seen(shop_data: RawData) -> dict[str, set[str]]:
    """The items of each user."""
    grouped = shop_data.interactions.group_by("user_id").agg("item_id").sort("user_id")
    return {user: set(items) for user, items in grouped.iter_rows()}


@pytest.fixture(scope="module")
def titles(shop_data: RawData) -> dict[str, str]:
    """The titles of each item: where a file names an item twice, the longer one counts."""
    return dict(shop_data.items.sort("item_id", pl.col("title").str.len_chars()).select("item_id", "title").rows())


# --- by user --------------------------------------------------------------------------------------


def test_every_user_is_shown_items_that_they_have_not_seen(
    ranker: LocalRanker, seen: dict[str, set[str]], titles: dict[str, str]
) -> None:
    for user in list(seen)[:20]:
        ranked = ranker.for_user(user, K)
        assert ranked.subject == user
        assert [item.rank for item in ranked.items] == list(range(1, K + 1))
        assert len({item.item_id for item in ranked.items} - seen[user]) == K
        assert [item.score for item in ranked.items] == sorted((item.score for item in ranked.items), reverse=True)
        assert all(item.title == titles[item.item_id] and item.reason == "" for item in ranked.items)


def test_a_longer_list_begins_with_the_shorter_one(ranker: LocalRanker, seen: dict[str, set[str]]) -> None:
    user = min(seen)
    assert ranker.for_user(user, 3).items == ranker.for_user(user, 20).items[:3]


def test_all_unseen_items_and_no_others_can_be_asked_for(
    ranker: LocalRanker, seen: dict[str, set[str]], titles: dict[str, str]
) -> None:
    user = min(seen)
    ranked = ranker.for_user(user, 10**6)
    assert {item.item_id for item in ranked.items} == set(titles) - seen[user]
    assert all(np.isfinite(item.score) for item in ranked.items)


def test_users_are_shown_different_things(ranker: LocalRanker, seen: dict[str, set[str]]) -> None:
    lists = {tuple(item.item_id for item in ranker.for_user(user, K).items) for user in list(seen)[:20]}
    assert len(lists) > 10


def test_a_reason_names_something_that_the_user_met(
    ranker: LocalRanker, seen: dict[str, set[str]], titles: dict[str, str]
) -> None:
    reasons = set()
    for user in list(seen)[:5]:
        own = {titles[item] for item in seen[user]}
        explained = ranker.for_user(user, K, explain=True)
        for item in explained.items:
            assert any(title in item.reason for title in own) or "opular" in item.reason, item.reason
        reasons |= {item.reason for item in explained.items}
        plain = ranker.for_user(user, K)
        assert [item.item_id for item in explained.items] == [item.item_id for item in plain.items]
    assert len(reasons) > 3


def test_a_user_with_one_event_is_explained_by_it(whole: Done, shop_data: RawData, titles: dict[str, str]) -> None:
    last = shop_data.interactions.sort("user_id", "item_id").head(1).with_columns(user_id=pl.lit("newcomer"))
    data = RawData("shop", pl.concat([shop_data.interactions, last]), shop_data.items)
    ranked = LocalRanker.open(whole.out / "adapter", data, device="cpu").for_user("newcomer", 3, explain=True)
    title = titles[last["item_id"][0]]
    assert all(title in item.reason or "opular" in item.reason for item in ranked.items)
    assert any(title in item.reason for item in ranked.items)


def test_an_unknown_user_is_not_named_in_the_error(ranker: LocalRanker) -> None:
    with pytest.raises(UnknownUserError) as caught:
        ranker.for_user("somebody else", K)
    assert "somebody" not in str(caught.value)


# --- by query -------------------------------------------------------------------------------------


def test_a_query_finds_what_it_names(ranker: LocalRanker, titles: dict[str, str]) -> None:
    """A title as the query finds its own item near the top, for most items: chance would be 5 of 136."""
    items = sorted(titles)[::7]
    found = [any(hit.item_id == item for hit in ranker.for_query(titles[item], 5).items) for item in items]
    assert np.mean(found) > 0.8


def test_a_title_finds_its_own_item_before_what_is_popular(
    ranker: LocalRanker, titles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And would not, were popularity worth many times as much."""
    items = sorted(titles)[::5]
    first = lambda: np.mean([ranker.for_query(titles[item], 1).items[0].item_id == item for item in items])  # noqa: E731
    assert first() >= 0.9
    real = ModelScorer.query
    monkeypatch.setattr(ModelScorer, "query", lambda scorer, *asked: real(scorer, *asked, popularity=8.0))
    assert first() < 0.7


def test_a_query_ranks_the_whole_catalogue(ranker: LocalRanker, titles: dict[str, str]) -> None:
    ranked = ranker.for_query("a present for my aunt", 10**6)
    assert {item.item_id for item in ranked.items} == set(titles)
    assert ranked.subject == "a present for my aunt"
    assert all(item.title == titles[item.item_id] for item in ranked.items)


@pytest.mark.parametrize("query", ["", " ", "?", "奶酪", "x" * 5000])
def test_any_query_has_an_answer(ranker: LocalRanker, query: str) -> None:
    ranked = ranker.for_query(query, K)
    assert len(ranked.items) == K
    assert all(np.isfinite(item.score) for item in ranked.items)


# --- what is refused ------------------------------------------------------------------------------


def test_another_catalogue_is_refused(whole: Done, shop_data: RawData) -> None:
    renamed = shop_data.items.with_columns(title=pl.col("title") + "!")
    with pytest.raises(AdapterMismatchError, match="digests differ"):
        LocalRanker.open(whole.out / "adapter", RawData("shop", shop_data.interactions, renamed), device="cpu")


def test_an_adapter_that_was_changed_is_refused_before_anything_is_ranked(
    whole: Done, shop_data: RawData, tmp_path: Path
) -> None:
    for file in (whole.out / "adapter").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "behaviour.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "behaviour.safetensors").write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="behaviour"):
        LocalRanker.open(tmp_path, shop_data, device="cpu")


def test_data_are_found_by_name_by_path_or_in_the_run(
    whole: Done, shop: Path, shop_data: RawData, tmp_path: Path, veilrec_home: Path
) -> None:
    assert data_of(whole.out, str(shop)).interactions.height == shop_data.interactions.height
    write(shop_data, veilrec_home / "data" / "imported-shop")
    assert data_of(whole.out, "imported-shop").interactions.height == shop_data.interactions.height
    own = data_of(whole.out, "marketplace").interactions
    assert own.get_column("user_id").n_unique() == 90
    with pytest.raises(ConfigError, match="there is neither"):
        data_of(whole.out, "no such data")
    with pytest.raises(ConfigError, match="Expected the partners' folders"):
        data_of(tmp_path, "marketplace")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_one_json_document_and_nothing_else(
    veilrec: Veilrec, whole: Done, shop: Path, seen: dict[str, set[str]]
) -> None:
    user = min(seen)
    code, out, err = veilrec("rank", "--run", str(whole.out), "--data", str(shop), "--user", user, "-k", "4", "--json")
    ranked = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert ranked["subject"] == user
    assert [item["rank"] for item in ranked["items"]] == [1, 2, 3, 4]
    assert set(ranked["items"][0]) == {"rank", "item_id", "title", "score", "reason"}


def test_the_command_prints_titles_and_reasons_for_people(
    veilrec: Veilrec, whole: Done, shop: Path, seen: dict[str, set[str]], titles: dict[str, str]
) -> None:
    command = ("rank", "--run", str(whole.out), "--data", str(shop), "-k", "3")
    code, out, _ = veilrec(*command, "--user", min(seen), "--explain")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 6 and all(any(title in line for title in titles.values()) for line in lines[::2])
    assert all(line.startswith("     ") and line.strip().endswith(".") for line in lines[1::2])
    code, out, _ = veilrec(*command, "--query", "something warm")
    assert code == 0 and len(out.splitlines()) == 3


def test_the_command_ranks_the_same_as_the_library(
    veilrec: Veilrec, ranker: LocalRanker, whole: Done, shop: Path
) -> None:
    _, out, _ = veilrec("rank", "--run", str(whole.out), "--data", str(shop), "--query", "tea", "--json")
    assert [item["item_id"] for item in json.loads(out)["items"]] == [
        i.item_id for i in ranker.for_query("tea", 10).items
    ]


def refused(family: type[VeilrecError], ended: tuple[int, str, str]) -> str:
    """Check that a command ended as its family says it must; returns the line."""
    code, out, err = ended
    assert (code, out) == (family.exit_code, "")
    assert err.count("\n") == 1 and err.startswith(f"veilrec: {family.__name__}: ")
    return err


def test_the_command_ends_with_the_exit_code_of_the_family(
    veilrec: Veilrec, whole: Done, shop: Path, tmp_path: Path
) -> None:
    def rank(*more: str, run: Path = whole.out, data: str = str(shop)) -> tuple[int, str, str]:
        return veilrec("rank", "--run", str(run), "--data", data, *more)

    line = refused(UnknownUserError, rank("--user", "somebody else"))
    assert "somebody" not in line
    refused(ConfigError, rank("--user", "a", "--query", "b"))
    refused(ConfigError, rank())
    refused(ConfigError, rank("--query", "tea", data="no such data"))
    refused(ConfigError, rank("--query", "tea", "--device", "abacus"))
    refused(IntegrityError, rank("--query", "tea", run=tmp_path))


def test_a_traceback_is_shown_only_on_request(veilrec: Veilrec, whole: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    command: list[Any] = ["rank", "--run", str(whole.out), "--data", "no such data", "--query", "tea"]
    monkeypatch.setattr("sys.argv", ["veilrec", "--debug", *command])
    with pytest.raises(ConfigError):
        main()
    assert "Traceback" not in veilrec(*command)[2]


def test_the_fingerprint_of_what_ranks_is_that_of_the_run(whole: Done) -> None:
    assert load_release(whole.out / "adapter").fingerprint == whole.document["model"]["adapter_fingerprint"]
