"""What leaves a partner: fields of the allow-list, paid for, of one size, and the same whoever is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.data.formats.columns import INTERACTION_COLUMNS
from client.door import refusal_of
from client.privatize import add_noise_share
from shared import wire_answers
from shared.errors import ProtocolError, VeilrecError
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.hazmat.randomness import SeededRandomness
from shared.messages import ClippedSum, MaskedUpdate, NoisedSum
from shared.privacy.ledger import LedgerHead
from shared.requests import Contribution
from shared.wire_answers import ALLOWED, ANSWER, UPDATE, pack_answer
from shared.wire_frames import ERROR
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    at_least,
    check,
    equal,
    exchanged,
    none_of,
    refused,
)
from simulations.audit.mechanism.recording import Exchanged, crossed
from simulations.audit.mechanism.rehearsal import Rehearsal, config_of, gradient_of, names

CHECKS: list[Check] = []
PARTNERS, EXCHANGES = 3, 5
SECRET = "my secret"
ANSWERS: dict[str, Any] = {
    "KeyOffer": KeyOffer("a", bytes(32), bytes(32), bytes(64)),
    "Outbox": Outbox("a", {"b": b"\x00", "c": b""}),
    "Contribution": Contribution("a", MaskedUpdate(np.zeros(4, np.uint32), False, 1.5), LedgerHead(4, "ab" * 32)),
    "Consent": Consent("a", bytes(64)),
    "Opening": Opening("a", {"a": bytes(33)}, {"b": bytes(33)}),
}


@check(CHECKS, "a field, metric or vector that is not on the list")
def listed(setting: Setting) -> Iterator[Finding]:
    """Every record and field of whole rounds is on the allow-list; the one array is the paid vector."""
    run = _rounds(setting, 1, 50, 7)
    unlisted = arrays = numbers = 0
    kinds: set[str] = set()
    for one in run:
        told = dict(one.answer.config_records[ANSWER])
        kind = str(told.pop("kind"))
        kinds.add(kind)
        allowed = ALLOWED[kind]
        unlisted += len(set(one.answer) - {ANSWER, UPDATE}) + len(one.answer.metric_records)
        unlisted += len([name for name in told if name not in allowed or allowed[name].kind == "paid"])
        paid = any(field.kind == "paid" for field in allowed.values())
        arrays += bool(one.answer.array_records) != paid
        numbers += len([n for n, v in told.items() if _is_number(v) and n != "head_count"])
    yield equal("exchanges that were looked at", len(run), 2 * EXCHANGES * PARTNERS, "a check of nothing")
    yield none_of("fields and records that are not on the list", unlisted, "a field that is not on the list")
    yield none_of("answers with a vector that is not the paid one", arrays, "a vector that nobody paid for")
    yield none_of("numbers but the length of the ledger", numbers, "a loss or a count is told")
    yield none_of("kinds of answers that were not seen", len(set(ALLOWED) - {"error"} - kinds), "a check of nothing")


@check(CHECKS, "data that leave without an entry that paid for them")
def paid(setting: Setting) -> Iterator[Finding]:
    """The head beside a vector is a line of that partner's ledger: the release of that round."""
    federation = Rehearsal.of(setting.folder(), 2, 2, 2)
    grid = federation.grid()
    federation.train(config_of(PARTNERS, {"seed": setting.seed}), setting.folder(), grid)
    vectors = [one for one in grid.exchanged if UPDATE in one.answer]
    unpaid = 0
    for one in vectors:
        told = one.answer.config_records[ANSWER]
        lines = federation.agent(one.node - 1).ledger.path.read_text().splitlines()
        line = json.loads(lines[min(int(str(told["head_count"])), len(lines)) - 1])
        unpaid += (line["hash"], line["kind"]) != (told["head_hash"], "release")
    yield equal("vectors that left in three rounds", len(vectors), 3 * PARTNERS, "a check of nothing")
    yield none_of("vectors without the release that paid for them", unpaid, "sent without a release, or a false head")


@check(CHECKS, "a message that tells whether a user is there")
def same(setting: Setting) -> Iterator[Finding]:
    """With one user more at the first partner, not a byte but the masked vector changes."""
    users = [names(f"p{k}", count) for k, count in enumerate((3, 4, 2))]
    first, gradient = setting.folder(), gradient_of(200)
    few = Rehearsal.with_users(first, users, gradient).compare()
    second = setting.folder()
    shutil.copytree(first, second, dirs_exist_ok=True)
    more = Rehearsal.opened(second, [[*users[0], "one-more"], *users[1:]], gradient).compare()
    config = config_of(PARTNERS, {"seed": setting.seed}, training={"rounds": 1})
    runs = []
    for federation in (few, more):
        grid = federation.grid()
        federation.train(config, setting.folder(), grid)
        runs.append(grid.exchanged)
    both = list(zip(*runs, strict=True))
    yield equal("answers that were compared", len(both), EXCHANGES * PARTNERS, "a check of nothing")
    changed = sum(_without_vector(one.answer) != _without_vector(other.answer) for one, other in both)
    yield none_of(
        "answers that one user more changes, but for the vector", changed, "a public number that depends on data"
    )
    vectors = [crossed(one.answer) != crossed(other.answer) for one, other in both if UPDATE in one.answer]
    yield equal("vectors that one user more changes", sum(vectors), 1, "a check of nothing")


