"""Messages to Flower's records and back; what may cross is decided here, field by field.

To a partner: the round plan, the parameters, the prior when it is new. To the coordinator: a
`NoisedSum` and the name of an error, nothing else.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import asdict
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from shared.config import parse_config
from shared.errors import ConfigError, ProtocolError
from shared.messages import NoisedSum, RoundPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.plan import PrivacyPlan

_UNREADABLE = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading a record of another kind, or JSON of another shape, ends in."""
PLAN, PARAMETERS, PRIOR, UPDATE, ERROR = "plan", "parameters", "prior", "update", "error"
Vector = NDArray[np.float32]


def pack_round(
    plan: RoundPlan, parameters: Vector | None = None, prior: CollaborativePrior | None = None
) -> RecordDict:
    """The content of a message to a partner."""
    content = RecordDict({PLAN: ConfigRecord({"json": _plan_json(plan)})})
    if parameters is not None:
        content[PARAMETERS] = _arrays({"flat": parameters})
    if prior is not None:
        content[PRIOR] = _arrays(prior.arrays())
    return content


def unpack_round(content: RecordDict) -> tuple[RoundPlan, Vector | None, CollaborativePrior | None]:
    """Read a message from the coordinator.

    Raises
    ------
    ProtocolError
        If a field is absent or not what was expected.
    PolicyViolationError
        If the privacy plan has no noise where its mode needs it.
    """
    try:
        told = json.loads(str(cast(ConfigRecord, content[PLAN])["json"]))
        plan = RoundPlan(
            run_id=str(told["run_id"]),
            round=int(told["round"]),
            stage=told["stage"],
            config=parse_config(json.dumps(told["config"]), "round plan"),
            plan=PrivacyPlan(**told["plan"]),
            catalogue_digest=str(told["catalogue_digest"]),
        )
        if plan.stage not in ("prior", "train"):
            raise ValueError
        parameters = _read(content, PARAMETERS).get("flat")
        prior = _read(content, PRIOR)
        return plan, parameters, CollaborativePrior(**prior) if prior else None
    except (*_UNREADABLE, ConfigError):
        raise ProtocolError("Expected a round plan with its parameters.") from None


def pack_update(update: NoisedSum) -> RecordDict:
    """The content of a partner's answer.

    Only a `NoisedSum` fits. The loss travels only where the plan adds no noise.
    """
    if not isinstance(update, NoisedSum):
        raise ProtocolError(f"Expected a NoisedSum to send, got {type(update).__name__}.")
    public = ConfigRecord({"noise_stddev": update.noise_stddev})
    if update.loss is not None and update.noise_stddev == 0.0:
        public["loss"] = update.loss
    return RecordDict({UPDATE: _arrays({"flat": update.values.astype(np.float32)}), PLAN: public})


def unpack_update(content: RecordDict, size: int) -> NoisedSum:
    """Read a partner's answer, which must have `size` finite values.

    Raises
    ------
    ProtocolError
        If it has not, or is an error; the message then names the error's family.
    """
    if ERROR in content:
        raise ProtocolError(f"Expected an update, the partner answered {error_name(content)}.")
    try:
        values = _read(content, UPDATE)["flat"].astype(np.float64)
        public = cast(ConfigRecord, content[PLAN])
        stddev, loss = float(cast(float, public["noise_stddev"])), public.get("loss")
        update = NoisedSum(values, stddev, None if loss is None else float(cast(float, loss)))
    except _UNREADABLE:
        raise ProtocolError("Expected an update with the standard deviation of its noise.") from None
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ProtocolError(f"Expected an update of {size} finite values.")
    if not math.isfinite(stddev) or stddev < 0:
        raise ProtocolError("Expected the standard deviation of an update's noise.")
    return update


def pack_error(wire_name: str) -> RecordDict:
    """The content of a refusal: the error's family, never its text."""
    return RecordDict({ERROR: ConfigRecord({"family": wire_name})})


def error_name(content: RecordDict) -> str:
    """The family of a refusal; only letters, as it comes from the other side."""
    name = str(cast(ConfigRecord, content[ERROR]).get("family", ""))
    return name if name.isalpha() and len(name) < 60 else "an error"


def payload_bytes(content: RecordDict) -> int:
    """Bytes of all arrays of a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _plan_json(plan: RoundPlan) -> str:
    return json.dumps(
        {
            "run_id": plan.run_id,
            "round": plan.round,
            "stage": plan.stage,
            "config": plan.config.model_dump(mode="json"),
            "plan": asdict(plan.plan),
            "catalogue_digest": plan.catalogue_digest,
        }
    )


def _arrays(named: dict[str, Vector]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(np.ascontiguousarray(a))) for name, a in named.items()))


def _read(content: RecordDict, name: str) -> dict[str, Vector]:
    if name not in content:
        return {}
    arrays = {key: array.numpy() for key, array in cast(ArrayRecord, content[name]).items()}
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise ProtocolError(f"Expected float32 arrays in {name}.")
    return cast(dict[str, Vector], arrays)
