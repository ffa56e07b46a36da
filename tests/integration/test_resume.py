"""A run that is killed, wherever, and resumed ends as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run_setting import (
    EXCHANGES,
    ROUNDS,
    Document,
    Killed,
    killed_after,
    round_of,
    rounds,
    same_run,
)

import server.app
import simulations.simulate
from client.agent import PartnerAgent, agent_for
from client.run_folder import RunFolder
from server.receipts import ReceiptBook
from shared.privacy.ledger import Ledger
from shared.requests import Answer, OpenRequest, Request, SumRequest
from simulations.simulate import resume, run

if TYPE_CHECKING:
    from conftest import Done, Start


def killed_during(
    number: int, patch: pytest.MonkeyPatch, exchange: type[Request] = SumRequest, answered: bool = False
) -> None:
    """When one partner has answered and the next is at work, or has `answered` and is not heard."""
    answer = PartnerAgent.answer

    def die(self: PartnerAgent, request: Request) -> Answer:
        now = isinstance(request, exchange) and self.premises.name == "partner-001"
        if now and round_of(self, request) == number:
            if answered:
                answer(self, request)
            raise Killed
        return answer(self, request)

    patch.setattr(PartnerAgent, "answer", die)


def killed_before_telling(number: int, patch: pytest.MonkeyPatch) -> None:
    """When the checkpoint is safe and ``rounds.jsonl`` is not yet written."""
    write_lines = server.app.write_lines  # type: ignore[attr-defined]

    def die(path: Path, rows: list[Document]) -> None:
        if rows[-1]["round"] == number:
            raise Killed
        write_lines(path, rows)

    patch.setattr(server.app, "write_lines", die)


def killed_once_done(owner: type, name: str, times: int, patch: pytest.MonkeyPatch) -> None:
    """As soon as a method has been called so many times."""
    method, left = getattr(owner, name), [times]

    def die(self: Any, *told: Any, **named: Any) -> Any:
        result = method(self, *told, **named)
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return result

    patch.setattr(owner, name, die)


def killed_and_resumed(begin: Start, whole: Done, out: Path, kill: Callable[[pytest.MonkeyPatch], None]) -> None:
    simulation = begin(out)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            run(simulation, show=False)
    assert not (out / "run.json").exists()
    agent_for.cache_clear()
    same_run(out, run(resume(out), show=False), whole)


@pytest.mark.parametrize(
    ("kill", "number"),
    [
        *((kill, number) for kill in (killed_after, killed_during) for number in ROUNDS),
        *((killed_before_telling, number) for number in (ROUNDS[0], ROUNDS[-1])),
    ],
)
def test_a_run_that_was_killed_and_resumed_ends_as_one_that_was_not(
    begin: Start, whole: Done, tmp_path: Path, kill: Callable[[int, pytest.MonkeyPatch], None], number: int
) -> None:
    killed_and_resumed(begin, whole, tmp_path / "run", lambda patch: kill(number, patch))


@pytest.mark.parametrize(
    ("exchange", "answered"),
    [
        *((exchange, False) for exchange in EXCHANGES if exchange is not SumRequest),  # that one is above
        *((exchange, True) for exchange in (SumRequest, OpenRequest)),
    ],
)
def test_a_run_that_was_killed_in_any_exchange_ends_as_one_that_was_not(
    begin: Start, whole: Done, tmp_path: Path, exchange: type[Request], answered: bool
) -> None:
    killed_and_resumed(begin, whole, tmp_path / "run", lambda patch: killed_during(3, patch, exchange, answered))


@pytest.mark.parametrize(
    ("owner", "name", "times"),
    [
        *((Ledger, name, 8) for name in ("reserve", "release", "open")),
        (RunFolder, "keep_sum", 8),
        (RunFolder, "keep_state", 37),
        (ReceiptBook, "add", 3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_run_that_was_killed_between_two_writes_ends_as_one_that_was_not(
    begin: Start, whole: Done, tmp_path: Path, owner: type, name: str, times: int
) -> None:
    """The eighth payment, say, is that of the second partner in round 3."""
    killed_and_resumed(begin, whole, tmp_path / "run", lambda patch: killed_once_done(owner, name, times, patch))


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    begin: Start, whole: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    begin(out)
    for number in ROUNDS:
        with monkeypatch.context() as patch:
            killed_after(number, patch)
            with pytest.raises(Killed):
                run(resume(out), show=False)
        agent_for.cache_clear()
        assert [record["round"] for record in rounds(out)] == list(range(1, number + 1))
    same_run(out, run(resume(out), show=False), whole)


def test_a_finished_run_can_be_evaluated_again(
    begin: Start, whole: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(simulations.simulate, "evaluate_run", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(begin(out), show=False)
    same_run(out, run(resume(out), show=False), whole)


def test_a_start_that_was_cut_short_can_be_made_again(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(simulations.simulate, "write_json", die)
        with pytest.raises(Killed):
            begin(tmp_path / "run")
    assert begin(tmp_path / "run").workspace.partners == 3
