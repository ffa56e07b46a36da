"""The command ``veilrec bench pii``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks.show import show

RECALL = {
    "kind": "planted",
    "planted": "n",
    "found": "found",
    "recall": "recall",
    "ci95": "95 %",
    "right_kind": "right kind",
}
FLAGGED = {"kind": "kind", "reviews": "reviews", "flagged": "flagged", "share": "share", "ci95": "95 %"}


def pii(
    each: Annotated[int, typer.Option(min=1, help="Planted values of a kind.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data: Annotated[
        Path | None, typer.Option(help="A folder with real reviews: how often something is replaced in them.")
    ] = None,
    scrub: Annotated[str, typer.Option(help="rules or presidio.")] = "rules",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Recall of the scrubber on planted personal data, with its interval; what it takes from real reviews."""
    from client.intake.scrubbing import scrubber_of
    from shared.errors import ConfigError
    from simulations.benchmarks.pii import measure_false_positives, measure_recall

    if scrub not in ("rules", "presidio"):
        raise ConfigError("Expected --scrub rules or presidio.")
    scrubber = scrubber_of(scrub)
    if data is None:
        rows, columns = measure_recall(each, seed, scrubber), RECALL
        caption = "Found: no run of four letters or digits of the value stays. Interval: Wilson."
    else:
        rows, columns = measure_false_positives(data, scrubber=scrubber), FLAGGED
        caption = "An upper bound of what is replaced wrongly: public reviews hold real addresses and links too."
    show("pii", rows, columns, as_json=as_json, title=f"scrub = {scrub}", caption=caption)
