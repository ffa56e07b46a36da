"""What the coordinator tells of itself: Prometheus metrics and a status, for its own operators.

It sees sums of masked vectors and who sends them: rounds, traffic, errors' names. No partner's data are here.
The process that runs the coordinator counts and calls `CoordinatorMonitor.beat`; any other reads what that one wrote.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from server.home_facts import STATUS_FILE, HomeFacts, planned_epsilon, planned_rounds, with_nodes
from server.metric_families import StatusFamilies
from server.settings import RUN
from shared.files import write_json
from shared.status_words import OTHER, family_of

BEAT_S = 5.0
STALE_S = 3 * BEAT_S
"""After so long without a sign the coordinator counts as not running."""
ERRORS_KEPT = 20
STOPPED = "stopped"
PROCESS = re.compile(r"[a-z]{1,24}(-[a-z0-9]{1,12})?")
FLEET = "/v1/fleet"
Counts = dict[str, int]


@dataclass(slots=True)
class Tally:
    """What is counted and lasts over restarts of the coordinator.

    Attributes
    ----------
    requests : dict
        At the gate, by route and class of status: ``fleet 2xx``.
    bytes_in, bytes_out : dict
        By partner, or by ``other`` where the gate does not know whose they are.
    restarts : dict
        By process.
    failures : dict
        Tries of the run that failed, by error family; attempts at a round are in ``run/attempts.jsonl``.
    errors : list of dict
        The newest, the oldest first: ``family``, ``time``.
    """

    requests: Counts = field(default_factory=dict)
    bytes_in: Counts = field(default_factory=dict)
    bytes_out: Counts = field(default_factory=dict)
    restarts: Counts = field(default_factory=dict)
    failures: Counts = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, told: object) -> Tally:
        """What was kept; nothing of it that is not of that form."""
        given = told if isinstance(told, dict) else {}
        counts = {
            name: {str(key): count for key, count in given[name].items() if type(count) is int and count >= 0}
            for name in ("requests", "bytes_in", "bytes_out", "restarts", "failures")
            if isinstance(given.get(name), dict)
        }
        kept = given.get("errors") if isinstance(given.get("errors"), list) else []
        errors = [one for one in kept or () if isinstance(one, dict) and type(one.get("time")) in (int, float)]
        named = [{"family": family_of(str(one.get("family"))), "time": one["time"]} for one in errors]
        return cls(**counts, errors=named[-ERRORS_KEPT:])


class CoordinatorMonitor:
    """Metrics and status of one coordinator. Any thread may call it.

    Parameters
    ----------
    home : Path
        The coordinator's folder; files in it may be absent.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()
        self._tally = Tally.of(HomeFacts(home).kept_status().get("tally"))
        self._began: float | None = None
        self._names: frozenset[str] = frozenset()
        self.registry = CollectorRegistry()
        self.registry.register(StatusFamilies(self.status))

    # --- what is counted ----------------------------------------------------------------------------

    def seen(self, path: str, status: int, bytes_in: int, bytes_out: int, partner: str = "") -> None:
        """A request came to the gate.

        Parameters
        ----------
        path : str
            As it was asked for; only whether it is Flower's Fleet interface is kept.
        status : int
            Of the answer.
        bytes_in, bytes_out : int
            Bodies.
        partner : str
            The registered partner whose node it was, where the gate knows.
        """
        route = "fleet" if path == FLEET or path.startswith(FLEET + "/") else OTHER
        whose = partner if partner in self._registered(partner) else OTHER
        with self._lock:
            _add(self._tally.requests, f"{route} {status // 100}xx", 1)
            _add(self._tally.bytes_in, whose, bytes_in)
            _add(self._tally.bytes_out, whose, bytes_out)

    def restarted(self, process: str) -> None:
        """A process was started again: ``superlink``, ``gate``."""
        with self._lock:
            _add(self._tally.restarts, process if PROCESS.fullmatch(process) else OTHER, 1)

    def failed(self, family: str) -> None:
        """A try of the run failed: the `wire_name` of the error, and nothing else of it."""
        with self._lock:
            _add(self._tally.failures, family_of(family), 1)
            self._tally.errors.append({"family": family_of(family), "time": round(time.time(), 3)})
            del self._tally.errors[:-ERRORS_KEPT]

    def beat(self, state: str = "running") -> None:
        """Write ``run/status.json``: to be called every `BEAT_S` seconds, and with ``stopped`` at the end.

        Any other state is one of a coordinator that runs: ``starting``, ``running``, ``completed``.
        A disk that is full ends nothing: the status then goes stale, which says so too.
        """
        now = time.time()
        self._began = self._began or now
        with self._lock:
            tally = asdict(self._tally)
        told = {"state": state, "time": round(now, 3), "since": round(self._began, 3), "pid": os.getpid()}
        with suppress(OSError):
            write_json(self._home / RUN / STATUS_FILE, {**told, "version": version("veilrec"), "tally": tally})

    # --- what is told -------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def status(self) -> dict[str, Any]:
        """All that an operator's page shows, as JSON. Times are seconds since 1970; what has no bound is null."""
        facts = HomeFacts(self._home)
        kept, receipts = facts.kept_status(), facts.receipts()
        partners = with_nodes(facts.partners(), facts.nodes())
        tally, attempts = self._told_tally(kept), facts.attempts()
        told = {
            "version": version("veilrec"),
            "time": round(time.time(), 3),
            "coordinator": _running(kept),
            "run": _run_of(facts),
            "partners": [
                {key: row[key] for key in ("name", "status", "serial", "online", "seen")}
                | {"receipt": receipts.get(str(row["name"]))}
                | {way: getattr(tally, way).get(str(row["name"]), 0) for way in ("bytes_in", "bytes_out")}
                for row in partners
            ],
            "traffic": {
                "requests": tally.requests,
                "bytes_in": sum(tally.bytes_in.values()),
                "bytes_out": sum(tally.bytes_out.values()),
            },
            "restarts": tally.restarts,
            "failures": _with(tally.failures, Counter(one["family"] for one in attempts)),
            "errors": sorted([*tally.errors, *attempts], key=lambda one: -one["time"])[:ERRORS_KEPT],
            "certificates": facts.certificates(),
            "releases": facts.releases(),
        }
        return {**told, "notes": facts.notes}

    def _told_tally(self, kept: dict[str, Any]) -> Tally:
        """One's own counts, if one is the process that counts; else what that one wrote."""
        if self._began is None and kept:
            return Tally.of(kept.get("tally"))
        with self._lock:
            return replace(self._tally, errors=list(self._tally.errors))

    def _registered(self, partner: str) -> frozenset[str]:
        if partner and partner not in self._names:  # enrolled since
            self._names = frozenset(str(row["name"]) for row in HomeFacts(self._home).partners())
        return self._names


