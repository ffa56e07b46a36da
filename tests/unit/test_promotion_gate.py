"""The promotion gate: a release that leaps an item into many users' lists is not served before an operator pins it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from export_setting import Shop, release_to, shop_of, tiny_bert
from signed_releases import KEY, signed, write
from typer.testing import CliRunner

from client.data.cleaning import clean
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.ranking.held_releases import held_of
from client.ranking.personal import own_prior
from client.ranking.promotion_gate import FACTOR, FIRST_SLACK, LEAST_USERS, SLACK, PromotionGate, leaps, met
from client.ranking.releases import ReleaseShelf
from client.ranking.store import EventStore
from client.release_commands import releases_app
from client.service.monitor import Monitor
from client.service.service import Service, Source
from client.service.stand import StandMaker
from shared.config import PriorConfig
from shared.errors import IntegrityError
from shared.model.prior import CollaborativePrior
from simulations.marketplace import MarketplaceConfig, generate

TARGET = 17


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """160 people, 136 items, a tiny BERT."""
    root = tmp_path_factory.mktemp("gate")
    interactions, items = generate(MarketplaceConfig(users=160, items=136, partners=1, seed=6))
    data = RawData("shop", interactions.drop("partner"), items)
    return shop_of(data, str(tiny_bert(root / "bert")), root)


@pytest.fixture(scope="module")
def honest(shop: Shop) -> CollaborativePrior:
    return own_prior(shop.histories, len(shop.catalogue), PriorConfig())


@pytest.fixture(scope="module")
def files(shop: Shop, honest: CollaborativePrior) -> dict[str, dict[str, bytes]]:
    """Three releases' files: honest, honest with a little noise, and one in which everything leads to the target."""
    assert honest.item_to_item is not None
    rng = np.random.default_rng(5)
    weights = honest.item_to_item
    noised = weights + rng.normal(scale=0.1 * weights.std(), size=weights.shape).astype(np.float32)
    led = weights.copy()
    led[:, TARGET] = weights.max()
    made = {"honest": honest, "again": replace(honest, item_to_item=noised), "led": replace(honest, item_to_item=led)}
    for name, prior in made.items():
        release_to(shop, shop.root / name, "residuals", prior, spread=0.02)
    return {name: {file.name: file.read_bytes() for file in (shop.root / name).iterdir()} for name in made}


Shelve = Callable[[int, str], None]
Start = Callable[[], Service]


@pytest.fixture
def shelve(files: dict[str, dict[str, bytes]], tmp_path: Path) -> Shelve:
    def put(version: int, name: str) -> None:
        folder = write(tmp_path / "copying" / str(version), signed(files[name], KEY, version=version))
        there = tmp_path / "releases" / f"v{version}"
        there.parent.mkdir(exist_ok=True)
        folder.rename(there)

    return put


@pytest.fixture
def log() -> StringIO:
    return StringIO()


@pytest.fixture
def start(shop: Shop, tmp_path: Path, log: StringIO) -> Iterator[Start]:
    """Start the service anew, as a process would; it only looks when it is told to."""
    begun: list[Service] = []

    def begin() -> Service:
        cleaned = clean(shop.data)[0]
        store = EventStore.open(f"sqlite:///{tmp_path / 'events.sqlite'}", PseudonymKey.load_or_create(tmp_path / "k"))
        store.import_histories(cleaned.interactions)
        maker = StandMaker(shop.catalogue, shop.catalogue, tmp_path, shop.root / "texts.sqlite", "cpu")
        shelf = ReleaseShelf(tmp_path / "releases", KEY.public, tmp_path / "releases.json")
        source = Source(shelf=shelf)
        begun.append(Service(maker, source, store, Monitor(log), every_s=3600.0, gate=PromotionGate(held_of(tmp_path))))
        return begun[-1]

    yield begin
    for service in begun:
        service.close()


def served(service: Service) -> int:
    return service.desk.stand.info.version


def told(log: StringIO) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if "held" in line.values()]


# --- the bound ------------------------------------------------------------------------------------


