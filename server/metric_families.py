"""The coordinator's status as metric families for Prometheus; `docs/operations.md` says what each means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shared.status_words import OTHER


class StatusFamilies(Collector):
    """Everything is read anew at each scrape.

    Parameters
    ----------
    status : callable
        `server.monitor.CoordinatorMonitor.status`.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: the folder is read when Prometheus asks."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All families; what is not known yet is absent."""
        told = self._status()
        yield _gauge("up", "Whether the coordinator runs.", float(told["coordinator"]["state"] == "running"))
        build = GaugeMetricFamily("veilrec_server_build_info", "The version that runs.", labels=["version"])
        build.add_metric([told["version"]], 1)
        yield build
        yield from _round_families(told["run"])
        yield from _partner_families(told["partners"])
        yield from _count_families(told)
        days = GaugeMetricFamily(
            "veilrec_server_certificate_days_left", "Until a certificate ends.", labels=["certificate"]
        )
        for name, certificate in told["certificates"].items():
            days.add_metric([name], certificate["days_left"])
        yield days
        yield _gauge("releases", "Adapters that were released.", told["releases"])


def _round_families(run: dict[str, Any]) -> Iterable[Metric]:
    label = run["run_id"] or "none"
    yield _gauge("rounds_done", "Whole rounds of the run.", run["rounds_done"], run=label)
    yield _gauge("run_released", "Whether the run is over.", float(run["state"] == "released"), run=label)
    if run["rounds_planned"] is not None:
        yield _gauge("rounds_planned", "Rounds that the run has.", run["rounds_planned"], run=label)
    if run["quorum"] is not None:
        yield _gauge("quorum", "Partners that a round needs.", run["quorum"])
    for name, text in (("epsilon", "Epsilon spent by the run so far."), ("epsilon_planned", "Epsilon of the run.")):
        if run[name] is not None:
            yield _gauge(name, text, run[name], run=label)
    seconds = [float(line["seconds"]) for line in run["rounds"] if "seconds" in line]
    summary = SummaryMetricFamily("veilrec_server_round_seconds", "Time of a round.", labels=["run"])
    summary.add_metric([label], len(seconds), sum(seconds))
    yield summary
    if run["last_round_at"] is not None:
        yield _gauge("last_round_time_seconds", "When a round was kept last.", run["last_round_at"])


def _partner_families(partners: list[dict[str, Any]]) -> Iterable[Metric]:
    enrolled = [row for row in partners if row["status"] != "revoked"]
    yield _gauge("partners_enrolled", "Partners that are not revoked.", len(enrolled))
    yield _gauge("partners_connected", "Of them, with a node online.", sum(row["online"] for row in enrolled))
    connected = GaugeMetricFamily("veilrec_server_partner_connected", "Whether its node is online.", labels=["partner"])
    seen = GaugeMetricFamily(
        "veilrec_server_partner_seen_time_seconds", "When its node was heard last.", labels=["partner"]
    )
    for row in enrolled:
        connected.add_metric([str(row["name"])], float(row["online"]))
        if row["seen"] is not None:
            seen.add_metric([str(row["name"])], row["seen"])
    yield from (connected, seen)


def _count_families(told: dict[str, Any]) -> Iterable[Metric]:
    requests = CounterMetricFamily("veilrec_server_gate_requests", "Requests at the gate.", labels=["route", "status"])
    for name, count in told["traffic"]["requests"].items():
        requests.add_metric(name.split(" ", 1), count)
    size = CounterMetricFamily("veilrec_server_gate_bytes", "Bodies at the gate.", labels=["direction", "partner"])
    for way in ("in", "out"):
        known = {str(row["name"]): row[f"bytes_{way}"] for row in told["partners"]}
        for name, count in {**known, OTHER: told["traffic"][f"bytes_{way}"] - sum(known.values())}.items():
            size.add_metric([way, name], count)
    yield from (requests, size)
    for key, label, name, text in (
        ("restarts", "process", "process_restarts", "Processes that were started again."),
        ("failures", "family", "failed_attempts", "Attempts at the run that failed."),
    ):
        family = CounterMetricFamily(f"veilrec_server_{name}", text, labels=[label])
        for value, count in told[key].items():
            family.add_metric([value], count)
        yield family


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"veilrec_server_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
