"""The machine on which a benchmark ran, as far as it may be told: no host name, no paths."""

from __future__ import annotations

import os
import platform

import numpy as np


def machine() -> dict[str, str | int]:
    """Cores, platform and versions."""
    return {
        "cpus": os.cpu_count() or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