def _add(counts: Counts, name: str, more: int) -> None:
    counts[name] = counts.get(name, 0) + more


def _with(counts: Counts, others: Mapping[str, int]) -> Counts:
    return {name: counts.get(name, 0) + others.get(name, 0) for name in sorted({*counts, *others})}


def _running(kept: dict[str, Any]) -> dict[str, Any]:
    """Whether a coordinator runs: it said so, and not long ago."""
    at, phase = kept.get("time"), str(kept.get("state", ""))
    fresh = isinstance(at, int | float) and abs(time.time() - at) < STALE_S
    runs, since = fresh and phase != STOPPED, kept.get("since")
    return {
        "state": "running" if runs else "stopped" if kept else "never started",
        "phase": phase if runs and PROCESS.fullmatch(phase) else None,
        "silent": bool(kept) and not runs and phase != STOPPED,
        "since": since if isinstance(since, int | float) else None,
        "heard": at if isinstance(at, int | float) else None,
    }


def _run_of(facts: HomeFacts) -> dict[str, Any]:
    rounds, config = facts.rounds(), facts.config()
    last = rounds[-1] if rounds else {}
    return {
        "run_id": facts.run_id(),
        "state": "released" if facts.is_released() else "under way" if rounds else "not begun",
        "rounds_done": last.get("round", 0),
        "rounds_planned": None if config is None else planned_rounds(config),
        "last_round_at": facts.last_round_at(),
        "mode": None if config is None else config.privacy.mode,
        "epsilon": last.get("epsilon", 0.0),
        "epsilon_planned": None if config is None else planned_epsilon(config),
        "delta": None if config is None else config.privacy.delta,
        "quorum": None if config is None else config.federation.least,
        "rounds": rounds,
    }
