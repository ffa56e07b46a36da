"""When answers are waited for, and when no longer; what is late or refused makes no quorum and disturbs nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from server import prompt_grid as module
from server.prompt_grid import LOOK_S, PromptGrid
from shared.wire_frames import pack_error

SUM = RecordDict({"sum": ConfigRecord({"n": 1})})


@pytest.fixture(autouse=True)
def coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower lets the process of a run alone make messages."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@dataclass
class Later(Grid):
    """A grid whose nodes answer after so many seconds, with so much; who is not named never does."""

    answers: dict[int, tuple[float, RecordDict | Error]] = field(default_factory=dict)
    full: frozenset[int] = frozenset()
    sent: list[Message] = field(default_factory=list)
    at_once: int = 0
    _due: dict[str, tuple[float, Message]] = field(default_factory=dict)
    _run: Run = field(default_factory=lambda: Run.create_empty(1))

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: object, **__: object) -> Message:
        raise AssertionError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids, given = [], list(messages)
        self.at_once = max(self.at_once, len(given))
        for message in given:
            self.sent.append(message)
            node, message_id = message.metadata.dst_node_id, f"m{len(self.sent)}"
            if node in self.full:
                ids.append("")
                continue
            message.metadata.__dict__["_message_id"] = message_id
            if node in self.answers:
                seconds, content = self.answers[node]
                self._due[message_id] = (time.monotonic() + seconds, Message(content, reply_to=message))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        now = time.monotonic()
        come = [each for each in sorted(message_ids) if each in self._due and self._due[each][0] <= now]
        return [self._due.pop(each)[1] for each in come]

    def send_and_receive(self, *_: object, **__: object) -> Iterable[Message]:
        raise AssertionError("Flower's own wait is not to be used")


def asked(grid: Grid, nodes: Iterable[int] = (1, 2, 3, 4), timeout: float | None = 1.0) -> tuple[list[int], float]:
    """The nodes whose answers came, in the order in which they came, and after how many seconds it was over."""
    began = time.monotonic()
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]
    replies = [reply.metadata.src_node_id for reply in grid.send_and_receive(messages, timeout=timeout)]
    return replies, time.monotonic() - began


def prompt(later: Later, **more: float) -> PromptGrid:
    return PromptGrid(later, **{"enough": 3, "look_s": 0.005, **more})  # type: ignore[arg-type]


def test_it_is_over_as_soon_as_all_have_answered() -> None:
    grid = prompt(Later({node: (0.02 * node, SUM) for node in (1, 2, 3, 4)}))
    nodes, seconds = asked(grid, timeout=None)
    assert nodes == [1, 2, 3, 4] and 0.08 <= seconds < 0.5


def test_once_a_quorum_has_answered_the_rest_have_the_grace_and_no_more() -> None:
    answers = {1: (0.0, SUM), 2: (0.0, SUM), 3: (0.05, SUM), 4: (9.0, SUM)}
    nodes, seconds = asked(prompt(Later(answers), grace_s=0.1), timeout=5.0)
    assert nodes == [1, 2, 3] and 0.15 <= seconds < 0.6
    answers[4] = (0.1, SUM)
    assert asked(prompt(Later(answers), grace_s=0.2), timeout=5.0)[0] == [1, 2, 3, 4]


def test_without_a_quorum_the_whole_time_out_is_waited() -> None:
    answers = {1: (0.0, SUM), 2: (0.0, SUM), 3: (0.2, SUM)}
    nodes, seconds = asked(prompt(Later(answers), grace_s=0.01), timeout=0.1)
    assert nodes == [1, 2] and seconds >= 0.1
    assert asked(prompt(Later(answers), grace_s=0.01), timeout=1.0)[0] == [1, 2, 3]


def test_a_grace_never_outlasts_the_time_out() -> None:
    nodes, seconds = asked(prompt(Later({1: (0.0, SUM)}), enough=1, grace_s=9.0), timeout=0.1)
    assert nodes == [1] and seconds < 0.6


@pytest.mark.parametrize("no_answer", [pack_error("PolicyViolationError"), Error(5, "gone")])
def test_a_refusal_or_a_lost_node_makes_no_quorum(no_answer: RecordDict | Error) -> None:
    """Or a partner that refuses at once would cut off those who are still at work."""
    answers = {1: (0.0, SUM), 2: (0.0, SUM), 3: (0.0, no_answer), 4: (0.3, SUM)}
    nodes, _ = asked(prompt(Later(answers), grace_s=0.05), timeout=5.0)
    assert nodes[-1] == 4 and sorted(nodes[:3])[:2] == [1, 2]


def test_a_late_answer_is_not_one_to_a_later_question() -> None:
    later = Later({1: (0.0, SUM), 2: (0.0, SUM), 3: (0.0, SUM), 4: (0.15, SUM)})
    grid = prompt(later, grace_s=0.05)
    assert asked(grid)[0] == [1, 2, 3]
    later.answers[4] = (0.02, pack_error("ReplayError"))
    time.sleep(0.15)  # the late one is there by now
    began = time.monotonic()
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1, 2, 3, 4)]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=1.0)}
    assert "error" in replies[4].content and time.monotonic() - began < 0.5


def test_a_message_that_the_superlink_does_not_take_is_not_waited_for_longer_than_the_rest() -> None:
    later = Later(dict.fromkeys((1, 2, 3, 4), (0.0, SUM)), full=frozenset({4}))
    nodes, seconds = asked(prompt(later, grace_s=0.05), timeout=5.0)
    assert nodes == [1, 2, 3] and seconds < 0.6


def test_messages_are_sent_one_at_a_time() -> None:
    later = Later(dict.fromkeys((1, 2, 3, 4), (0.0, SUM)))
    asked(prompt(later))
    assert later.at_once == 1 and len(later.sent) == 4


def test_a_silent_node_is_asked_again_and_its_two_answers_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    later = Later({1: (0.0, SUM), 2: (0.0, SUM), 3: (0.12, SUM)})
    nodes, seconds = asked(prompt(later), nodes=(1, 2, 3), timeout=2.0)
    assert nodes == [1, 2, 3] and seconds < 0.6
    again = [message.metadata.dst_node_id for message in later.sent[3:]]
    assert again and set(again) == {3} and len(again) <= 2  # after 0.05 and 0.15 s


def test_a_lost_question_is_made_good_by_asking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)

    class Loses(Later):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            lost = len(self.sent) == 2
            ids = list(super().push_messages(messages))
            if lost:
                self._due.pop(ids[0], None)
            return ids

    nodes, _ = asked(prompt(Loses(dict.fromkeys((1, 2, 3), (0.0, SUM)))), nodes=(1, 2, 3), timeout=2.0)
    assert sorted(nodes) == [1, 2, 3]


def test_flowers_grid_looks_for_the_parts_of_an_answer_as_often() -> None:
    assert http_grid.pull_objects.keywords["initial_backoff"] == LOOK_S  # type: ignore[attr-defined]


def test_all_else_is_the_grids_own() -> None:
    later = Later({1: (0.0, SUM)})
    grid, run = prompt(later), Run.create_empty(9)
    grid.set_run(run)
    assert later.run is run and grid.run is run and list(grid.get_node_ids()) == [1]
