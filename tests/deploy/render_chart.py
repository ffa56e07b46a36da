"""Helm's own engine in a process of its own: it brings the threads of another runtime with it.

Reads ``{"chart": path, "values": {...}}`` from stdin and prints what ``helm lint`` finds and what ``helm template``
renders, or the error with which Helm refuses the values.
"""

from __future__ import annotations

import json
import sys

import helm_python


def main() -> None:
    """One request, one document."""
    asked = json.load(sys.stdin)
    found = helm_python.lint(asked["chart"], asked["values"], strict=True)
    try:
        with helm_python.Chart.load(asked["chart"]) as chart:
            manifests, error = chart.render(asked["values"], name="shop", namespace="veilrec"), ""
    except helm_python.HelmError as refused:
        manifests, error = {}, str(refused)
    json.dump({"lint": found, "manifests": manifests, "error": error}, sys.stdout)


if __name__ == "__main__":
    main()
