"""How fast lists are made: over HTTP, in the library, and by what shops use instead, in turns on one machine."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from shared.errors import IntegrityError
from simulations.benchmarks.ranking_world import EVENTS, make_world, user_id
from simulations.benchmarks.turns import Contender, Turn, take_turns

USERS = 1000
ASKED = 100
"""Requests of one user each in a turn."""
CHECKED = 50
"""Users whose lists are compared with those of a search of everything."""
K = 10
FACTORS = 64
ALONE_ABOVE = 200_000
"""Items above which no batches are asked for: each contender has a catalogue of its own in memory."""
START_S = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a system.

    Parameters
    ----------
    system, path : str
        As in the rows.
    batch : int
        Users in a request.
    contender : callable
        Takes the world's folder and `batch`.
    """

    system: str
    path: str
    batch: int
    contender: Callable[[Path, int], Turn]


def benchmark(
    items: int, repeat: int, folder: Path, told: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Rows of one size of catalogue; see the contract's fields."""
    from shared.model.weights import choose_device

    device = choose_device("auto").type  # what the service and the library take by themselves
    told(f"making a shop of {items} items")
    world = make_world(folder / f"{items}", items, USERS)
    cases = [
        Case("veilrec", "http", 1, served),
        Case("veilrec", "http", USERS, served),
        Case("veilrec", "library", 1, library),
        Case("veilrec", "library", USERS, library),
        Case("sentence-transformers + FAISS", "library", 1, mean_and_faiss),
        Case("implicit ALS", "library", 1, implicit_als),
    ]
    if items > ALONE_ABOVE:
        cases = [case for case in cases if case.batch == 1]
    contenders: dict[str, Contender] = {
        str(k): partial(case.contender, world, case.batch) for k, case in enumerate(cases)
    }
    measured = take_turns(contenders, repeat, told)
    rows = []
    for number, case in enumerate(cases):
        one = measured[str(number)]
        row: dict[str, Any] = {"system": case.system, "path": case.path, "items": items, "batch": case.batch}
        row |= {name: one.median(name) for name in ("p50_ms", "p99_ms", "users_per_s")}
        row["device"] = device if case.system == "veilrec" else "cpu"
        row["recall"] = one.turns[0].get("recall")
        row["peak_rss_mb"] = one.turns[-1].get("server_rss_mb", one.peak_rss_mb)
        rows.append(row)
    return rows


def _timed(ask: Callable[[int], object], batch: int, **more: float) -> dict[str, float]:
    """One turn: `ask` is called with the number of a request."""
    seconds = []
    for number in range(ASKED if batch == 1 else 1):
        began = time.perf_counter()
        ask(number)
        seconds.append(time.perf_counter() - began)
    p50, p99 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    return {"p50_ms": p50, "p99_ms": p99, "users_per_s": batch * len(seconds) / sum(seconds), **more}


def served(world: Path, batch: int) -> Turn:
    """``veilrec serve`` in a process of its own, asked over HTTP on one connection."""
    process, port = start_service(world, f"events-{batch}.sqlite")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)

    def ask(number: int) -> None:
        if batch == 1:
            path, body = "/v1/rank", {"user_id": user_id(number * 7 % USERS), "k": K}
        else:
            path, body = "/v1/rank/batch", {"requests": [{"user_id": user_id(k), "k": K} for k in range(batch)]}
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        lists = [told] if batch == 1 else told["lists"]
        if answer.status != 200 or any(len(one["items"]) != K for one in lists):
            raise IntegrityError(f"Expected {batch} lists of {K} items, got status={answer.status}.")

    def turn() -> dict[str, float]:
        try:
            return _timed(ask, batch, server_rss_mb=peak_of(process.pid))
        finally:
            connection.close()  # one that is idle for long is closed at the other end

    return turn


