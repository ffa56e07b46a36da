"""What a partner's agent tells of itself: to its own operators all that they run it by, to the node next to nothing.

`AgentMonitor.status` and the metrics are for people and for Prometheus on the partner's own machine. They hold no user,
item or text either, but they do say how long an answer took, which tells something of how many users were in it.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from client.premises import Premises
from shared.errors import IntegrityError, LedgerError
from shared.privacy.ledger import replay
from shared.privacy.ledger_state import LedgerState
from shared.release_files import read_manifest
from shared.status_words import FAMILIES, OTHER, family_of, left

STEPS = frozenset({"keys", "shares", "sum", "consent", "open", "bare"})
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0)
DATA_VERSION = re.compile(r"[A-Za-z0-9._:+-]{1,64}")


class LedgerWatch:
    """Reads a ledger as it grows, without lock or key: each line is verified once.

    Parameters
    ----------
    premises : Premises
        Whose ledger; nothing is made where there is none.
    """

    def __init__(self, premises: Premises) -> None:
        self._file = premises.ledger_file
        pinned = premises.peers.get(premises.name)
        self._pinned = () if pinned is None else pinned.keys
        self._start_over()

    def state(self) -> LedgerState:
        """All whole lines that are there now.

        Raises
        ------
        LedgerError
            If there is no ledger, or it is not one that this partner wrote.
        """
        try:
            data = self._file.read_bytes()
        except OSError as error:
            raise LedgerError(f"Expected a ledger at {self._file}, got {error.strerror}.") from None
        if hashlib.sha256(data[: self._offset]).digest() != self._read.digest():
            self._start_over()
        try:
            for line in replay(data, self._offset, self._state, self._file):
                self._read.update(line)
                self._offset += len(line)
        except LedgerError:
            self._start_over()  # what was read before the wrong line is no ledger either
            raise
        identity = self._state.identity
        if identity is None or (self._pinned and identity not in self._pinned):
            raise LedgerError(f"{self._file}: Expected this partner's ledger, got another's or none.")
        return self._state

    def _start_over(self) -> None:
        self._state, self._offset, self._read = LedgerState(), 0, hashlib.sha256()


class AgentMonitor:
    """Metrics and status of one agent. Any thread may call it.

    Parameters
    ----------
    premises : Premises
    device : str
        Where the model runs, as the agent found it out: ``cpu``, ``cuda:0``.
    data_version : callable, optional
        Which state of the data the next round reads: a name, no count.
    """

    def __init__(self, premises: Premises, *, device: str = "", data_version: Callable[[], str] | None = None) -> None:
        self._premises, self._device, self._data_version = premises, device, data_version
        self._ledger, self._lock = LedgerWatch(premises), threading.Lock()
        self._began = time.time()
        self._last_answer: float | None = None
        self._last_error: dict[str, Any] | None = None
        self.registry = CollectorRegistry()
        self._answers = Counter("veilrec_agent_answers", "Requests answered.", ["step"], registry=self.registry)
        self._seconds = Histogram(
            "veilrec_agent_answer_seconds", "Time of an answer.", ["step"], buckets=SECONDS, registry=self.registry
        )
        self._bytes = Counter(
            "veilrec_agent_bytes", "Bytes of requests and answers.", ["direction"], registry=self.registry
        )
        self._refusals = Counter(
            "veilrec_agent_refusals", "Requests refused, by error.", ["family"], registry=self.registry
        )
        for family in (*sorted(FAMILIES), OTHER):  # a first refusal is an increase only of what was there at 0
            self._refusals.labels(family)
        started = Gauge("veilrec_agent_start_time_seconds", "When the agent began.", registry=self.registry)
        started.set(self._began)
        build = Gauge("veilrec_agent_build_info", "The version that runs.", ["version"], registry=self.registry)
        build.labels(version("veilrec")).set(1)
        self.registry.register(_Budget(self))

    def take_up(self, premises: Premises) -> None:
        """A floor or keys that were changed: from now on the budget is told against these."""
        with self._lock:
            self._premises, self._ledger = premises, LedgerWatch(premises)

    def answered(self, step: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """A request was answered.

        Parameters
        ----------
        step : str
            The exchange, as ``shared.wire`` names it.
        seconds : float
        bytes_in, bytes_out : int
            Of the request and of the answer.
        """
        label = step if step in STEPS else OTHER
        self._answers.labels(label).inc()
        self._seconds.labels(label).observe(seconds)
        self._bytes.labels("in").inc(bytes_in)
        self._bytes.labels("out").inc(bytes_out)
        self._last_answer = time.time()

    def refused(self, family: str) -> None:
        """A request was refused: the `wire_name` of the error, and nothing else of it."""
        label = family_of(family)
        self._refusals.labels(label).inc()
        self._last_error = {"family": label, "time": round(time.time(), 3)}

    def exposition(self) -> bytes:
        """The metrics as Prometheus reads them: for the partner's own operators."""
        return generate_latest(self.registry)

    def status(self) -> dict[str, Any]:
        """What an operator of this partner needs; as JSON, no bound is null.

        Not for the node: error families and times follow from the data (a round without enough memory, an answer
        that took longer), and what was spent with another coordinator is nobody's business.
        """
        return {
            **self.public_status(),
            "since": round(self._began, 3),
            "device": self._device or None,
            "data_version": self._version_of_data(),
            "simulated": self._premises.simulated,
            "last_answer": None if self._last_answer is None else round(self._last_answer, 3),
            "last_error": self._last_error,
            "releases": releases_of(self._premises),
            **self.budget(),
        }

    def public_status(self) -> dict[str, Any]:
        """What the node may know: that an agent of this partner and version is there.

        Guarantees
        ----------
        The same for any data, any times and any errors. The node is the less trusted process: it talks to the
        coordinator, and what it learns may leave. Who partners are and what they run, the coordinator knows already.
        """
        return {"partner": self._premises.name, "version": version("veilrec"), "state": "running"}

    def budget(self) -> dict[str, Any]:
        """What the ledger says, against the policy's floor; a ledger that cannot be believed is an error's name."""
        policy = self._premises.policy
        limits = {"epsilon_limit": _finite(policy.max_epsilon), "delta_limit": policy.max_delta}
        try:
            with self._lock:
                state = self._ledger.state()
                spent, head, rounds = state.spent(), state.head, _last_round(state)
        except LedgerError as error:
            return {"ledger": None, "ledger_error": error.wire_name, "last_round": None, "budget": limits}
        return {
            "ledger": {"entries": head.count, "head": head.hash, "receipts": len(state.receipts)},
            "ledger_error": None,
            "last_round": rounds,
            "budget": {
                "epsilon_spent": _finite(spent.epsilon),
                "epsilon_left": left(policy.max_epsilon, spent.epsilon),
                "delta_spent": spent.delta,
                "delta_left": left(policy.max_delta, spent.delta),
                "plans": spent.plans,
                **limits,
            },
        }

    def _version_of_data(self) -> str | None:
        told = self._data_version() if self._data_version is not None else None
        return told if told is not None and DATA_VERSION.fullmatch(told) else None


