"""Micro-batching: what arrives while the device is busy is answered together, by the one thread that owns it.

Nobody waits for company: a request that finds the device idle is answered at once and alone.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared.errors import RankingError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class BusyError(RankingError):
    """Too many requests are waiting, or the service is going down."""


@dataclass(frozen=True, slots=True)
class _Job(Generic[Asked, Answer]):
    asked: Sequence[Asked]
    answered: Future[list[Answer]]


@dataclass(frozen=True, slots=True)
class _Work:
    """Something else that needs the device: done by itself, in its turn."""

    work: Callable[[], Any]
    answered: Future[Any]

    def run(self) -> None:
        if not self.answered.set_running_or_notify_cancel():
            return
        try:
            self.answered.set_result(self.work())
        except Exception as error:  # as with batches: the thread must live on
            self.answered.set_exception(error)


class Batcher(Generic[Asked, Answer]):
    """A thread that answers batches.

    Parameters
    ----------
    answer : callable
        Takes the requests of a batch, gives as many answers. It runs in one thread, one batch after the other.
    most : int
        Requests in a batch, unless one caller brings more.
    waiting : int
        Callers that may wait; the next is refused.
    observe : callable, optional
        Called with the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list[Asked]], Sequence[Answer]],
        *,
        most: int = 64,
        waiting: int = 512,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer, self._most, self._observe = answer, most, observe
        self._jobs: queue.Queue[_Job[Asked, Answer] | _Work | None] = queue.Queue(maxsize=waiting)
        self._closing = self._ended = False
        self._held: _Job[Asked, Answer] | _Work | None = None
        self._thread = threading.Thread(target=self._work, name="ranking", daemon=True)
        self._thread.start()

    async def ask(self, asked: Sequence[Asked]) -> list[Answer]:
        """The answers to `asked`, in their order.

        Raises
        ------
        BusyError
            If too many wait already, or `close` was called.
        """
        return await asyncio.wrap_future(self.submit(asked))

    def submit(self, asked: Sequence[Asked]) -> Future[list[Answer]]:
        """The same without waiting."""
        job: _Job[Asked, Answer] = _Job(asked, Future())
        self._put(job)
        return job.answered

    async def call(self, work: Callable[[], Result], /) -> Result:
        """The result of `work`, which is run in the thread between two batches; keep it as short as a batch.

        Raises
        ------
        BusyError
            As `ask` does; and whatever `work` raises.
        """
        waiting: Future[Result] = Future()
        self._put(_Work(work, waiting))
        return await asyncio.wrap_future(waiting)

    def _put(self, job: _Job[Asked, Answer] | _Work) -> None:
        try:
            if self._closing:
                raise queue.Full
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BusyError("Expected fewer requests at once: try again in a moment.") from None

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return self._jobs.qsize()

    def close(self, timeout_s: float = 30.0) -> None:
        """Answer what waits, take nothing new, and stop."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while not self._ended:
            first = self._held or self._jobs.get()
            self._held = None
            if first is None:
                break
            if isinstance(first, _Work):
                first.run()
            else:
                self._run(self._together(first))
        while not self._jobs.empty():  # who came while the last was put
            late = self._jobs.get_nowait()
            if late is not None and late.answered.set_running_or_notify_cancel():
                late.answered.set_exception(BusyError("Expected a service that is not going down."))

    def _together(self, first: _Job[Asked, Answer]) -> list[_Job[Asked, Answer]]:
        """The first job and all that wait, as long as they fit in a batch."""
        jobs, size = [first], len(first.asked)
        while size < self._most:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._ended = True  # after this batch
                break
            if isinstance(job, _Work) or size + len(job.asked) > self._most:
                self._held = job
                break
            jobs.append(job)
            size += len(job.asked)
        return jobs

    def _run(self, jobs: list[_Job[Asked, Answer]]) -> None:
        jobs = [job for job in jobs if job.answered.set_running_or_notify_cancel()]
        asked = [one for job in jobs for one in job.asked]
        if not asked:
            return
        self._observe(len(asked))
        try:
            answers = list(self._answer(asked))
            if len(answers) != len(asked):
                raise AssertionError("not one answer for each request")
        except Exception as error:  # the thread must live on, and every caller be told
            for job in jobs:
                job.answered.set_exception(error)
            return
        for job in jobs:
            job.answered.set_result(answers[: len(job.asked)])
            answers = answers[len(job.asked) :]
