"""Audit canaries at a partner: what it allows, what its ledger is bound to, and when the seed is told."""

from __future__ import annotations

import base64
import json
import math
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
from ledgers import KEY, asked, digest, forge, refused, silent
from partner_setting import (
    CONFIG,
    NO_PRIOR,
    Federation,
    begin,
    changed,
    entries,
    keys,
    paid,
    simulated_premises,
)
from partner_setting import refused as refused_by

from client.audit_canaries import SEED_BYTES, CanarySeed, Reveal, commitment_of, direction, reveal
from client.audit_command import audit_canaries
from client.learner import Learner
from client.premises import Premises
from shared.config import AuditConfig, RunConfig
from shared.errors import ConfigError, DataError, LedgerError, PolicyViolationError, ReplayError
from shared.privacy.accounting import build_plan
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_audit import read_ledger, verify_ledger
from shared.privacy.ledger_entries import Commitment, Declaration, Genesis
from shared.requests import ConsentRequest, Model, SumRequest
from shared.wire_answers import pack_answer

SEED = bytes(range(SEED_BYTES))
CANARIES = 20
AUDITED = replace(plans.PLAN, rounds=3, canaries=CANARIES)
BOUND = Commitment("run", CANARIES, commitment_of(SEED))


def with_canaries(config: RunConfig, canaries: int = CANARIES) -> RunConfig:
    return config.model_copy(update={"audit": AuditConfig(canaries=canaries)})


REAL = with_canaries(changed(CONFIG, NO_PRIOR))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of text vectors: BERT reads the catalogue once."""
    return tmp_path_factory.mktemp("cache") / "vectors.sqlite"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Learner:
    return Learner(simulated_premises(tmp_path_factory.mktemp("simulated"), cache), "cpu")


# --- the agent ------------------------------------------------------------------------------------


def make(root: Path, cache: Path, config: RunConfig = REAL, *, allow: bool = True) -> Federation:
    return Federation.of(root, config=config, cache=cache, max_epsilon=20.0, allow_audit_canaries=allow)


@pytest.fixture
def federation(tmp_path: Path, cache: Path) -> Federation:
    return make(tmp_path, cache)


@pytest.fixture(scope="module")
def model(simulated: Learner) -> Model:
    return begin(simulated, REAL)


def seed_file(federation: Federation) -> Path:
    return federation.folder / "runs" / "run" / "audit-seed"


def kept_seed(federation: Federation) -> bytes:
    return bytes.fromhex(seed_file(federation).read_text())


def bound(federation: Federation) -> str:
    run = federation.agent().ledger.run("run")
    assert run is not None and run.audit is not None
    return run.audit.commitment


def play(federation: Federation, model: Model, number: int = 1) -> Any:
    return federation.play(federation.training(number, model), model=model)


def test_a_partner_with_real_data_refuses_canaries_that_it_did_not_allow(tmp_path: Path, cache: Path) -> None:
    refusing = make(tmp_path, cache, allow=False)
    ask = keys(refusing, refusing.order(1, "train"))
    refused_by(refusing, PolicyViolationError, r"Expected audit\.canaries <= 0, got 20", ask)


def test_more_canaries_than_the_model_tells_apart_are_refused_before_anything_is_paid(
    tmp_path: Path, cache: Path
) -> None:
    config = with_canaries(CONFIG, 63)  # 24,961 parameters, four partners; the prior's round comes first
    many = make(tmp_path, cache, config)
    refused_by(many, PolicyViolationError, "Expected canaries <= 62 at each of 4 partners", keys(many, many.order()))
    assert entries(many) == ["genesis"]


def test_the_seed_is_on_the_disk_before_the_ledger_is_bound_and_that_before_the_round(
    federation: Federation, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, list[str]]] = []
    commit = Ledger.commit

    def spied(self: Ledger, commitment: Commitment) -> None:
        seen.append((seed_file(federation).exists(), entries(federation)))
        commit(self, commitment)

    monkeypatch.setattr(Ledger, "commit", spied)
    play(federation, model).finish()
    assert seen == [(True, ["genesis", "plan"])]
    assert entries(federation) == ["genesis", "plan", "audit", "reserve", "release", "open"]
    assert stat.S_IMODE(seed_file(federation).stat().st_mode) == 0o600
    seed = kept_seed(federation)
    assert commitment_of(seed) == bound(federation) and len(seed) == SEED_BYTES
    play(federation, model, 2).finish()
    assert entries(federation).count("audit") == 1 and kept_seed(federation) == seed


def test_the_canaries_of_the_seed_are_in_what_is_released(federation: Federation, model: Model) -> None:
    """All of them (q = 1), under this partner's share of the noise: 5 standard errors, missed once in 3 million."""
    total = play(federation, model).finish() * build_plan(REAL).step("train") / REAL.privacy.clip_norm
    found = [direction(kept_seed(federation), number, len(total)) @ total for number in range(CANARIES)]
    share = 3.0 / math.sqrt(3)
    assert abs(np.mean(found) - 1) < 5 * math.sqrt((share**2 + 0.01) / CANARIES)


