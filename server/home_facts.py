"""What the coordinator's folder says of a run: its rounds, partners, certificates and releases.

Everything is read anew, nothing is written. A file that is not there yet, or cannot be read, is a note, never an error:
an operator looks when something is wrong.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from server.attempts import ATTEMPTS_FILE
from server.partners import PARTNERS_FILE
from server.receipts import RECEIPTS_FILE
from server.release import RELEASES_FILE
from server.settings import RUN
from shared.config import RunConfig, parse_config
from shared.errors import VeilrecError
from shared.hazmat.certificates import certificate_facts
from shared.hazmat.node_keys import superlink_form
from shared.status_words import family_of

T = TypeVar("T")

STATUS_FILE = "status.json"
CERTIFICATES = {"tls": "tls.crt", "ca": "ca.crt"}
DATABASE = "superlink/state.db"
ABSENT, UNREADABLE = "not there yet", "cannot be read"
ROUND_NUMBERS = ("round", "cohort", "seconds", "bytes_up", "bytes_down", "epsilon", "update_norm", "noise_norm")
STAGES = ("prior", "train")
PATIENCE = 2
"""Heartbeats that the SuperLink waits for (``HEARTBEAT_PATIENCE`` of flwr 1.41)."""

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError, sqlite3.Error)


class HomeFacts:
    """One look at a coordinator's folder.

    Parameters
    ----------
    home : Path

    Attributes
    ----------
    notes : list of dict
        ``{"file": ..., "what": ...}`` of each file that could not be read.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self.notes: list[dict[str, str]] = []

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds that are whole, the oldest first."""
        return self._read(f"{RUN}/rounds.jsonl", _read_rounds, [])

    def last_round_at(self) -> float | None:
        """When the last round was kept, in seconds since 1970."""
        try:
            return (self._home / RUN / "rounds.jsonl").stat().st_mtime
        except OSError:
            return None

    def attempts(self) -> list[dict[str, Any]]:
        """Attempts at rounds that failed, the oldest first: ``family`` and ``time`` (`server.attempts`)."""
        name = f"{RUN}/{ATTEMPTS_FILE}"
        return self._read(name, _read_attempts, []) if (self._home / name).exists() else []

    def run_id(self) -> str | None:
        """Of the checkpoint; None before the first round."""
        return self._read(f"{RUN}/checkpoints/state.safetensors", _read_run_id, None)

    def is_released(self) -> bool:
        """Whether the run is over and its adapter signed."""
        return (self._home / RUN / "adapter" / "manifest.sig").exists()

    def config(self) -> RunConfig | None:
        """Of the run, or of the one that will begin."""
        own = f"{RUN}/config.json"
        return self._read(own if (self._home / own).exists() else "config.json", _read_config, None)

    def partners(self) -> list[dict[str, Any]]:
        """The registry, by name: ``name``, ``status``, ``serial``, and the keys of its ``nodes``."""
        return self._read(PARTNERS_FILE, _read_partners, [])

    def nodes(self) -> dict[bytes, dict[str, Any]]:
        """What the SuperLink knows of nodes, by public key: ``online`` and when they were ``seen``."""
        return self._read(DATABASE, _read_nodes, {})

    def receipts(self) -> dict[str, int]:
        """By partner, how many lines of its ledger the coordinator has countersigned."""
        return self._read(RECEIPTS_FILE, _read_receipts, {})

    def releases(self) -> int:
        """How many adapters were released."""
        return self._read(RELEASES_FILE, lambda file: len(json.loads(file.read_bytes())), 0)

    def certificates(self) -> dict[str, dict[str, Any]]:
        """Until when the certificates count: ``until`` and ``days_left``, which is negative after."""
        found = {name: self._read(file, _read_certificate, None) for name, file in CERTIFICATES.items()}
        return {name: told for name, told in found.items() if told is not None}

    def kept_status(self) -> dict[str, Any]:
        """What the process that runs the coordinator wrote last."""
        told: Any = self._read(f"{RUN}/{STATUS_FILE}", lambda file: json.loads(file.read_bytes()), None)
        return told if isinstance(told, dict) else {}

    def _read(self, name: str, read: Callable[[Path], T], absent: T) -> T:
        file = self._home / name
        try:
            if file.exists():
                return read(file)
            what = ABSENT
        except (*_BROKEN, VeilrecError):
            what = UNREADABLE
        note = {"file": name, "what": what}
        if note not in self.notes:
            self.notes.append(note)
        return absent


def with_nodes(partners: list[dict[str, Any]], nodes: dict[bytes, dict[str, Any]]) -> list[dict[str, Any]]:
    """The registry's partners with what the SuperLink knows of their nodes: two while a key is being changed."""
    told = []
    for partner in partners:
        own = [nodes[key] for key in map(_superlink_key, partner["nodes"]) if key in nodes]
        seen = [node["seen"] for node in own if node["seen"] is not None]
        told.append({**partner, "online": any(node["online"] for node in own), "seen": max(seen, default=None)})
    return told


