"""The rules for Prometheus: their metrics exist, each is in the runbook, and each fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from coordinator_setting import home_once
from partner_setting import Federation

from client.agent_monitor import AgentMonitor
from client.premises import Premises
from server.monitor import CoordinatorMonitor

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "deploy" / "prometheus"
RUNBOOK = REPOSITORY / "docs" / "operations.md"
FOREIGN = {"node_textfile_mtime_seconds"}
"""Of the node exporter, which takes up what the agent tells."""


def rules() -> list[dict[str, Any]]:
    told = yaml.safe_load((RULES / "alerts.yml").read_text())
    return [rule for group in told["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that both sides expose."""
    root = tmp_path_factory.mktemp("exposed")
    coordinator = CoordinatorMonitor(Path(shutil.copytree(home_once(tmp_path_factory)[0], root / "home")))
    coordinator.seen("/v1/fleet/pull", 200, 1, 1)
    coordinator.failed("UnmaskError")
    coordinator.restarted("superlink")
    agent = AgentMonitor(Premises.open(Federation.of(root / "partner").folder))
    agent.answered("sum", 1.0, 1, 1)
    return (coordinator.exposition() + agent.exposition()).decode()


def named(text: str) -> set[str]:
    return set(re.findall(r"\b(?:veilrec|node)_[a-z_]+\b", text))


def test_a_rule_is_about_metrics_that_exist(exposed: str) -> None:
    known = named(re.sub(r"^#.*$", "", exposed, flags=re.M))
    for rule in rules():
        wanted = named(rule["expr"])
        assert wanted and wanted <= known | FOREIGN, rule["alert"]
        labels = set(re.findall(r"(\w+)=~?\"", rule["expr"])) - {"file"}
        assert all(f'{label}="' in exposed for label in labels), rule["alert"]


def test_a_rule_says_how_bad_it_is_and_what_to_do(exposed: str) -> None:
    runbook = RUNBOOK.read_text()
    alerts = [rule["alert"] for rule in rules()]
    assert len(alerts) == len(set(alerts)) >= 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"].endswith(".") and f"`{rule['alert']}`" in runbook


def test_every_metric_is_in_the_runbook(exposed: str) -> None:
    families = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE ")}
    shown = {name for name in families if not name.endswith("_created")}
    runbook = RUNBOOK.read_text()
    assert not [name for name in sorted(shown) if f"`{name}" not in runbook]


def test_the_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH: it comes with Prometheus")
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
