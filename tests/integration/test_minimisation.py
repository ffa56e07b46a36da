"""What leaves a partner does not tell whether one more user is there, but through the masked vector.

Whole rounds of three partners on BERT: once with N + 1 users at the first partner, with a coordinator, and once more
with N users, asked word by word the same. Keys, masks, sampling and noise are fixed, so that every byte can be
compared. Clocks are not: no message may depend on how long something took.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from flwr.app import RecordDict
from recording import Exchanged, RecordingGrid, crossed

from client import batches as batches_module
from client.agent import agent_for
from client.app import app as client_app
from client.app import partner_folder
from client.data.ingest import RawData, read, write
from client.premises import IDENTITY_FILE, write_partner
from server.admission import Admission
from server.app import run_federation
from shared.catalogue import build_catalogue
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import ProtocolError, SensitivityError
from shared.hazmat.randomness import SeededRandomness
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.wire_answers import ANSWER, UPDATE
from shared.wire_frames import ERROR

PARTNERS, ITEMS, USERS, EVENTS = 3, 24, 5, 60
TOKEN = "zqxjkv7731"
ITEM_DATA = pl.DataFrame(
    {
        "item_id": [f"item {k}" for k in range(ITEMS)],
        "title": [f"Lamp {k}" for k in range(ITEMS)],
        "text": "A lamp.",
        "categories": "",
    }
)
COLUMNS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "event": pl.String,
    "rating": pl.Float64,
    "review": pl.String,
}


def events_of(partner: int) -> pl.DataFrame:
    """Six events a user, one of them with a review."""
    rows = [
        (f"user {partner}.{u}", f"item {(7 * u + 5 * e + partner) % ITEMS}", e, "purchase", 4.0, "Fine." * (e == 2))
        for u in range(USERS)
        for e in range(6)
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def one_more() -> pl.DataFrame:
    """A user with a long history, whose id, reviews and searches hold a token that is nowhere else."""
    rows = [
        (f"user {TOKEN}", f"item {k % 12}", k, "purchase", 1.0, f"{TOKEN} broke after {k} days." * (k % 3 == 0))
        for k in range(EVENTS - 12)
    ]
    new = [(f"user {TOKEN}", f"item {k - EVENTS + ITEMS}", k, "view", None, "") for k in range(EVENTS - 12, EVENTS)]
    searched = (f"user {TOKEN}", "item 2", EVENTS, "query", None, f"lamp for {TOKEN}")
    bought = (f"user {TOKEN}", "item 3", EVENTS + 1, "purchase", 5.0, "")
    return pl.DataFrame([*rows, *new, searched, bought], schema=COLUMNS, orient="row")


@dataclass(frozen=True)
class Both:
    """The same requests, answered with one user more and without."""

    root: Path
    out: Path
    more: list[Exchanged]
    few: list[Exchanged]
    contexts: list[RecordDict]


@pytest.fixture(scope="module")
def config(tiny_model: ModelConfig) -> RunConfig:
    """A prior's sum and two training rounds, masked, with noise that is not calibrated."""
    return RunConfig(
        model=tiny_model,
        prior=PriorConfig(kind="hybrid"),
        training=TrainingConfig(rounds=2, sampling_rate=0.8),
        privacy=PrivacyConfig(population=20, noise_multiplier=2.0),
        federation=FederationConfig(partners=PARTNERS),
    )


def prepare(root: Path) -> None:
    """Partners with keys, data and empty ledgers; the first has the user more."""
    folders = [partner_folder(root, k) for k in range(PARTNERS)]
    for k, folder in enumerate(folders):
        own = events_of(k) if k else pl.concat([events_of(0), one_more()])
        write(RawData(folder.name, own, ITEM_DATA), folder)
    keys = {folder.name: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in folders}
    server = Admission.create(root, keys).key.public.text
    for folder in folders:
        told: dict[str, Any] = {"name": folder.name, "simulated": True, "policy": {"server_key": server}}
        premises = write_partner(folder, {**told, "peers": {name: key.text for name, key in keys.items()}})
        Ledger(premises.ledger_file, premises.identity)


def agents(root: Path) -> RecordingGrid:
    """A grid to agents that have just started, with masks that can be reproduced."""
    agent_for.cache_clear()
    for k in range(PARTNERS):
        folder = partner_folder(root, k)
        agent_for(folder)._secrets = SeededRandomness(1, folder.name)
    return RecordingGrid(client_app, range(PARTNERS), root)