@check(CHECKS, "sizes that tell how many users there are")
def sizes(setting: Setting) -> Iterator[Finding]:
    """All answers of an exchange have one size, of partners with 1 or 50 users, and if nobody takes part."""
    one = _rounds(setting, 1, 50, 7)
    other = _rounds(setting, 20, 2, 2, rate=1e-12)
    told = [{(place // PARTNERS, len(crossed(each.answer))) for place, each in enumerate(run)} for run in (one, other)]
    yield equal(
        "sizes of answers in two sums of five exchanges", len(told[0]), 2 * EXCHANGES, "sizes that tell something"
    )
    yield none_of("sizes that hang on who is there", len(told[0] ^ told[1]), "sizes that tell something")


@check(CHECKS, "a loss sent from under the noise")
def losses(setting: Setting) -> Iterator[Finding]:
    """A loss is told in mode none alone."""
    for mode in ("distributed", "local"):
        plan = replace(REFERENCE, mode=mode)
        clipped = ClippedSum(np.zeros(4), plan.partner_clip_norm, private_loss=3.25)
        noised = add_noise_share(clipped, plan, "train", SeededRandomness(setting.seed, "p"), "c")
        yield none_of(f"losses that leave in mode {mode}", noised.loss is not None, "a loss sent from under the noise")


@check(CHECKS, "the text of an error sent")
def errors(setting: Setting) -> Iterator[Finding]:
    """Of an error, foreseen or not, the name of its family crosses and nothing else."""
    families, todo = set[type[VeilrecError]](), [VeilrecError]
    while todo:
        families.add(todo[-1])
        todo.extend(todo.pop().__subclasses__())
    wrong = 0
    for family in families:
        wrong += not _is_name(refusal_of(family(SECRET)), family.__name__)
    yield none_of(
        f"families of {len(families)} of which more than the name crosses", wrong, "the text of a refusal sent"
    )
    unforeseen = refusal_of(RuntimeError(f"user-17 wrote: {SECRET}"))
    wrong = not _is_name(unforeseen, VeilrecError.__name__)
    yield none_of("errors that were not foreseen and tell more", wrong, "the text of an error sent")
    yield at_least("families of errors", len(families), 20, "a check of nothing")


@check(CHECKS, "a list that is not kept to")
def kept(setting: Setting) -> Iterator[Finding]:
    """A field that is taken off the list cannot be sent; nor can anything that is no answer, or no masked update."""
    wrong = fields = 0
    for kind, answer in ANSWERS.items():
        for key in ALLOWED[kind].keys() - {UPDATE}:
            shorter = {**ALLOWED, kind: {name: field for name, field in ALLOWED[kind].items() if name != key}}
            with exchanged(wire_answers, "ALLOWED", shorter):
                fields += 1
                wrong += refused(key, ProtocolError, partial(pack_answer, answer), "").measurement.value != 1.0
    yield none_of(
        f"fields of {fields} that leave although they are not on the list", wrong, "a list that is not kept to"
    )
    others: tuple[Any, ...] = (ClippedSum(np.zeros(3), 1.0), NoisedSum(np.zeros(3, np.int64)), np.zeros(3))
    for private in others:
        name = f"a {type(private).__name__} as an answer"
        yield refused(name, ProtocolError, partial(pack_answer, private), "a sum that leaves without noise or mask")
    signed = Contribution("a", MaskedUpdate(np.zeros(4, np.int64), True), LedgerHead(4, "ab" * 32))
    yield refused("a sum that was never in the ring", ProtocolError, lambda: pack_answer(signed), "an unmasked sum")
    extra = set(INTERACTION_COLUMNS) - {"user_id", "item_id", "timestamp", "event", "rating", "review"}
    yield none_of("columns of interactions that mark somebody", len(extra), "canaries among real users")


def _rounds(setting: Setting, *counts: int, rate: float = 0.5) -> list[Exchanged]:
    """A prior's sum and a training round, with masks, of partners of very different sizes."""
    federation = Rehearsal.of(setting.folder(), *counts)
    grid = federation.grid()
    sections: dict[str, Any] = {"prior": {"kind": "popularity"}, "training": {"rounds": 1, "sampling_rate": rate}}
    federation.train(config_of(len(counts), {"seed": setting.seed}, **sections), setting.folder(), grid)
    return grid.exchanged


def _without_vector(content: RecordDict) -> bytes:
    return crossed(RecordDict({name: record for name, record in content.items() if name != UPDATE}))


def _is_name(content: RecordDict, name: str) -> bool:
    return set(content) == {ERROR} and dict(content.config_records[ERROR]) == {"family": name}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
