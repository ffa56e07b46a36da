"""Who is erased is gone from data, rejects, caches, store and training, stays out, and nobody is named on the way."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from crashing import dies_at, killed_at
from filelock import FileLock
from intake_setting import NOW, Shop, open_shop, row
from partner_setting import Federation
from typer.testing import CliRunner

from client.data.pseudonyms import PseudonymKey
from client.data.text_cache import TextCache
from client.intake import commands
from client.intake.commit import data_version, digest_of
from client.intake.erasure import erase
from client.intake.importing import retain
from client.intake.receipts import PURPOSE, verify_receipt
from client.intake.state import IntakeState
from client.intake.suppression import key_of, mark_of
from client.learner import Learner
from client.premises import AGENT_LOCK, Premises
from client.ranking.store import EventStore
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError, IntegrityError, InvalidSignatureError, SchemaError
from shared.hazmat.signing import SigningKey
from shared.model.text import TextStage
from shared.model.weights import BaseModel
from shared.privacy.ledger import Ledger
from shared.requests import ConsentRequest
from shared.schema import Catalogue

USER = "ada-4711"
ROWS = [
    row(USER, 1, 50, "rating", 3.0, "mine alone"),
    row(USER, 2, 40, "view", None, "said by two"),
    row(USER, 3, 30, "view"),
    row("bob", 2, 40, "rating", 5.0, "said by two"),
    row("cleo", 4, 10),
    row(USER, 99, 20, "view", None, "of a lamp that nobody knows"),
]
TEXTS = ("mine alone", "said by two", "of a lamp that nobody knows")


class _Stage(TextStage):
    """The default recipe; its vectors are numbers of our own, so that BERT is not loaded."""

    def encode(self, texts, **_):  # type: ignore[no-untyped-def]
        return np.ones((len(texts), 1, 4), dtype=np.float16)


@pytest.fixture
def stage(base: BaseModel) -> TextStage:
    model = ModelConfig()
    return _Stage(base, adapted_layers=model.adapted_layers, max_tokens=model.max_tokens, device=torch.device("cpu"))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = open_shop(tmp_path / "partner")
    shop.drop("a.parquet", ROWS)
    shop.take()
    return shop


def held(shop: Shop, stage: TextStage) -> set[str]:
    """Which of `TEXTS` have a vector in the cache."""
    found = set()
    for text in TEXTS:
        copy = shop.folder / "copy.sqlite"
        copy.write_bytes(shop.premises.cache.read_bytes())
        if TextCache(copy).erase(stage, [text], items=False):
            found.add(text)
        copy.unlink()
    return found


def files_with(shop: Shop, word: str) -> list[str]:
    """Files of the partner that hold a word, besides the drops."""
    import polars as pl

    found = []
    for path in shop.folder.rglob("*"):
        if path.is_file() and path.parent != shop.drops:
            told = str(pl.read_parquet(path).rows()) if path.suffix == ".parquet" else ""
            if word in told or word.encode() in path.read_bytes():
                found.append(path.name)
    return found


def test_all_that_is_held_of_a_user_goes_and_is_counted(shop: Shop, stage: TextStage) -> None:
    TextCache(shop.premises.cache).vectors(stage, TEXTS, width=4, items=False)
    for name in ("prior", "adapter"):
        (shop.folder / "personal").mkdir(exist_ok=True)
        (shop.folder / "personal" / f"{name}.safetensors").write_bytes(b"sums of everybody")
    before, version = digest_of(shop.place.data), data_version(shop.premises)
    path, receipt = erase(shop.premises, USER)
    assert shop.rows() == sorted((told for told in ROWS if told[0] != USER), key=repr)
    assert shop.rejects() == []
    assert held(shop, stage) == {"said by two"}  # the other user's vector stays
    assert not list((shop.folder / "personal").iterdir())
    assert dict(receipt.removed) == {
        "interactions": 3, "reviews": 2, "events_rating": 1, "events_view": 2, "rejected_rows": 1, "text_vectors": 2,
        "personal_models": 2, "noised_sums": 0,
    }  # fmt: skip
    assert (receipt.data_before, receipt.data_after) == (before, digest_of(shop.place.data))
    assert data_version(shop.premises) != version
    assert verify_receipt(path, shop.premises.identity.public) == receipt
    assert files_with(shop, USER) == []


def test_the_next_round_trains_without_the_user(shop: Shop) -> None:
    key = key_of(shop.premises)
    assert key.pseudonym(USER) in Learner(shop.premises, "cpu").histories(ModelConfig()).users
    erase(shop.premises, USER)
    histories = Learner(shop.premises, "cpu").histories(ModelConfig())
    assert sorted(histories.users) == sorted(key.pseudonyms(["bob", "cleo"]))
    assert histories.review_texts == ("said by two",)
    assert key.secret == Learner(shop.premises, "cpu").key.secret  # the intake's key is the one that trains


def test_no_later_import_brings_the_user_back(shop: Shop) -> None:
    erase(shop.premises, USER)
    shop.drop("b.csv", [row(f" {USER} ", 5), row(USER, 99), row("bob", 5)])
    report = shop.take()
    assert (report.added, report.counts["suppressed"], report.rejected) == (1, 2, {})
    shop.hold(ROWS)  # whoever writes the whole file anew by other means
    assert shop.take().dropped == 4
    assert files_with(shop, USER) == []


def test_the_mark_is_neither_the_id_nor_the_pseudonym_nor_another_partners(shop: Shop) -> None:
    erase(shop.premises, USER)
    (mark,) = IntakeState.read(shop.place.state).suppressed
    key = key_of(shop.premises)
    assert mark == mark_of(USER, key) != key.pseudonym(USER)
    assert mark != mark_of(USER, PseudonymKey.generate())
    assert key.secret == key_of(replace(shop.premises)).secret


def test_a_second_erasure_finds_nothing_and_says_so(shop: Shop) -> None:
    erase(shop.premises, USER)
    _, receipt = erase(shop.premises, USER)
    assert sum(receipt.removed.values()) == 0
    assert receipt.data_before == receipt.data_after
    assert len(list(shop.place.receipts.iterdir())) == 2


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_each_step_is_made_good_at_the_next_start(
    tmp_path: Path, stage: TextStage, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    for step in range(1, 100, stride):
        shop = open_shop(tmp_path / f"crash-{step}")
        shop.drop("a.parquet", ROWS)
        shop.take()
        TextCache(shop.premises.cache).vectors(stage, TEXTS, width=4, items=False)
        died = dies_at(step, lambda shop=shop: erase(shop.premises, USER), monkeypatch)  # type: ignore[misc]
        begun = (shop.place.folder / "erasure.json").exists()
        shop.drop("b.csv", [row(USER, 5)])
        shop.take()  # whoever comes next finishes it
        receipts = list(shop.place.receipts.glob("*.json")) if shop.place.receipts.exists() else []
        if not receipts:
            assert died and not begun  # the command failed before anything was promised
            continue
        assert files_with(shop, USER) == [] and held(shop, stage) == {"said by two"}
        told = verify_receipt(receipts[0], shop.premises.identity.public)
        counts = (told.removed["interactions"], told.removed["rejected_rows"], told.resumed)
        assert counts == (3, 1, died and begun)
        if not died:
            break
    assert step > 15


@pytest.mark.slow
def test_a_kill_in_the_middle_is_made_good_at_the_next_start(shop: Shop) -> None:
    assert killed_at(14, f"erase(premises, {USER!r})", shop.folder, NOW) == -9
    assert (shop.place.folder / "erasure.json").stat().st_mode & 0o077 == 0
    retain(shop.premises, days=1000, now=NOW)
    assert files_with(shop, USER) == []
    assert len(list(shop.place.receipts.glob("*.json"))) == 1


def test_the_ranking_store_forgets_too(shop: Shop, stage: TextStage, tmp_path: Path) -> None:
    for url in _store(shop, tmp_path):
        cache = shop.folder / "serve" / "vectors.sqlite"
        TextCache(cache).vectors(stage, ["told to the shop"], width=4, items=False)
        _, receipt = erase(shop.premises, USER)
        assert receipt.removed["store_events"] == 2 and receipt.removed["text_vectors"] == 1
        assert receipt.checked["ranking_store"]
        with EventStore.open(url, PseudonymKey.load_or_create(shop.folder / "serve" / "pseudonyms.key")) as store:
            assert store.users() == 1 and store.reviews(USER) == frozenset()


def test_a_store_that_is_not_where_it_should_be_stops_the_erasure_until_it_is(shop: Shop, tmp_path: Path) -> None:
    shop.configure(ranking={"state": "serve"})
    with pytest.raises(ConfigError, match="ranking service"):
        erase(shop.premises, USER)
    assert (shop.place.folder / "erasure.json").exists()
    for _ in _store(shop, tmp_path):
        shop.take()
        assert files_with(shop, USER) == []


def test_vectors_of_models_that_are_gone_go_when_asked(shop: Shop, base: BaseModel) -> None:
    other = _Stage(base, adapted_layers=1, max_tokens=17, device=torch.device("cpu"))
    TextCache(shop.premises.cache).vectors(other, TEXTS, width=4, items=False)
    _, receipt = erase(shop.premises, USER)
    assert not receipt.checked["vectors_of_every_model"] and len(held(shop, other)) == 3
    _, receipt = erase(shop.premises, USER, all_vectors=True)
    assert receipt.checked["vectors_of_every_model"] and receipt.removed["text_vectors"] == 3
    assert held(shop, other) == set()


def test_after_a_round_the_receipt_names_its_epsilon_and_the_sum_of_the_round_is_gone(tmp_path: Path) -> None:
    """A real agent with real data, a masked round to its end, and one that was left before it was opened."""
    federation = Federation.of(tmp_path, max_epsilon=30.0)
    premises = Premises.open(federation.folder)
    federation.play().finish()
    assert len(list(premises.folder.glob("runs/*/sum"))) == 1
    path, receipt = erase(premises, "user 3")
    assert receipt.removed["interactions"] == 5 and receipt.removed["noised_sums"] == 1
    assert receipt.privacy is not None and receipt.privacy["plans"] == 1
    assert receipt.privacy["epsilon"] == pytest.approx(6.83, abs=0.01)
    assert verify_receipt(path, premises.identity.public) == receipt
    assert len(federation.learner().histories(federation.config.model)) == 5
    unopened = federation.play(federation.order(run_id="other", attempt="ab" * 16))
    unopened.to(ConsentRequest)
    _, receipt = erase(premises, "user 4")
    assert receipt.removed["noised_sums"] == 0  # whoever asks again must get the same answer
    unopened.finish()
    _, receipt = erase(premises, "user 5")
    assert receipt.removed["noised_sums"] == 1


def test_a_receipt_says_what_the_ledger_says_was_spent(shop: Shop) -> None:
    _, receipt = erase(shop.premises, USER)
    assert receipt.privacy is None
    Ledger(shop.premises.ledger_file, shop.premises.identity)
    _, receipt = erase(shop.premises, USER)
    assert receipt.privacy == {"epsilon": 0.0, "delta": 0.0, "plans": 0}
    assert any("cannot be trained backwards" in line for line in receipt.stays)


def test_a_receipt_that_was_changed_or_is_anothers_is_refused(shop: Shop) -> None:
    path, _ = erase(shop.premises, USER)
    key = shop.premises.identity.public
    with pytest.raises(InvalidSignatureError):
        verify_receipt(path, SigningKey.generate().public)
    document = json.loads(path.read_text())
    document["receipt"]["removed"]["interactions"] = 4
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidSignatureError, match=PURPOSE):
        verify_receipt(path, key)
    for text in ("", "[]", '{"receipt": 1}', '{"receipt": {}, "signature": "?"}'):
        path.write_text(text)
        with pytest.raises(DataError, match="receipt"):
            verify_receipt(path, key)


def test_an_agent_that_computes_is_waited_for(shop: Shop) -> None:
    with FileLock(shop.folder / AGENT_LOCK), pytest.raises(ConfigError, match="at work") as error:
        erase(shop.premises, USER, wait_s=0.05)
    assert USER not in str(error.value)
    shop.take()
    assert files_with(shop, USER) == []


@pytest.mark.parametrize("user", ["", "  ", "\udcff"])
def test_an_id_that_is_none_is_refused(shop: Shop, user: str) -> None:
    with pytest.raises(SchemaError, match="user_id"):
        erase(shop.premises, user)
    assert not (shop.place.folder / "erasure.json").exists()


def test_a_journal_that_is_damaged_is_refused_without_a_word_of_it(shop: Shop) -> None:
    (shop.place.folder / "erasure.json").write_text(json.dumps({"user_id": USER}))
    with pytest.raises(IntegrityError, match="journal") as error:
        shop.take()
    assert USER not in str(error.value)


def test_the_command_takes_ids_from_stdin_and_prints_none(shop: Shop, tmp_path: Path) -> None:
    app = _app()
    done = CliRunner().invoke(app, ["erase", str(shop.folder)], input=f"{USER}\n\nbob\n")
    assert done.exit_code == 0, done.output
    assert "interactions 3" in done.output and USER not in done.output and "bob" not in done.output
    assert [told[0] for told in shop.rows()] == ["cleo"]
    ids = tmp_path / "ids"
    ids.write_text("cleo\n")
    done = CliRunner().invoke(app, ["erase", str(shop.folder), "--from", str(ids), "--json"])
    (told,) = json.loads(done.output)
    assert told["removed"]["interactions"] == 1 and shop.rows() == []
    assert isinstance(CliRunner().invoke(app, ["erase", str(shop.folder)], input="\n").exception, ConfigError)


def test_the_commands_import_and_retain_tell_counts(shop: Shop) -> None:
    app = _app()
    shop.configure(scrub="rules")
    shop.drop("b.csv", [row("dan", 1, 3, "rating", 1.0, "mail dan@example.com")])
    done = CliRunner().invoke(app, ["import", str(shop.folder)])
    assert done.exit_code == 0 and "1 new events" in done.output and "EMAIL 1" in done.output
    assert json.loads(CliRunner().invoke(app, ["import", str(shop.folder), "--json"]).output)["added"] == 0
    done = CliRunner().invoke(app, ["retain", str(shop.folder), "--days", "1"])
    assert "0 held" in done.output
    (shop.drops / "torn.csv").write_text("no,thing,known\n1,2,3\n")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(DataError, match="till"):
        commands.import_(shop.folder)
    with pytest.raises(ConfigError, match="one of"):
        commands.import_(shop.folder, once=True, watch=True)


def _app():  # type: ignore[no-untyped-def]
    import typer

    app = typer.Typer()
    app.command("import")(commands.import_)
    app.command()(commands.retain)
    app.command()(commands.erase)
    return app


def _store(shop: Shop, tmp_path: Path) -> Iterator[str]:
    """A store as `veilrec serve` makes it, with the user in it."""
    folder = shop.folder / "serve"
    folder.mkdir()
    url = f"sqlite:///{folder / 'events.sqlite'}"
    from client.ranking.store import Event

    with EventStore.open(url, PseudonymKey.load_or_create(folder / "pseudonyms.key")) as store:
        nothing = Catalogue((), (), (), ())
        store.append(USER, [Event("item 1", "view", 5), Event("item 2", "rating", 6, 1.0, "told to the shop")], nothing)
        store.append("bob", [Event("item 1", "view", 5)], nothing)
    shop.configure(ranking={"state": "serve", "caches": ["serve/vectors.sqlite"]})
    yield url