def crash_once(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    real, calls = getattr(owner, name), list[int]()

    def crashing(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return real(*given, **named)
        if after:
            real(*given, **named)
        raise RuntimeError("the power failed")

    monkeypatch.setattr(owner, name, crashing)


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (CanarySeed, "keep", False),
        (CanarySeed, "keep", True),
        (Ledger, "commit", False),
        (Ledger, "commit", True),
        (Ledger, "reserve", True),
    ],
)
def test_a_partner_that_crashed_goes_on_with_the_same_seed(
    federation: Federation, model: Model, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    crash_once(owner, name, monkeypatch, after=after)
    first = play(federation, model)
    first.to(SumRequest)
    with pytest.raises(RuntimeError):
        first.step()
    before = kept_seed(federation) if seed_file(federation).exists() else None
    assert (before is None) == (owner is CanarySeed and not after)
    play(federation, model).finish()
    assert before in (None, kept_seed(federation))
    assert commitment_of(kept_seed(federation)) == bound(federation)
    assert entries(federation) == ["genesis", "plan", "audit", "reserve", "release", "open"]


@pytest.mark.parametrize("how", ["lost", "another", "torn"])
def test_a_seed_that_is_not_the_one_of_the_ledger_is_not_replaced(
    federation: Federation, model: Model, how: str
) -> None:
    play(federation, model).finish()
    if how == "lost":
        seed_file(federation).unlink()
    else:
        seed_file(federation).write_text({"another": SEED.hex(), "torn": "00ff"}[how])
    again = play(federation, model, 2)
    again.to(SumRequest)
    refused_by(federation, LedgerError, r"Expected .* to hold the seed of the audit canaries", again.step)


def spellings(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), base64.b64encode(secret)]


def blobs(content: Any) -> list[bytes]:
    arrays = [array.data for record in content.array_records.values() for array in record.values()]
    return arrays + [v for record in content.config_records.values() for v in record.values() if isinstance(v, bytes)]


def test_neither_seed_nor_direction_is_in_a_message_or_in_another_file(federation: Federation, model: Model) -> None:
    done = play(federation, model)
    done.finish()
    seed = kept_seed(federation)
    unit = direction(seed, 0, 24_961)[:4]
    secrets = [*spellings(seed), unit.tobytes(), unit.astype("<f4").tobytes()]
    packed = [pack_answer(answer) for answer in done.answers]
    sent = [repr(content).encode() for content in packed] + [data for content in packed for data in blobs(content)]
    others = [f.read_bytes() for f in federation.folder.rglob("*") if f.is_file() and f != seed_file(federation)]
    assert len(packed) == 5 and len(others) > 5
    assert not [secret for secret in secrets for data in (*sent, *others) if secret in data]
    # The search finds what is there: in the one file that holds it.
    assert [secret for secret in secrets if secret in seed_file(federation).read_bytes()] == [seed.hex().encode()]


# --- the seed is told after the run ---------------------------------------------------------------


def told(federation: Federation) -> Reveal:
    return reveal(Premises.open(federation.folder), "run")


def test_the_seed_is_told_after_the_last_round_is_opened_and_no_earlier(
    federation: Federation, model: Model, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="Expected a run with audit canaries"):
        told(federation)
    play(federation, model).finish()
    last = play(federation, model, 2)
    with pytest.raises(ReplayError, match="1 of 2 rounds released here and 1 opened"):
        told(federation)
    last.to(ConsentRequest)
    with pytest.raises(ReplayError, match="2 of 2 rounds released here and 1 opened"):
        told(federation)
    last.finish()
    before = paid(federation)
    audit_canaries(federation.folder, "run")
    found = Reveal(**json.loads(capsys.readouterr().out))
    assert found == told(federation) and (found.partner, found.canaries) == ("partner-000", CANARIES)
    assert commitment_of(bytes.fromhex(found.seed)) == found.commitment == bound(federation)
    out = tmp_path / "reveal.json"
    audit_canaries(federation.folder, "run", out=out)
    assert Reveal(**json.loads(out.read_text())) == found
    with pytest.raises(ConfigError, match="Expected a new file"):
        audit_canaries(federation.folder, "run", out=out)
    assert paid(federation) == before


