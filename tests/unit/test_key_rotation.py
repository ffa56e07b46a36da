"""A partner changes its keys: both count for a while, then one, and the ledger follows."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from enrolled import NAMES, Enrolled, cheap_scrypt, copied, joined
from ledgers import PLAN
from masking_setting import CONTEXT, SIZE, Setting, pins, setting

from client import key_rotation
from client.key_rotation import begin, finish
from client.premises import Premises, write_partner
from client.secure_sum import MaskingSession
from server.admission import Admission
from server.partners import Registry
from server.secure_sum import SecureSum
from shared.errors import ConfigError, InvalidSignatureError, LedgerError, ProtocolError
from shared.exchange import OFFER, Roster, offer_statement
from shared.hazmat.key_files import PASSPHRASE_VARIABLE
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.signing import PinnedKeys, SigningKey, pin
from shared.privacy.ledger import Ledger, replay
from shared.privacy.ledger_audit import read_ledger, verify_ledger
from shared.privacy.ledger_entries import parse, seal
from shared.privacy.ledger_heads import LedgerHead, sign_succession
from shared.privacy.ledger_state import LedgerState
from simulations.benchmarks.secure_sum import play


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with cheap_scrypt():
        yield


@pytest.fixture
def federation(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Enrolled:
    return copied(joined(tmp_path_factory), tmp_path / "copy")


def identity(federation: Enrolled, name: str = "alder") -> SigningKey:
    return SigningKey.load(federation.folder(name) / "identity.key", federation.passphrase(name))


def paid(federation: Enrolled, run_id: str) -> Ledger:
    ledger = Ledger(federation.folder("alder") / "ledger.jsonl", identity(federation))
    ledger.declare(run_id, PLAN, 1.0, 100.0, 1e-3)
    return ledger


def overlap(federation: Enrolled) -> None:
    """Both keys in the roster, and everybody has joined that bundle; nobody needed the telephone."""
    begin(federation.folder("alder"), federation.passphrase("alder"))
    federation.enroll(federation.folder("alder") / "alder.request.json")
    for name in NAMES:
        review, _ = federation.join(name)
        assert not review.needs_voice


# --- the whole change -----------------------------------------------------------------------------


def test_a_key_is_changed_with_an_overlap_and_the_ledger_follows(
    federation: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, told, folder = identity(federation), federation.passphrase("alder"), federation.folder("alder")
    paid(federation, "before")
    overlap(federation)
    for name in NAMES:
        both = Premises.open(federation.folder(name)).peers["alder"]
        assert isinstance(both, PinnedKeys) and both.keys[0] == old.public
    nodes = Registry.open(federation.home).active[0].request.nodes
    assert len(nodes) == 2
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(federation.passphrase_file("alder")))
    assert Premises.open(folder).identity.public == old.public  # still, until the switch

    finish(folder, told)
    new = identity(federation)
    assert Premises.open(folder).identity.public == new.public == both.keys[1]
    assert NodeKey.load(folder / "node" / "node.key", told).public_text == nodes[1]
    assert not list(folder.rglob("*next*"))
    paid(federation, "after")
    for key in (old.public, new.public, both):
        report = verify_ledger(folder / "ledger.jsonl", key, accountant=lambda *_: 1.0)
        assert report.identity == new.public.text and [run.run_id for run in report.runs] == ["before", "after"]
    with pytest.raises(LedgerError, match="another partner's ledger"):
        verify_ledger(folder / "ledger.jsonl", SigningKey.generate().public)

    bundle = federation.enroll(folder / "alder.request.json")  # the old key goes
    assert bundle.federation.serial == 3 and bundle.federation.roster["alder"] == new.public
    for name in NAMES:
        review, premises = federation.join(name)
        assert not review.needs_voice and premises.peers["alder"] == new.public
    assert Registry.open(federation.home).active[0].request.nodes == nodes[1:]


def test_the_coordinator_takes_offers_by_either_key_in_the_overlap(
    federation: Enrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlap(federation)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(federation.passphrase_file("server")))
    pinned = Admission.open(federation.home).identities["alder"]
    both = [
        SigningKey.load(federation.folder("alder") / name, federation.passphrase("alder"))
        for name in ("identity.key", "identity.next.key")
    ]
    for key in both:
        pinned.verify("purpose", b"m", key.sign("purpose", b"m"))


def test_a_change_that_nobody_began_or_nobody_joined_is_not_finished(federation: Enrolled) -> None:
    folder, told = federation.folder("alder"), federation.passphrase("alder")
    with pytest.raises(ConfigError, match="rotate"):
        finish(folder, told)
    begin(folder, told)
    with pytest.raises(ConfigError, match="joined a bundle with both keys"):
        finish(folder, told)
    request = (folder / "alder.request.json").read_bytes()
    again = begin(folder, told)
    assert json.loads(request)["serial"] == 2 == json.loads(again.file.read_bytes())["serial"]
    assert json.loads(request)["identities"] == json.loads(again.file.read_bytes())["identities"]


@pytest.mark.parametrize("cut", ["_hand_over", "_request", "write_partner"])
def test_a_switch_that_is_cut_short_is_made_again(
    federation: Enrolled, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    told, folder = federation.passphrase("alder"), federation.folder("alder")
    paid(federation, "before")
    overlap(federation)
    real = getattr(key_rotation, cut)

    def crash(*args: object, **options: object) -> None:
        if cut == "_hand_over":
            real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(key_rotation, cut, crash)
    with pytest.raises(KeyboardInterrupt):
        finish(folder, told)
    monkeypatch.setattr(key_rotation, cut, real)
    read_ledger(folder / "ledger.jsonl")
    if cut != "write_partner":  # there the change was done already
        finish(folder, told)
    paid(federation, "after")
    assert read_ledger(folder / "ledger.jsonl").identity == identity(federation).public.text
    assert federation.enroll(folder / "alder.request.json").federation.roster["alder"] == identity(federation).public


# --- the masked sum -------------------------------------------------------------------------------


def in_change(old: SigningKey, new: SigningKey, at_work: SigningKey) -> Setting:
    """Five partners of whom the first changes its key and signs with `at_work`; all have pinned old and new."""
    made = setting()
    first, peers = made.names[0], dict(pins(made))
    peers[first] = pin([old.public, new.public])
    for name in made.names:
        identity = at_work if name == first else made.federation.identities[name]
        made.sessions[name] = MaskingSession(name, CONTEXT, identity, peers, 3, SystemRandomness())
    made.server = SecureSum(CONTEXT, 3, peers, SIZE)
    return made


@pytest.mark.parametrize("which", [0, 1])
def test_a_masked_sum_is_exact_with_either_key_of_a_partner_that_changes_its_own(which: int) -> None:
    keys = SigningKey.generate(), SigningKey.generate()
    made = in_change(*keys, keys[which])
    played = play(made.sessions, made.server, made.rings)
    assert played.survivors == tuple(made.names)
    np.testing.assert_array_equal(played.sum_, made.sum_of(played.survivors))


def test_a_third_key_has_no_part_in_a_masked_sum() -> None:
    old, new, other = (SigningKey.generate() for _ in range(3))
    with pytest.raises(ProtocolError, match="own identity among the pinned"):
        in_change(old, new, other)
    made = in_change(old, new, new)
    offers = made.offers()
    keys = offers[0].sealing_key, offers[0].mask_key
    forged = replace(offers[0], signature=other.sign(OFFER, offer_statement(CONTEXT, offers[0].name, *keys)))
    with pytest.raises(InvalidSignatureError):
        made.sessions[made.names[1]].share(Roster((forged, *offers[1:])))
    assert made.names[0] not in made.server.roster([forged, *offers[1:]]).names


def test_two_names_with_one_key_in_common_are_refused_in_partner_toml(federation: Enrolled) -> None:
    folder = federation.folder("alder")
    told = tomllib.loads((folder / "partner.toml").read_text())
    spare = SigningKey.generate().public.text
    for peers in (
        {"birch": [told["peers"]["cedar"], told["peers"]["birch"]]},
        {"birch": [told["peers"]["birch"], told["policy"]["server_key"]]},
    ):
        with pytest.raises(ConfigError, match="another key for every partner"):
            write_partner(folder, {**told, "peers": {**told["peers"], **peers}})
    for wrong in ([spare] * 2, [spare, *told["peers"].values()], []):
        with pytest.raises(ConfigError, match=r"peers\.birch: Expected two different keys"):
            write_partner(folder, {**told, "peers": {**told["peers"], "birch": wrong}})
    both = [told["peers"]["birch"], spare]
    premises = write_partner(folder, {**told, "peers": {**told["peers"], "birch": both}})
    assert [key.text for key in premises.peers["birch"].keys] == both


def test_identities_may_have_two_keys_and_no_two_names_one(tmp_path: Path) -> None:
    old, new, other, server = (SigningKey.generate() for _ in range(4))
    both = {"alder": pin([old.public, new.public]), "birch": other.public}
    Admission.create(tmp_path, both)
    assert dict(Admission.open(tmp_path).identities) == both
    for twice in ({**both, "cedar": new.public}, {**both, "cedar": pin([server.public, old.public])}):
        with pytest.raises(ConfigError, match="another key for every partner"):
            Admission.create(tmp_path, twice)
    assert dict(Admission.open(tmp_path).identities) == both


# --- the ledger -----------------------------------------------------------------------------------


def test_after_the_hand_over_the_old_key_writes_nothing_more(tmp_path: Path) -> None:
    old, new = SigningKey.generate(), SigningKey.generate()
    ledger, other = Ledger(tmp_path / "l", old), Ledger(tmp_path / "l", old)
    ledger.hand_over(new)
    ledger.declare("run", PLAN, 1.0, 100.0, 1e-3)
    for writer in (other.head, lambda: Ledger(tmp_path / "l", old)):
        with pytest.raises(LedgerError, match="got another's"):
            writer()
    assert Ledger(tmp_path / "l", new).head().count == 3
    with pytest.raises(LedgerError, match="signed this ledger before"):
        ledger.hand_over(old)


def test_a_ledger_is_not_handed_to_a_key_that_did_not_consent(tmp_path: Path) -> None:
    """Else a thief of an old key could pass what it spent off as another's, or a line signed by nobody could follow."""
    old, new = SigningKey.generate(), SigningKey.generate()
    ledger = Ledger(tmp_path / "l", old)
    head = ledger.head()
    for body in (
        sign_succession(new, LedgerHead(head.count, "0" * 64)),  # consent to another ledger
        sign_succession(new, LedgerHead(head.count + 1, head.hash)),
    ):
        before = (tmp_path / "l").read_bytes()
        line = seal(head.count, "2026-01-01T00:00:00+00:00", head.hash, body, old).line
        (tmp_path / "l").write_bytes(before + line)
        with pytest.raises(LedgerError, match="line 2: Expected a signature"):
            read_ledger(tmp_path / "l")
        (tmp_path / "l").write_bytes(before)


def test_a_line_of_the_old_key_after_the_hand_over_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = SigningKey.generate(), SigningKey.generate()
    ledger = Ledger(tmp_path / "l", old)
    ledger.hand_over(new)
    ledger.declare("run", PLAN, 1.0, 100.0, 1e-3)
    lines = (tmp_path / "l").read_bytes().splitlines(keepends=True)
    state = LedgerState()
    list(replay(b"".join(lines[:2]), 0, state, tmp_path / "l"))
    told = json.loads(lines[2])
    body = parse(lines[2], 2, state.head.hash, new.public).body
    forged = seal(2, told["time"], state.head.hash, body, old).line
    (tmp_path / "l").write_bytes(b"".join(lines[:2]) + forged)
    with pytest.raises(LedgerError, match="line 3: Expected signature=the partner's"):
        read_ledger(tmp_path / "l")
    monkeypatch.setattr(LedgerState, "identity", property(lambda self: self.identities[0] if self.identities else None))
    read_ledger(tmp_path / "l")  # the planted bug: the first key for ever