def _superlink_key(text: object) -> bytes:
    try:
        return superlink_form(str(text)).strip()
    except VeilrecError:
        return b""


def planned_rounds(config: RunConfig) -> int:
    """Training rounds, and the one of the prior's sum where there is one."""
    return config.training.rounds + (config.prior.kind != "none")


def planned_epsilon(config: RunConfig) -> float | None:
    """Epsilon of the whole run; None without privacy. Noise is calibrated to the target unless it is fixed."""
    if config.privacy.mode == "none":
        return None
    return config.privacy.epsilon if config.privacy.noise_multiplier is None else _accounted(config.model_dump_json())


@lru_cache(maxsize=8)
def _accounted(text: str) -> float | None:
    from shared.privacy.accounting import build_plan, epsilon_spent

    plan = build_plan(parse_config(text))
    return epsilon_spent(plan, plan.rounds)


def _read_rounds(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [_round_of(line) for line in lines if type(line.get("round")) is int]


def _round_of(line: dict[str, Any]) -> dict[str, Any]:
    """What a line of ``rounds.jsonl`` is expected to hold, and nothing else of it."""
    numbers = {name: line[name] for name in ROUND_NUMBERS if type(line.get(name)) in (int, float)}
    stage = {"stage": line["stage"]} if line.get("stage") in STAGES else {}
    return {name: value for name, value in numbers.items() if math.isfinite(value)} | stage


def _read_attempts(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{"family": family_of(str(line["family"])), "time": float(line["time"])} for line in lines]


def _read_run_id(file: Path) -> str | None:
    with safe_open(file, framework="np") as kept:
        return (kept.metadata() or {}).get("run_id")


def _read_config(file: Path) -> RunConfig:
    return parse_config(file.read_text(encoding="utf-8"), file.name)


def _read_partners(file: Path) -> list[dict[str, Any]]:
    """By `server.partners`, without checking the signatures of requests anew."""
    return [
        {**{key: row[key] for key in ("name", "status", "serial")}, "nodes": row["request"]["nodes"]}
        for row in json.loads(file.read_bytes())["partners"]
    ]


def _read_nodes(file: Path) -> dict[bytes, dict[str, Any]]:
    query = "SELECT public_key, status, online_until, heartbeat_interval FROM node WHERE public_key IS NOT NULL"
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)) as database:
        rows = database.execute(query).fetchall()
    now, found = time.time(), {}
    for key, status, until, interval in rows:
        online = status == "online" and until is not None and until > now
        seen = None if until is None or interval is None else min(now, until - PATIENCE * interval)
        found[bytes(key).strip()] = {"online": online, "seen": None if seen is None else round(seen, 3)}
    return found


def _read_receipts(file: Path) -> dict[str, int]:
    return {str(name): int(receipt["count"]) for name, receipt in json.loads(file.read_bytes()).items()}


def _read_certificate(file: Path) -> dict[str, Any]:
    facts = certificate_facts(file.read_text(encoding="ascii"))
    days = round(facts.days_left(datetime.now(UTC)), 2)
    return {"until": facts.not_after.isoformat(timespec="seconds"), "days_left": days}