def test_a_run_without_canaries_has_no_seed_to_tell(tmp_path: Path, cache: Path, model: Model) -> None:
    plain = make(tmp_path, cache, changed(CONFIG, NO_PRIOR))
    play(plain, model).finish()
    assert "audit" not in entries(plain)
    with pytest.raises(DataError, match="Expected a run with audit canaries"):
        told(plain)


# --- the ledger -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    made = Ledger(path, KEY)
    made.declare("run", AUDITED, 3.0, 8.0, 1e-4)
    return made


def test_a_round_with_canaries_needs_them_in_the_ledger_first(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(1, "prior", plan=AUDITED))  # the prior's sum has none
    message = "Expected the plan's audit canaries to be committed to before round=2"
    refused(path, ReplayError, message, lambda: ledger.reserve(asked(2, plan=AUDITED)))
    ledger.check(asked(2, plan=AUDITED), AUDITED, 3.0, 8.0, 1e-4)  # the agent commits in between
    ledger.commit(BOUND)
    ledger.reserve(asked(2, plan=AUDITED))


BAD: list[tuple[Commitment, type[Exception], str]] = [
    (replace(BOUND, run_id="other"), ReplayError, "Expected a declared run before its audit canaries"),
    (replace(BOUND, canaries=21), PolicyViolationError, "canaries=20 as in the declared plan, got 21"),
    (replace(BOUND, canaries=0), PolicyViolationError, "canaries=20 as in the declared plan, got 0"),
    (replace(BOUND, commitment="no digest"), LedgerError, "Expected the fields of a audit entry, got commitment"),
]


@pytest.mark.parametrize(("commitment", "family", "message"), BAD, ids=[bad[2] for bad in BAD])
def test_a_commitment_that_is_not_the_plan_s_is_refused(
    ledger: Ledger, path: Path, commitment: Commitment, family: Any, message: str
) -> None:
    refused(path, family, message, lambda: ledger.commit(commitment))


def test_a_run_is_bound_once(ledger: Ledger, path: Path) -> None:
    ledger.commit(BOUND)
    silent(path, lambda: ledger.commit(BOUND))
    other = replace(BOUND, commitment=commitment_of(bytes(SEED_BYTES)))
    refused(path, ReplayError, "Expected one set of audit canaries a run", lambda: ledger.commit(other))
    ledger.reserve(asked(2, plan=AUDITED))
    refused(path, ReplayError, "Expected one set of audit canaries a run", lambda: ledger.commit(other))


def test_a_run_without_canaries_is_not_bound_to_any(path: Path) -> None:
    plain = Ledger(path, KEY)
    plain.declare("run", plans.PLAN, 3.0, 8.0, 1e-4)
    refused(path, PolicyViolationError, "canaries=0 as in the declared plan", lambda: plain.commit(BOUND))


def test_a_partner_that_binds_itself_afterwards_is_found_out_by_who_reads_the_ledger(path: Path) -> None:
    plan = Declaration("run", AUDITED.told(), AUDITED.digest(), 3.0, AUDITED.delta, 8.0, 1e-4)
    forge(path, Genesis("0" * 32, KEY.public.text), plan, asked(2, plan=AUDITED), BOUND)
    with pytest.raises(LedgerError, match="line 3: Expected the plan's audit canaries to be committed to"):
        read_ledger(path)


def test_who_reads_the_ledger_is_told_of_the_canaries(
    ledger: Ledger, path: Path, veilrec: Callable[..., tuple[int, str, str]]
) -> None:
    ledger.commit(BOUND)
    (run,) = verify_ledger(path, accountant=lambda *_: 3.0).runs
    assert (run.canaries, run.commitment, run.finished) == (CANARIES, BOUND.commitment, False)
    code, out, _ = veilrec("ledger", "show", str(path))
    assert code == 0
    assert f"run run: 20 audit canaries in each step, seed committed to as {BOUND.commitment}" in out


def test_the_commitment_is_in_the_chain(ledger: Ledger, path: Path) -> None:
    ledger.commit(BOUND)
    path.write_bytes(path.read_bytes().replace(BOUND.commitment.encode(), digest("other").encode()))
    with pytest.raises(LedgerError, match="line 3: Expected hash="):
        read_ledger(path)
