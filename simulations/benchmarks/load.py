"""A service at saturation for as long as one likes: what it answers, and whether its memory grows."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulations.benchmarks.ranking import START_S, USERS, K, peak_of, start_service
from simulations.benchmarks.ranking_world import make_world, user_id

SAMPLES = 60
"""Of memory, over the whole time."""
WARM = 0.2
"""The part of the time before memory counts: caches fill."""
WRITES = 20
"""One in so many requests brings an event."""


def benchmark(
    items: int, clients: int, minutes: float, folder: Path, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Ask with `clients` at once, none of which pauses, for `minutes`.

    Returns
    -------
    dict
        Requests, failures (any status but 200, or no answer), requests a second, p50 and p99, and memory in MB: after
        the warm-up, at the end, and its growth over an hour by a line through the samples.
    """
    world = make_world(folder / f"{items}", items, USERS)
    process, port = start_service(world, "events-load.sqlite")
    stop, lock = threading.Event(), threading.Lock()
    seconds: list[float] = []
    failures = 0

    def client(number: int) -> None:
        nonlocal failures
        connection, asked = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S), number
        while not stop.is_set():
            asked += clients
            began = time.perf_counter()
            good = _ask(connection, asked, items)
            with lock:
                seconds.append(time.perf_counter() - began)
                failures += not good
        connection.close()

    threads = [threading.Thread(target=client, args=(k,), daemon=True) for k in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    memory = []
    for sample in range(SAMPLES):
        time.sleep(minutes * 60 / SAMPLES)
        memory.append((time.monotonic() - began, peak_of(process.pid, "VmRSS")))
        told(f"{sample + 1} of {SAMPLES}: {len(seconds)} requests, {failures} failed, {memory[-1][1]:.0f} MB")
    stop.set()
    for thread in threads:
        thread.join(START_S)
    at, held = np.array(memory[int(WARM * SAMPLES) :]).T
    p50, p99 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    return {
        "items": items,
        "clients": clients,
        "minutes": minutes,
        "requests": len(seconds),
        "failures": failures,
        "requests_per_s": len(seconds) / (time.monotonic() - began),
        "p50_ms": p50,
        "p99_ms": p99,
        "rss_warm_mb": float(held[0]),
        "rss_end_mb": float(held[-1]),
        "rss_mb_per_hour": float(np.polyfit(at, held, 1)[0] * 3600),
    }


def _ask(connection: http.client.HTTPConnection, number: int, items: int) -> bool:
    """One request; most ask for a list, some bring an event. Whether it was answered."""
    user = user_id(number * 7 % USERS)
    path, body = "/v1/rank", {"user_id": user, "k": K}
    if number % WRITES == 0:
        event = {"item_id": f"item-{number * 31 % items:07d}", "kind": "view"}
        path, body = "/v1/events", {"user_id": user, "events": [event]}
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return False
    return answer.status == 200
