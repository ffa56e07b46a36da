"""What a partner keeps between two messages of a run: it comes back as it was, or not at all."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save
from test_attempts import full_after

from client.run_folder import RoundState, RunFolder
from shared.errors import IntegrityError, LedgerError
from shared.messages import NoisedSum, SignedPlan
from shared.model.prior import CollaborativePrior

STATE = RoundState(3, ("0" * 32, "1" * 32), SignedPlan('{"run_id": "run"}', bytes(range(64))), b"\x00secret\xff")
PRIOR = CollaborativePrior(np.linspace(-1, 1, 4, dtype=np.float32), np.eye(4, dtype=np.float32))
SUM = NoisedSum(np.array([-(2**40), -1, 0, 7, 2**31], dtype=np.int64), 0.1)
REQUEST = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "run")


def file(tmp_path: Path, name: str) -> Path:
    return tmp_path / "runs" / "run" / name


# --- the attempt ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [STATE, replace(STATE, session=None)], ids=["with a session", "without"])
def test_an_attempt_is_known_in_another_process(tmp_path: Path, folder: RunFolder, state: RoundState) -> None:
    assert folder.state() is None
    folder.keep_state(STATE)
    folder.keep_state(state)
    assert RunFolder(tmp_path / "runs" / "run").state() == state


def test_a_session_that_is_over_leaves_no_secret_on_the_disk(tmp_path: Path, folder: RunFolder) -> None:
    folder.keep_state(STATE)
    kept = file(tmp_path, "round.json")
    secret = json.loads(kept.read_text())["session"]
    folder.keep_state(replace(STATE, session=None))
    assert secret not in kept.read_text()
    assert [path.name for path in kept.parent.iterdir()] == ["round.json"]


def test_nobody_but_the_partner_reads_what_is_kept(tmp_path: Path, folder: RunFolder) -> None:
    folder.keep_state(STATE)
    folder.keep_prior(PRIOR)
    folder.keep_sum(REQUEST, SUM)
    kept = sorted((tmp_path / "runs" / "run").iterdir())
    assert [path.name for path in kept] == ["prior.safetensors", "round.json", "sum"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


TOLD = {"round": 1, "attempts": ["0" * 32], "text": "", "signature": "", "session": None}


@pytest.mark.parametrize("key", sorted(TOLD))
def test_a_state_without_one_of_its_parts_is_none(tmp_path: Path, folder: RunFolder, key: str) -> None:
    assert set(TOLD) == {"round", "attempts", "text", "signature", "session"}
    assert {field.name for field in fields(RoundState)} == {"round", "attempts", "signed", "session"}
    folder.keep_state(STATE)
    file(tmp_path, "round.json").write_text(json.dumps({name: TOLD[name] for name in TOLD if name != key}))
    with pytest.raises(IntegrityError, match="Expected the state of a round"):
        folder.state()


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"3", b"\xff", b"[" * 100_000, b'"x"'])
def test_a_state_that_was_not_written_here_is_none(tmp_path: Path, folder: RunFolder, data: bytes) -> None:
    folder.keep_state(STATE)
    file(tmp_path, "round.json").write_bytes(data)
    with pytest.raises(IntegrityError, match="Expected the state of a round"):
        folder.state()


json_values: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@example("round", float("inf"))
@given(st.sampled_from(sorted(TOLD)), json_values)
def test_any_value_of_any_part_is_read_or_refused_in_one_way(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "round.json").write_text(json.dumps({**TOLD, key: value}))
    try:
        state = RunFolder(folder).state()
    except IntegrityError:
        return
    assert isinstance(state, RoundState)


# --- the noised sum -------------------------------------------------------------------------------


@pytest.mark.parametrize("noised", [SUM, replace(SUM, loss=None), replace(SUM, values=SUM.values[:0])])
def test_a_noised_sum_comes_back_to_the_bit(tmp_path: Path, folder: RunFolder, noised: NoisedSum) -> None:
    digest = folder.keep_sum(REQUEST, noised)
    kept = RunFolder(tmp_path / "runs" / "run").kept_sum(REQUEST, digest)
    assert kept is not None and kept.values.dtype == np.int64 and kept.loss == noised.loss
    np.testing.assert_array_equal(kept.values, noised.values)


def test_a_noised_sum_is_given_out_for_its_own_request_and_digest_alone(folder: RunFolder) -> None:
    digest = folder.keep_sum(REQUEST, SUM)
    assert folder.kept_sum("cd" * 32, digest) is None
    assert folder.kept_sum(REQUEST, "0" * 64) is None
    later = folder.keep_sum(REQUEST, NoisedSum(SUM.values + 1))
    assert later != digest
    assert folder.kept_sum(REQUEST, digest) is None


def test_a_sum_whose_values_were_changed_on_the_disk_is_not_given_out(tmp_path: Path, folder: RunFolder) -> None:
    digest = folder.keep_sum(REQUEST, SUM)
    data = bytearray(file(tmp_path, "sum").read_bytes())
    data[-1] ^= 1
    file(tmp_path, "sum").write_bytes(data)
    assert folder.kept_sum(REQUEST, digest) is None


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a sum"),
        lambda path: path.write_bytes(save({"values": SUM.values})),
        lambda path: path.write_bytes(save({"other": SUM.values}, {"request": REQUEST, "loss": ""})),
        lambda path: path.write_bytes(save({"values": SUM.values}, {"request": REQUEST})),
        lambda path: path.write_bytes(save({"values": SUM.values}, {"request": REQUEST, "loss": "much"})),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
    ],
    ids=["gone", "empty", "text", "no request", "no values", "no loss", "a word for loss", "cut off"],
)
def test_a_sum_that_is_not_whole_is_not_given_out(
    tmp_path: Path, folder: RunFolder, spoil: Callable[[Path], object]
) -> None:
    digest = folder.keep_sum(REQUEST, SUM)
    spoil(file(tmp_path, "sum"))
    assert folder.kept_sum(REQUEST, digest) is None


# --- the prior ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [PRIOR, replace(PRIOR, item_to_item=None)], ids=["hybrid", "popularity"])
def test_the_prior_is_still_known_in_another_process(
    tmp_path: Path, folder: RunFolder, prior: CollaborativePrior
) -> None:
    assert folder.prior() is None
    folder.keep_prior(prior)
    known = RunFolder(tmp_path / "runs" / "run").prior()
    assert known is not None and known.arrays().keys() == prior.arrays().keys()
    for name, array in prior.arrays().items():
        np.testing.assert_array_equal(known.arrays()[name], array)


def test_the_prior_of_another_run_does_not_count(tmp_path: Path, folder: RunFolder) -> None:
    folder.keep_prior(PRIOR)
    assert RunFolder(tmp_path / "runs" / "other").prior() is None


@pytest.mark.parametrize("data", [b"", b"not a prior", save({"users": np.zeros(1)}), save({})])
def test_a_kept_prior_that_is_none_is_refused(tmp_path: Path, folder: RunFolder, data: bytes) -> None:
    folder.keep_prior(PRIOR)
    file(tmp_path, "prior.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="Expected the prior of a run"):
        folder.prior()


def test_on_a_full_disk_what_was_kept_stays_and_the_error_is_one_of_the_ledger(
    tmp_path: Path, folder: RunFolder
) -> None:
    folder.keep_state(STATE)
    kept = file(tmp_path, "round.json").read_bytes()
    keeps: list[Callable[[], object]] = [
        lambda: folder.keep_state(replace(STATE, round=4)),
        lambda: folder.keep_sum(REQUEST, SUM),
        lambda: folder.keep_prior(PRIOR),
        lambda: folder.secret(REQUEST),
    ]
    for keep in keeps:
        with full_after(10), pytest.raises(LedgerError, match=r"^Expected to keep [a-z.]+ of a run, got OSError: File"):
            keep()
    assert [entry.name for entry in (tmp_path / "runs" / "run").iterdir()] == ["round.json"]
    assert file(tmp_path, "round.json").read_bytes() == kept
