"""Flower's grid, asked more often: its own waits three seconds between two looks for answers.

A masked round has five exchanges, so that Flower's pauses alone would cost 15 s of every round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import partial

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import Run
from flwr.superlink.grid import http_grid

from shared.wire import payload_bytes
from shared.wire_frames import ERROR

LOOK_S = 0.1
AGAIN_S = 20.0
"""Until a question is put again to a node that is silent, at first."""
LARGEST_KEPT = 16 * 2**20
"""Bytes of a message that is kept to be sent again: a large catalogue's prior, for fifty partners, is gigabytes."""
# An answer is seen before its parts have come, and Flower then waits a second before it looks for them again: with
# four partners that alone is most of a round. Its grid takes no other pause, so it is given one here.
http_grid.pull_objects = partial(pull_objects, initial_backoff=LOOK_S, backoff_cap=2.0)  # type: ignore[attr-defined]


class PromptGrid(Grid):
    """The grid of a SuperLink or of Ray, with a wait of its own for answers.

    Parameters
    ----------
    grid : Grid
    enough : int
        Answers after which only `grace_s` is waited for the rest.
    grace_s : float
        Seconds.
    look_s : float
        Between two looks.
    """

    def __init__(self, grid: Grid, *, enough: int, grace_s: float = math.inf, look_s: float = LOOK_S) -> None:
        self._grid, self._enough, self._grace_s, self._look_s = grid, enough, grace_s, look_s

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; Flower deprecates this in favour of the constructor."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; one at a time, as a request of all of them could be larger than the SuperLink takes."""
        sent = (self._grid.push_messages([message]) for message in messages)
        return [message_id for ids in sent for message_id in ids if message_id]  # none: the SuperLink did not take it

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that have come."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and wait for the answers; of nodes that were lost an error without content comes instead.

        Parameters
        ----------
        timeout : float, optional
            Seconds. None waits for ever.
        """
        waiting, answers = [_Asked(self._grid, message) for message in messages], 0
        until = math.inf if timeout is None else time.monotonic() + timeout
        while waiting:
            by_id = {message_id: asked for asked in waiting for message_id in asked.ids}
            for reply in list(self.pull_messages(set(by_id))):
                asked = by_id.get(reply.metadata.reply_to_message_id)
                if asked not in waiting:
                    continue  # it was asked again, and has answered both
                waiting.remove(asked)
                answers += reply.has_content() and ERROR not in reply.content  # a refusal makes no quorum
                yield reply
            if answers >= self._enough:
                until = min(until, time.monotonic() + self._grace_s)
            if not waiting or time.monotonic() >= until:
                return
            time.sleep(self._look_s)
            for asked in waiting:
                asked.again()


class _Asked:
    """A question to one node, which is put again while no answer comes.

    A SuperLink hands a message out once, so that it is lost with a node that is killed before it has written it down.
    Asked twice, an agent gives the same answer (`client.answer_book`).
    """

    def __init__(self, grid: Grid, message: Message) -> None:
        self._grid, self._again_s = grid, AGAIN_S
        self.ids = self._sent(message)
        self._message = message if payload_bytes(message.content) <= LARGEST_KEPT else None
        self._next = time.monotonic() + self._again_s

    def again(self) -> None:
        """Put it again if it is time to; each time the pause is doubled, as whoever trains may be busy for long."""
        if self._message is None or time.monotonic() < self._next:
            return
        self._again_s *= 2
        self._next = time.monotonic() + self._again_s
        told = self._message.metadata
        self.ids += self._sent(
            Message(
                self._message.content,
                dst_node_id=told.dst_node_id,
                message_type=told.message_type,
                group_id=told.group_id,
            )
        )

    def _sent(self, message: Message) -> list[str]:
        return [message_id for message_id in self._grid.push_messages([message]) if message_id]