def test_an_item_leaps_where_it_is_shown_to_more_than_twice_as_many_users_and_a_slack() -> None:
    before, at_home = np.array([0.2, 0.0, 0.01]), np.array([0.0, 0.3, 0.02])
    allowed = FACTOR * np.array([0.2, 0.3, 0.02]) + SLACK
    assert not leaps(allowed, before, at_home)
    beyond = leaps(allowed + np.array([0.001, 0.0, 0.2]), before, at_home)
    assert [leap.item for leap in beyond] == [2, 0], "the worst first"
    assert beyond[0].allowed == pytest.approx(allowed[2]) and beyond[0].share == pytest.approx(allowed[2] + 0.2)


def test_without_a_release_before_it_an_item_is_held_against_those_who_have_met_it() -> None:
    at_home = np.array([0.0, 0.3])
    assert not leaps(FACTOR * at_home + FIRST_SLACK, None, at_home)
    assert [leap.item for leap in leaps(np.array([FIRST_SLACK + 0.01, 0.0]), None, at_home)] == [0]


def test_who_has_met_an_item_is_counted_once(histories_of: Callable[..., object]) -> None:
    histories = histories_of([[0, 0, 1], [1], [2, 0]])
    np.testing.assert_allclose(met(histories, 4), [2 / 3, 2 / 3, 1 / 3, 0])  # type: ignore[arg-type]


# --- under a real service -------------------------------------------------------------------------


def test_a_release_that_leads_everybody_to_one_item_is_held_back_and_the_old_one_goes_on(
    shop: Shop, start: Start, shelve: Shelve, log: StringIO, tmp_path: Path
) -> None:
    shelve(1, "honest")
    service = start()
    shelve(2, "led")
    assert not service.look() and served(service) == 1
    (line,) = told(log)
    assert line["version"] == 2 and shop.catalogue.item_ids[TARGET] not in log.getvalue(), "logs are read by others"
    assert not service.look() and len(told(log)) == 1, "nor when it is looked at again"
    options = ["--releases", str(tmp_path / "releases"), "--trust", KEY.public.text, "--state", str(tmp_path)]
    listed = CliRunner().invoke(releases_app, ["list", *options]).stdout
    assert "held back" in listed and shop.catalogue.item_ids[TARGET] in listed
    shelve(3, "again")
    assert service.look() and served(service) == 3, "a better one is not kept waiting"


def test_honest_releases_pass(shop: Shop, start: Start, shelve: Shelve, log: StringIO) -> None:
    shelve(1, "honest")
    service = start()
    shelve(2, "again")
    assert service.look() and served(service) == 2 and not told(log)
    some = service.store.sample(50, shop.catalogue)
    assert len(some) == 50 and some.users == service.store.sample(50, shop.catalogue).users
    assert set(some.users) <= set(service.store.sample(10_000, shop.catalogue).users)


def test_a_restart_does_not_let_through_what_was_held_back(start: Start, shelve: Shelve, log: StringIO) -> None:
    shelve(1, "honest")
    start().close()
    shelve(2, "led")
    assert served(start()) == 1 and len(told(log)) == 1


def test_what_an_operator_pins_is_served_and_stays_so(start: Start, shelve: Shelve, tmp_path: Path) -> None:
    shelve(1, "honest")
    start().close()
    shelve(2, "led")
    shelf = ReleaseShelf(tmp_path / "releases", KEY.public, tmp_path / "releases.json")
    shelf.pin(2)
    assert served(start()) == 2
    shelf.unpin()
    assert served(start()) == 2, "it was served before"


def test_nothing_is_served_where_the_first_release_is_held_back(start: Start, shelve: Shelve, log: StringIO) -> None:
    shelve(1, "led")
    with pytest.raises(IntegrityError, match="Expected a release"):
        start()
    assert len(told(log)) == 1


def test_what_was_held_back_is_not_guessed(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"a": 1}', "\0"):
        (tmp_path / "held.json").write_text(text)
        with pytest.raises(IntegrityError, match="held back, by fingerprint"):
            held_of(tmp_path).read()


def test_too_few_users_are_not_judged(start: Start, shelve: Shelve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.service.service.USERS", LEAST_USERS - 1)
    shelve(1, "led")
    assert served(start()) == 1
