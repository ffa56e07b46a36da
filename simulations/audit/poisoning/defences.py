"""What a federation can do against dishonest partners, and what it costs before anybody attacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.buckets import smallest_bucket
from shared.config import RunConfig, parse_config

BUCKETS = 3
"""As many as ten partners allow with three in each, and the least of which one may be bad."""


@dataclass(frozen=True, slots=True)
class Defence:
    """A way to make one sum of the partners'.

    Attributes
    ----------
    name : str
    about : str
        What is done, in words.
    federation : mapping
        Settings of `shared.config.FederationConfig`.
    """

    name: str
    about: str
    federation: Mapping[str, Any] = field(default_factory=dict)

    def over(self, config: RunConfig) -> RunConfig:
        """The configuration with this defence.

        Raises
        ------
        ConfigError
            If it cannot be had: too few partners for the buckets.
        """
        tree = config.model_dump(mode="json")
        tree["federation"] = {**tree["federation"], **self.federation}
        return parse_config(json.dumps(tree), f"defence {self.name}")

    def anonymity_set(self, config: RunConfig) -> int:
        """Partners in the smallest sum that is opened: how many each of them hides among."""
        federation = self.over(config).federation
        return smallest_bucket(federation.partners, federation.buckets) if federation.masked else 1


def _bucketed(combine: str) -> dict[str, Any]:
    return {"buckets": BUCKETS, "combine": combine}


BARE = Defence("bare", "no masks: the coordinator sees every partner's noised sum", {"secure_sum": False})
DEFENCES = {
    one.name: one
    for one in (
        Defence("masked", "one masked sum of all partners; to the bit the sum that it would be in the open"),
        Defence(
            "clipped", "masked sums of three buckets, each clipped to its part of the public bound", _bucketed("sum")
        ),
        Defence(
            "median",
            "the coordinate-wise median of the three (a trimmed mean of three is the same)",
            _bucketed("median"),
        ),
        Defence("screened", "their sum without the rows that lie apart from the other buckets'", _bucketed("screened")),
    )
}
RECOMMENDED = "screened"
