"""One piece of work in a process of its own, with the most memory that it needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from shared.errors import IntegrityError
from simulations.benchmarks.memory import peak_rss_mb

T = TypeVar("T")
SAMPLING_S = 0.5


def apart(work: Callable[..., T], *given: object) -> tuple[T, float]:
    """Do the work in a fresh process; its result, and the process's peak memory in MB.

    Parameters
    ----------
    work : callable
        Picklable, as are its arguments and its result.

    Raises
    ------
    IntegrityError
        If the process ended before it answered; else what the work raised.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_measured, work, given).result()
        except BrokenProcessPool:
            raise IntegrityError("Expected an answer of the process that does the work, it ended.") from None


@contextmanager
def watched_children() -> Iterator[Callable[[], float]]:
    """While it is open: the most memory that all descendants of this process had together, in MB, seen twice a second.

    Pages that several of them share are counted in each.
    """
    import psutil

    most, over, here = 0, threading.Event(), psutil.Process()

    def watch() -> None:
        nonlocal most
        while not over.wait(SAMPLING_S):
            most = max(most, sum(_resident(child) for child in here.children(recursive=True)))

    def _resident(process: psutil.Process) -> int:
        try:
            return int(process.memory_info().rss)
        except psutil.Error:  # it is gone
            return 0

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most / 2**20
    finally:
        over.set()
        thread.join()


def _measured(work: Callable[..., T], given: tuple[object, ...]) -> tuple[T, float]:
    result = work(*given)
    return result, peak_rss_mb()
