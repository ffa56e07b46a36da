"""What the tests of the packaging share: where it lies, and the tools that check it, where they are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
SYSTEMD, DOCKER, HELM = DEPLOY / "systemd", DEPLOY / "docker", DEPLOY / "helm"

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Set wherever Flower or BERT runs: nothing calls out."""


def tool(name: str) -> str:
    """The path of a program, from this Python's own environment or the machine; the test is skipped without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found