def start_service(world: Path, database: str) -> tuple[subprocess.Popen[str], int]:
    """``veilrec serve`` over a world, with its events in a file of it; the process, and the port that it listens on."""
    command = [sys.executable, "-c", "from simulations.cli import main; main()", "serve", "--run", str(world)]
    command += ["--data", str(world / "data"), "--state", str(world / "state"), "--port", "0"]
    command += ["--database", f"sqlite:///{world / database}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # However this process ends, so does its service.
    atexit.register(_end, process)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return process, _port(process)


def _end(process: subprocess.Popen[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already
    process.terminate()
    process.wait()


def _port(process: subprocess.Popen[str]) -> int:
    """Where the service listens, as its log says; its log is read to the end of the process."""
    if process.stderr is None:
        raise AssertionError("a process without its log")
    for line in process.stderr:
        if line.startswith("{") and (told := json.loads(line))["event"] == "listening":
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            return int(told["port"])
    raise IntegrityError("Expected a service that listens, it ended.")


def _drain(log: IO[str]) -> None:
    with log:
        log.read()


def peak_of(pid: int, what: str = "VmHWM") -> float:
    """Memory of a process in MB: the most so far, or ``VmRSS`` now; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), 0.0)


def library(world: Path, batch: int) -> Turn:
    """The engine without HTTP and without a store; its lists against a search of all exact scores."""
    from client.data.cleaning import clean
    from client.data.histories import build_histories
    from client.data.ingest import read
    from client.data.pseudonyms import PseudonymKey
    from client.service.stand import StandMaker
    from shared.adapter import load_release
    from shared.catalogue import build_catalogue

    cleaned = clean(read(world / "data"))[0]
    catalogue = build_catalogue(cleaned.items)
    maker = StandMaker(catalogue, catalogue, world / "state", world / f"texts-{os.getpid()}.sqlite")
    engine = maker.make(load_release(world / "adapter"), signed=False).engine
    histories = build_histories(cleaned.interactions, catalogue, PseudonymKey.generate(), max_events=1000, tie_seed=0)
    batches = engine.maker(histories)
    found = engine.retrieve(batches, np.arange(CHECKED), K)
    hits = 0
    for user in range(CHECKED):
        scores = engine.scorer.users(batches, np.array([user]))[0]
        scores[histories[user].items] = -np.inf
        hits += len(set(np.argpartition(-scores, K)[:K]) & set(found.of(user)[0]))

    def ask(number: int) -> None:
        users = np.array([number * 7 % USERS]) if batch == 1 else np.arange(batch)
        engine.retrieve(batches, users, K)

    return lambda: _timed(ask, batch, recall=hits / (CHECKED * K))


def mean_and_faiss(world: Path, batch: int) -> Turn:
    """The usual way without training: the mean of a history's sentence vectors, searched by FAISS (exact, flat)."""
    import faiss

    vectors, histories = _vectors_and_histories(world)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def ask(number: int) -> None:
        met = histories[number * 7 % USERS]
        _, rows = index.search(vectors[met].mean(axis=0, keepdims=True), K + EVENTS)
        [row for row in rows[0] if row not in set(met)][:K]

    return lambda: _timed(ask, batch)


def implicit_als(world: Path, batch: int) -> Turn:
    """`implicit`'s ALS with the user's factors recomputed from the history, as a fresh click needs it."""
    from implicit.als import AlternatingLeastSquares
    from scipy import sparse

    vectors, histories = _vectors_and_histories(world)
    items, random = len(vectors), np.random.default_rng(0)
    model = AlternatingLeastSquares(factors=FACTORS, num_threads=0)
    model.item_factors = random.normal(size=(items, FACTORS)).astype(np.float32)
    model.user_factors = random.normal(size=(USERS, FACTORS)).astype(np.float32)

    def ask(number: int) -> None:
        met = np.unique(histories[number * 7 % USERS])
        row = sparse.csr_matrix((np.ones(len(met), np.float32), met, [0, len(met)]), shape=(1, items))
        model.recommend(0, row, N=K, filter_already_liked_items=True, recalculate_user=True)

    return lambda: _timed(ask, batch)


def _vectors_and_histories(world: Path) -> tuple[Any, Any]:
    """Item vectors, float32 (I, H), and catalogue rows that each user met, (users, EVENTS)."""
    import polars as pl

    from client.data.ingest import read

    vectors = np.load(next((world / "state" / "index").glob("vectors-*.npy")), mmap_mode="r")[:, 1].astype(np.float32)
    met = read(world / "data").interactions.select(pl.col("item_id").str.slice(5).cast(pl.Int64)).to_series()
    return vectors, met.to_numpy().reshape(USERS, EVENTS)
