"""What a round costs on premises, beside training: a whole deployment on this machine, over TLS on loopback.

Real processes: flower-superlink, gate, nodes, agents. The first rounds, which load BERT and read texts, do not count.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.agent_socket import METRICS, ask
from client.listening import OPERATOR_SOCKET
from shared.config import FederationConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from simulations.one_machine import Deployment
from simulations.simulate import Request, prepare_for_flower

WARM_AFTER = 3
"""Rounds: the prior's, and two of training."""
USERS, ITEMS = 60, 140
"""Of a partner, and of the catalogue."""
TRAINING = re.compile(rb'^veilrec_agent_answer_seconds_sum\{step="sum"\} (\S+)$', re.MULTILINE)
HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
NODE, AGENT, SUPERLINK = "partner_process node", "partner_process agent", "bin/flower-superlink"


def benchmark(partners: int, rounds: int, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row: the median of warm rounds, the time of the slowest partner's sums in them, and memory.

    Parameters
    ----------
    partners : int
    rounds : int
        Warm ones.
    told : callable
        Hears what goes on.
    """
    config = RunConfig(
        model=ModelConfig(adapted_layers=1, lora_rank=4, lora_alpha=8, head_rank=4, max_events=16),
        training=TrainingConfig(rounds=WARM_AFTER - 1 + rounds, sampling_rate=0.3),
        privacy=PrivacyConfig(population=USERS * partners),
        federation=FederationConfig(partners=partners),
    )
    with tempfile.TemporaryDirectory(prefix="vr") as folder:  # short: a socket's path is
        root = Path(folder)
        parts = root / "parts"
        asked = Request("marketplace", partners, "iid", 0, "inprocess", USERS * partners, ITEMS, False, {})
        prepare_for_flower(asked, parts)
        events = {part.name: part / "interactions.parquet" for part in sorted(parts.glob("partner-*"))}
        deployment = Deployment.prepare(root / "d", parts / "items.parquet", events, config)
        told(f"{partners} partners are provisioned")
        with deployment.running():
            deployment.wait_for_rounds(WARM_AFTER, 600.0)
            before = _summing(deployment)
            told("warm")
            deployment.wait_for_rounds(WARM_AFTER + rounds, 600.0)
            after = _summing(deployment)
            memory = {word: max(map(_peak_mb, deployment.pids(word)), default=0.0) for word in (NODE, AGENT, SUPERLINK)}
        warm = [record["seconds"] for record in deployment.rounds()[WARM_AFTER:]]
    training = max(after[name] - before[name] for name in after) / rounds
    return [
        {
            "partners": partners,
            "rounds": rounds,
            "round_s": statistics.median(warm),
            "slowest_round_s": max(warm),
            "training_s": training,
            "besides_training_s": statistics.median(warm) - training,
            "node_peak_rss_mb": memory[NODE],
            "agent_peak_rss_mb": memory[AGENT],
            "superlink_peak_rss_mb": memory[SUPERLINK],
        }
    ]


def _summing(deployment: Deployment) -> dict[str, float]:
    """Seconds that each agent has spent on its sums so far."""
    told = {}
    for name in deployment.names:
        _, text = ask(deployment.folder(name) / OPERATOR_SOCKET, "GET", METRICS)
        found = TRAINING.search(text)
        told[name] = float(found[1]) if found else 0.0
    return told


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        found = HIGH_WATER.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
        return int(found[1]) / 1024 if found else 0.0
    return 0.0
