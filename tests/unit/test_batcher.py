"""Micro-batching: everybody gets their own answer, nobody waits for company, nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from client.service.batcher import Batcher, BusyError

WAIT_S = 10.0


class Device:
    """Answers numbers with their squares, once it is let."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, asked: list[int]) -> list[int]:
        self.batches.append(list(asked))
        self.begun.set()
        assert self.go.wait(WAIT_S)
        return [number * number for number in asked]


@pytest.fixture
def device() -> Device:
    return Device()


def test_what_arrives_while_the_device_is_busy_is_answered_together(device: Device) -> None:
    batcher = Batcher(device, most=8)
    first = batcher.submit([1])
    assert device.begun.wait(WAIT_S)
    others = [batcher.submit([number, -number]) for number in range(2, 6)]
    device.go.set()
    assert first.result(WAIT_S) == [1]
    assert [other.result(WAIT_S) for other in others] == [[n * n, n * n] for n in range(2, 6)]
    assert device.batches == [[1], [2, -2, 3, -3, 4, -4, 5, -5]]
    batcher.close()


def test_a_batch_stays_within_its_size_unless_one_caller_brings_more(device: Device) -> None:
    sizes: list[int] = []
    batcher = Batcher(device, most=3, observe=sizes.append)
    waiting = [batcher.submit([0])]
    assert device.begun.wait(WAIT_S)
    waiting += [batcher.submit(asked) for asked in ([1, 2], [3, 4], [5], list(range(9)), [6])]
    device.go.set()
    assert [one.result(WAIT_S) for one in waiting][1:4] == [[1, 4], [9, 16], [25]]
    assert device.batches == [[0], [1, 2], [3, 4, 5], list(range(9)), [6]]
    assert sizes == [1, 2, 3, 9, 1]
    batcher.close()


def test_an_idle_device_answers_one_at_once(device: Device) -> None:
    device.go.set()
    batcher = Batcher(device, most=64)
    assert [batcher.submit([k]).result(WAIT_S) for k in range(3)] == [[0], [1], [4]]
    assert device.batches == [[0], [1], [2]]
    batcher.close()


def test_too_many_waiting_callers_are_refused(device: Device) -> None:
    batcher = Batcher(device, waiting=2)
    batcher.submit([0])
    assert device.begun.wait(WAIT_S)
    kept = [batcher.submit([k]) for k in (1, 2)]
    with pytest.raises(BusyError, match="try again"):
        batcher.submit([3])
    device.go.set()
    assert [one.result(WAIT_S) for one in kept] == [[1], [4]]
    batcher.close()


def test_a_failure_reaches_all_of_its_batch_and_no_other() -> None:
    def fails_on_three(asked: list[int]) -> list[int]:
        if 3 in asked:
            raise ValueError("three")
        return asked

    batcher = Batcher(fails_on_three)
    with pytest.raises(ValueError, match="three"):
        batcher.submit([3]).result(WAIT_S)
    assert batcher.submit([4]).result(WAIT_S) == [4]
    batcher.close()


def test_a_device_that_loses_an_answer_is_caught() -> None:
    batcher: Batcher[int, int] = Batcher(lambda asked: asked[1:])
    with pytest.raises(AssertionError, match="one answer"):
        batcher.submit([1, 2]).result(WAIT_S)
    batcher.close()


def test_closing_answers_what_waits_and_takes_nothing_new(device: Device) -> None:
    batcher = Batcher(device, most=1)
    waiting = [batcher.submit([k]) for k in range(4)]
    assert device.begun.wait(WAIT_S)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    device.go.set()
    closing.join(WAIT_S)
    assert [one.result(0) for one in waiting] == [[0], [1], [4], [9]]
    with pytest.raises(BusyError):
        batcher.submit([5])


def test_who_gave_up_waiting_is_not_answered(device: Device) -> None:
    batcher = Batcher(device, most=1)
    batcher.submit([0])
    assert device.begun.wait(WAIT_S)
    gone: Future[list[int]] = batcher.submit([7])
    assert gone.cancel()
    last = batcher.submit([2])
    device.go.set()
    assert last.result(WAIT_S) == [4]
    assert [7] not in device.batches
    batcher.close()


def test_other_work_has_its_turn_between_two_batches(device: Device) -> None:
    """In the device's thread, alone, in the order of arrival; what it raises is for its caller."""
    batcher = Batcher(device, most=8)
    order: list[str] = []

    async def ask_all() -> list[object]:
        def note() -> str:
            order.append(f"{threading.current_thread().name} after {len(device.batches)}")
            return "done"

        def fail() -> None:
            raise ValueError("on purpose")

        first = asyncio.ensure_future(batcher.ask([1]))
        await asyncio.sleep(0)
        assert device.begun.wait(WAIT_S)
        rest = [asyncio.ensure_future(one) for one in (batcher.ask([2]), batcher.call(note), batcher.ask([3]))]
        await asyncio.sleep(0)
        failed = asyncio.ensure_future(batcher.call(fail))
        await asyncio.sleep(0)
        device.go.set()
        return await asyncio.wait_for(asyncio.gather(first, *rest, failed, return_exceptions=True), WAIT_S)

    *answers, failed = asyncio.run(ask_all())
    assert answers == [[1], [4], "done", [9]] and isinstance(failed, ValueError)
    assert device.batches == [[1], [2], [3]] and order == ["ranking after 2"]
    batcher.close()