@pytest.fixture(scope="module")
def both(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("minimisation")
    more, few, out = folder / "more", folder / "few", folder / "out"
    prepare(more)
    shutil.copytree(more, few)
    write(RawData("few", events_of(0), ITEM_DATA), partner_folder(few, 0))
    asked = agents(more)
    run_federation(asked, config, build_catalogue(ITEM_DATA), out, more)
    again = agents(few)
    for one in asked.exchanged:
        again.ask(one.node, one.request)
    contexts = [context.state for grid in (asked, again) for context in grid._contexts.values()]
    return Both(more, out, asked.exchanged, again.exchanged, contexts)


def without_vector(answer: RecordDict) -> bytes:
    return crossed(RecordDict({name: record for name, record in answer.items() if name != UPDATE}))


def vector(answer: RecordDict) -> np.ndarray:
    return answer.array_records[UPDATE]["flat"].numpy()


def test_both_runs_are_whole(both: Both) -> None:
    """Five exchanges with three partners for each of three sums, all of them answered."""
    for run in (both.more, both.few):
        assert len(run) == 3 * 5 * PARTNERS
        assert not any(ERROR in one.answer for one in run)
        assert sum(UPDATE in one.answer for one in run) == 3 * PARTNERS
    assert [crossed(one.request) for one in both.more] == [crossed(one.request) for one in both.few]


def test_every_byte_but_the_masked_vector_is_the_same_with_one_user_more(both: Both) -> None:
    for more, few in zip(both.more, both.few, strict=True):
        assert without_vector(more.answer) == without_vector(few.answer)
        if more.node > 1:  # the other partners' data are the same
            assert crossed(more.answer) == crossed(few.answer)


def test_the_masked_vector_is_where_the_user_is(both: Both) -> None:
    """So the comparison can fail: the user moved the prior's sum, and that of a round in which they took part."""
    moved = [
        not np.array_equal(vector(more.answer), vector(few.answer))
        for more, few in zip(both.more, both.few, strict=True)
        if more.node == 1 and UPDATE in more.answer
    ]
    assert moved[0] and any(moved[1:])


def test_messages_have_one_size_whoever_is_there(both: Both) -> None:
    """With one user more, and at every partner of the round."""
    sizes = [[len(crossed(one.answer)) for one in run] for run in (both.more, both.few)]
    assert sizes[0] == sizes[1]
    for start in range(0, len(sizes[0]), PARTNERS):
        assert len(set(sizes[0][start : start + PARTNERS])) == 1


def test_nothing_is_left_in_flowers_own_state(both: Both) -> None:
    assert all(state == RecordDict() for state in both.contexts)


def files_of_the_coordinator(both: Both) -> Iterator[Path]:
    yield from (path for path in both.out.rglob("*") if path.is_file())
    yield from (path for path in both.root.iterdir() if path.is_file())


def test_a_word_of_a_user_is_in_no_message_no_file_of_the_coordinator_and_no_release(both: Both) -> None:
    """Nor is the user's id, in any case of letters."""
    token = TOKEN.encode()
    held = read(partner_folder(both.root, 0)).interactions
    assert held.get_column("review").str.contains(TOKEN).sum() == (EVENTS - 12) // 3 + 1
    for one in both.more:
        assert token not in crossed(one.request).lower() + crossed(one.answer).lower()
    found = {path.name: path.read_bytes().lower() for path in files_of_the_coordinator(both)}
    assert {"receipts.json", "rounds.jsonl", "state.safetensors", "config.json"} <= set(found)
    assert any(path.parent.name == "adapter" for path in files_of_the_coordinator(both))
    assert not [name for name, data in found.items() if token in data]


def test_what_a_release_holds_of_the_partners_are_public_numbers(both: Both) -> None:
    """The run's own records: no count of users, no loss, no metric."""
    records = [json.loads(line) for line in (both.out / "rounds.jsonl").read_text().splitlines()]
    public = {"round", "stage", "cohort", "bytes_up", "bytes_down", "epsilon", "update_norm", "noise_norm", "seconds"}
    assert len(records) == 3
    assert all(set(record) == public and record["cohort"] == PARTNERS for record in records)


@pytest.mark.parametrize("family", [RuntimeError, SensitivityError, UnicodeDecodeError])
def test_the_text_of_an_error_crosses_in_no_byte(
    both: Both,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: type[Exception],
) -> None:
    """A learner that fails over a user's text tells the coordinator that it failed, and in which family."""
    said: list[str] = []

    def fail(maker: Any, *_: Any) -> Any:
        said.append(" ".join(maker.histories.review_texts))
        raise UnicodeDecodeError(said[-1], b"x", 0, 1, said[-1]) if family is UnicodeDecodeError else family(said[-1])

    monkeypatch.setattr(batches_module.BatchMaker, "training", fail)
    root = tmp_path / "partners"
    shutil.copytree(both.root, root)
    grid = agents(root)
    changed = config.model_copy(update={"prior": PriorConfig(kind="none"), "seed": 3})
    with pytest.raises(ProtocolError) as error:
        run_federation(grid, changed, build_catalogue(ITEM_DATA), tmp_path / "out", root)
    assert TOKEN in said[0]
    told = "SensitivityError" if family is SensitivityError else "VeilrecError"
    refusals = [one.answer for one in grid.exchanged if ERROR in one.answer]
    assert [dict(refusal.config_records[ERROR]) for refusal in refusals] == [{"family": told}] * PARTNERS
    everything = b"".join(crossed(one.answer) for one in grid.exchanged)
    assert TOKEN.encode() not in everything.lower() and b"broke" not in everything
    assert TOKEN not in str(error.value)
    assert ANSWER not in refusals[0]
