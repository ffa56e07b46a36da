"""Faults of a real deployment: partners lost, late, too few, of another version or time; full disks; large messages.

One federation goes through all of them, one after the other, and its run goes on: every test begins and ends with at
least a quorum there, and whatever it breaks is repaired by nobody but the processes themselves.
"""

from __future__ import annotations

import os
import re
import signal
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fault_setting import CONFIG, NAMES, QUORUM, Faulty, filled, in_memory, ledger_lines, prepare, soon
from slow_line import HERE, slow_line

from server.enrolment import revoke
from server.gate import CALLS, FLEET, LARGEST_BODY
from shared.config import ModelConfig
from shared.hazmat.key_files import PASSPHRASE_VARIABLE
from shared.privacy.ledger_audit import read_ledger
from simulations.one_machine import PASSPHRASE_FILE

pytestmark = pytest.mark.e2e
WAIT_S = 150.0
"""Long enough for a machine with other work to do; nothing here takes so long by itself."""
DISK = {"dora": "4m", "server": "96m"}
"""Folders that have a small disk of their own, where the test is root."""
LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
OTHER_PROTOCOL = "import shared.wire_frames\nshared.wire_frames.PROTOCOL = 7\n"


@pytest.fixture(scope="module")
def federation() -> Iterator[Faulty]:
    """Three of four partners, who were there before their coordinator was; dora is still to come."""
    with (
        tempfile.TemporaryDirectory(prefix="vf") as folder,  # short: sockets' paths
        in_memory(Path(folder), DISK),
        pytest.MonkeyPatch.context() as patch,
    ):
        made = prepare(Path(folder))
        patch.setenv(PASSPHRASE_VARIABLE, str(made.root / PASSPHRASE_FILE))
        first = NAMES[:QUORUM]
        try:
            made.start(*first)
            soon(lambda: all(made.troubles(name) for name in first), WAIT_S, "nodes that find nobody")
            made.start("server")
            yield made
        finally:
            made.stop()


def test_partners_that_were_there_before_the_coordinator_connect_once_it_is(federation: Faulty) -> None:
    """And a quorum makes the rounds, though the fourth partner was never started."""
    federation.wait_for_rounds(2, WAIT_S)
    assert federation.cohorts()[:2] == [QUORUM, QUORUM]
    for name in NAMES[:QUORUM]:
        assert re.search(
            "^Expected the coordinator at .*, nobody answers there.$", str(federation.troubles(name)[0]["why"])
        )


def test_a_node_of_another_protocol_is_refused_and_the_others_go_on(federation: Faulty, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OTHER_PROTOCOL)
    before = len(federation.rounds())
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    code, told = federation.node_alone("dora", {"PYTHONPATH": path})
    assert (code, told) == (45, "Expected a coordinator with protocol=7, got 1: install one version.")
    heard = "Expected a node with protocol=1, got 7: install one version."
    soon(lambda: heard in [event.get("why") for event in federation.events("server")], 30, "a word at the coordinator")
    federation.wait_for_rounds(before + 1, WAIT_S)