def releases_of(premises: Premises) -> list[int]:
    """Versions of the coordinator's signed releases in the partner's folder; what is not signed is not told."""
    key, shelf = premises.policy.server_key, premises.folder / "releases"
    trust = None if key is None else frozenset(key.keys)
    found = []
    for folder in shelf.iterdir() if trust is not None and shelf.is_dir() else ():
        with suppress(IntegrityError, OSError):
            found.append(int(read_manifest(folder, trust)["version"]))
    return sorted(found)


def _last_round(state: LedgerState) -> dict[str, Any] | None:
    """The round that was reserved last, and how far it came: of the run that was declared last."""
    for name, run in reversed(state.runs.items()):
        if run.rounds:
            number = max(run.rounds)
            kept = run.rounds[number]
            came = "reserved" if kept.output is None else "released" if kept.survivors is None else "opened"
            return {"run": name, "round": number, "stage": kept.reservation.stage, "state": came}
    return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Budget(Collector):
    """What the ledger says, read anew at each scrape."""

    def __init__(self, monitor: AgentMonitor) -> None:
        self._monitor = monitor

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the ledger is read when Prometheus asks."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Gauges; those of a ledger that cannot be believed are absent, and ``ledger_ok`` is 0."""
        told = self._monitor.budget()
        ok = told["ledger"] is not None
        yield _gauge("ledger_ok", "Whether the ledger can be read and believed.", float(ok))
        if ok:
            yield _gauge("ledger_entries", "Lines of the ledger.", told["ledger"]["entries"])
        for name in ("epsilon_spent", "epsilon_limit", "delta_spent", "delta_limit"):
            value = told["budget"].get(name, math.nan)
            if value is None or math.isfinite(value):
                text = f"The ledger's {name.replace('_', ', ')}, over all declared plans."
                yield _gauge(name, text, math.inf if value is None else value)
        last = self._monitor._last_answer
        if last is not None:
            yield _gauge("last_answer_time_seconds", "When a request was answered last.", last)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"veilrec_agent_{name}", text, value=value)