@pytest.mark.skipif(not Path(LIBFAKETIME).exists(), reason="no libfaketime here: see tests/unit/test_coordinator_link")
@pytest.mark.parametrize(("shift", "told"), [("+60s", r"got \+6\d s"), ("-3600s", r"got -35\d\d s|got -3600 s")])
def test_a_node_whose_clock_is_wrong_says_by_how_many_seconds(federation: Faulty, shift: str, told: str) -> None:
    federation.wait_for_rounds(1, WAIT_S)
    faked = {"LD_PRELOAD": LIBFAKETIME, "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    code, said = federation.node_alone("dora", faked)
    assert code == 10 and re.search(rf"^Expected a clock at most .*({told}): set the clock", said)


def test_a_request_over_the_limit_is_refused_at_the_gate_and_counted(federation: Faulty) -> None:
    federation.wait_for_rounds(1, WAIT_S)
    before = len(federation.rounds())
    context = ssl.create_default_context(cafile=str(federation.home / "ca.crt"))
    url = f"https://{federation.address}{FLEET}/{CALLS[4]}"

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(2**20)

    with httpx.Client(verify=context, timeout=60) as client:
        told = client.post(url, content=bytes(LARGEST_BODY + 1))
        assert (told.status_code, told.text) == (413, f"Expected a body of <= {LARGEST_BODY} bytes.")
        with suppress(httpx.TransportError):  # cut off while it still sends, so that it may not see the answer
            assert client.post(url, content=endless()).status_code == 413
    counted = "fleet 4xx"
    soon(lambda: federation.status()["tally"]["requests"].get(counted, 0) >= 2, 60, "two refusals in the count")
    federation.wait_for_rounds(before + 1, WAIT_S)


def test_a_partner_that_comes_in_the_middle_is_in_the_next_round(federation: Faulty) -> None:
    federation.start("dora")
    soon(lambda: "message" in federation.said("dora"), WAIT_S, "a node whose agent has answered")
    attempted = len(federation.rounds()) + len(federation.attempts())
    federation.wait_for_cohort(4, WAIT_S)
    # The round that was going on when it came, the one that it is in, and some in which its agent, on a machine that
    # has other things to do, still loads the model.
    assert len(federation.rounds()) + len(federation.attempts()) <= attempted + 5


def test_a_late_partner_is_left_out_and_disturbs_no_later_round(federation: Faulty) -> None:
    federation.gather(WAIT_S)
    (agent,) = federation.agents("dora")
    os.kill(agent, signal.SIGSTOP)
    try:
        federation.wait_for_cohort(3, WAIT_S)
    finally:
        os.kill(agent, signal.SIGCONT)
    failed = len(federation.attempts())
    federation.wait_for_cohort(4, WAIT_S)
    assert len(federation.attempts()) == failed


def test_below_the_quorum_attempts_are_counted_until_the_partners_are_back(federation: Faulty) -> None:
    federation.gather(WAIT_S)
    failed = len(federation.attempts())
    federation.lose("dora")
    lost = federation.wait_for_cohort(3, WAIT_S)
    assert lost["seconds"] < WAIT_S
    federation.lose("carl")
    federation.wait(lambda: len(federation.attempts()) >= failed + 2, WAIT_S, "two failed attempts")
    stood = len(federation.rounds())
    federation.start("carl", "dora")
    attempt = federation.attempts()[-1]
    assert (attempt["round"], attempt["family"]) == (stood + 1, "CohortTooSmallError")
    assert re.search(r"^Expected (answers|partners) >= 3.*, got 2\.$", attempt["why"])
    federation.wait_for_cohort(4, WAIT_S)
    assert len(federation.rounds()) > stood


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is made by root alone")
def test_a_partner_whose_disk_is_full_refuses_and_loses_nothing(federation: Faulty) -> None:
    federation.gather(WAIT_S)
    folder = federation.folder("dora")
    with filled(folder):
        began = len(federation.rounds())
        soon(lambda: federation.last_refusal("dora") == "LedgerError", WAIT_S, "a refusal")
        federation.wait_for_rounds(began + 2, WAIT_S)
        assert federation.cohorts()[-1] == 3
        kept, paid = ledger_lines(folder), read_ledger(folder / "ledger.jsonl").spent
        time.sleep(1.0)
        assert ledger_lines(folder) == kept
    federation.wait_for_cohort(4, WAIT_S)
    after = read_ledger(folder / "ledger.jsonl")
    assert ledger_lines(folder)[: len(kept)] == kept
    assert (after.spent, len(after.runs)) == (paid, 1)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is made by root alone")
def test_a_coordinator_whose_disk_is_full_goes_on_from_its_last_whole_round(federation: Faulty) -> None:
    federation.gather(WAIT_S)
    with filled(federation.home):
        held = len(federation.log("server"))
        full = "disk is full|No space left|run_failed"
        soon(lambda: bool(re.search(full, federation.log("server")[held:])), WAIT_S, "a disk that is full")
        assert federation.checkpoint_round() >= len(federation.rounds()) - 1
    stood = federation.checkpoint_round()
    federation.wait(lambda: len(federation.rounds()) > stood, WAIT_S, "a round after the disk was full")
    numbers = [record["round"] for record in federation.rounds()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_coordinator_that_is_stopped_leaves_no_process_and_goes_on_when_it_is_started(federation: Faulty) -> None:
    """A process of the run that were left behind would hold the run's lock, and no other could ever go on."""
    federation.wait_for_rounds(1, WAIT_S)
    (run,) = federation.of_coordinator("flwr-serverapp")
    os.kill(run, signal.SIGSTOP)  # as one that trains, or pauses between attempts, and asks nobody meanwhile
    federation.stop("server")
    with suppress(ProcessLookupError):
        os.kill(run, signal.SIGCONT)
    with suppress(AssertionError):
        soon(lambda: not federation.of_coordinator(), 10, "no process of the coordinator's")
    assert federation.left() == []
    stood = federation.checkpoint_round()
    federation.start("server")
    federation.wait_for_rounds(stood + 1, WAIT_S)
    numbers = [record["round"] for record in federation.rounds()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
@pytest.mark.soak
def test_a_revoked_partner_is_asked_no_more_and_its_node_does_not_spin(federation: Faulty) -> None:
    federation.gather(WAIT_S)
    revoke(federation.home, "dora")
    federation.wait_for_cohort(3, WAIT_S)
    before, began = federation.said("dora").count("started"), time.monotonic()
    federation.wait_for_rounds(len(federation.rounds()) + 2, WAIT_S)
    assert set(federation.cohorts()[-2:]) == {3}
    # Pauses double from 1 s on: 6 starts in 63 s, and one each half minute from then on.
    assert federation.said("dora").count("started") - before <= 7 + (time.monotonic() - began) / 30


@pytest.mark.slow
@pytest.mark.soak
def test_a_round_goes_over_a_slow_and_lossy_line(capsys: pytest.CaptureFixture[str]) -> None:
    """1 Mbit/s, and every twentieth packet lost, in each direction: with the default model, and all four needed."""
    config = CONFIG.model_copy(
        update={
            "model": ModelConfig(max_events=8),
            "training": CONFIG.training.model_copy(update={"rounds": 3}),
            "federation": CONFIG.federation.model_copy(update={"quorum": 4}),
        }
    )
    with slow_line() as line, tempfile.TemporaryDirectory(prefix="vf") as folder:
        made = prepare(Path(folder), config)
        made.move(HERE)
        made.at("anna", HERE)
        here, made.python = made.python, (*line.prefix, *made.python)
        try:
            made.start("anna")
            made.python = here
            made.start("server", *NAMES[1:])
            made.wait_for_rounds(3, 110.0)
        finally:
            made.stop()
        lost, packets = line.dropped()
        seconds = [round(record["seconds"], 1) for record in made.rounds()]
        size = made.rounds()[-1]["bytes_up"] + made.rounds()[-1]["bytes_down"]
        with capsys.disabled():
            print(f"\nslow line: seconds a round {seconds}, bytes of one {size}, packets lost {lost} of {packets}")
        assert made.cohorts() == [4] * len(seconds)
        assert 0.02 < lost / packets < 0.1
        assert seconds[-1] > 8 * size / 1.1e6, "the line was not slow"
