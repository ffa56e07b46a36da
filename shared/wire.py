"""Requests to Flower's records and back: what a partner is told.

What a partner answers is in `shared.wire_answers`. The two files hold the only imports of Flower's records.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from shared.config import parse_config
from shared.errors import ConfigError, ProtocolError, VersionMismatchError
from shared.exchange import Consent, Consents, Inbox, KeyOffer, Roster, Survivors
from shared.messages import RoundPlan, SignedPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.ledger import Receipt
from shared.privacy.plan import PrivacyPlan
from shared.requests import (
    Attempt,
    BareRequest,
    ConsentRequest,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from shared.wire_frames import PROTOCOL

UNREADABLE = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading a record of another kind, or JSON of another shape, ends in."""
STEP, PLAN, RECEIPT, CONTENT, PARAMETERS, PRIOR = "step", "plan", "receipt", "content", "parameters", "prior"
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # names a folder at the partner
_NONCE = re.compile(r"[0-9a-f]{32}")


def pack_request(request: Request) -> RecordDict:
    """The content of a message to a partner."""
    match request:
        case KeysRequest(signed):
            return _beginning("keys", signed)
        case BareRequest(signed, model, receipt):
            return RecordDict({**_beginning("bare", signed), **_model_records(model), **_receipt_record(receipt)})
        case SharesRequest(attempt, roster, receipt):
            offers = roster.offers
            told = _following(
                "shares",
                attempt,
                names=[o.name for o in offers],
                sealing_keys=[o.sealing_key for o in offers],
                mask_keys=[o.mask_key for o in offers],
                signatures=[o.signature for o in offers],
            )
            return RecordDict({**told, **_receipt_record(receipt)})
        case SumRequest(attempt, inbox, model):
            told = _following("sum", attempt, names=list(inbox.sealed), sealed=list(inbox.sealed.values()))
            return RecordDict({**told, **_model_records(model)})
        case ConsentRequest(attempt, survivors):
            return _following("consent", attempt, names=list(survivors.names))
        case OpenRequest(attempt, consents):
            signed_by = consents.consents
            return _following(
                "open",
                attempt,
                names=[c.name for c in signed_by],
                signatures=[c.signature for c in signed_by],
            )


def unpack_request(content: RecordDict) -> Request:
    """Read a message from the coordinator.

    Raises
    ------
    VersionMismatchError
        If the message is of another version of the exchanges.
    ProtocolError
        If a field is absent, is not what was expected, or is one too many.
    """
    try:
        _check_version(config(content, STEP)["protocol"])
        step = str(config(content, STEP)["step"])
        request = _READERS[step](content)
        if pack_request(request) != content:  # nothing that is not read may come along
            raise ProtocolError(f"Expected the fields of exchange {step} and no others.")
        return request
    except UNREADABLE:
        raise ProtocolError("Expected one of the exchanges of a round.") from None


def parse_plan(text: str) -> RoundPlan:
    """Read a round plan from the text that was signed.

    Raises
    ------
    ProtocolError
        If a field is absent or not what was expected.
    PolicyViolationError
        If the privacy plan has no noise where its mode needs it.
    """
    try:
        told = json.loads(text)
        plan = RoundPlan(
            run_id=_matching(_RUN_ID, told["run_id"]),
            round=int(told["round"]),
            stage=told["stage"],
            config=parse_config(json.dumps(told["config"]), "round plan"),
            plan=PrivacyPlan(**told["plan"]),
            catalogue_digest=str(told["catalogue_digest"]),
            model_digest=str(told["model_digest"]),
            attempt=_matching(_NONCE, told["attempt"]),
        )
        if plan.stage not in ("prior", "train") or plan.round < 1 or plan.text() != text:
            raise ValueError
        return plan
    except (*UNREADABLE, ConfigError):
        raise ProtocolError("Expected a round plan, in the form that `RoundPlan.text` writes.") from None


def payload_bytes(content: RecordDict) -> int:
    """Bytes of all arrays and of all texts, byte strings and numbers of a message."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    return arrays + sum(_size(value) for record in content.config_records.values() for value in record.values())


def config(content: RecordDict, name: str) -> dict[str, Any]:
    """The fields of a record; KeyError or TypeError if it is not one."""
    record = content[name]
    if not isinstance(record, ConfigRecord):
        raise TypeError
    return dict(record)


def arrays(content: RecordDict, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a record, none if it is absent; ValueError if it holds anything else."""
    if name not in content:
        return {}
    try:
        return {key: array.numpy() for key, array in cast(ArrayRecord, content[name]).items()}
    except Exception:  # over bytes that are no array, NumPy and zipfile raise errors of many families
        raise ValueError from None


def array_record(named: dict[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as bytes of their own."""
    return ArrayRecord(OrderedDict((name, Array(np.ascontiguousarray(a))) for name, a in named.items()))


def by_name(names: list[str], values: list[bytes]) -> dict[str, bytes]:
    """Two lists as one table; ValueError if they do not fit, a name comes twice or is no text."""
    if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError
    if not all(isinstance(value, bytes) for value in values):
        raise ValueError
    return dict(zip(names, values, strict=True))


def _beginning(step: str, signed: SignedPlan) -> RecordDict:
    plan = ConfigRecord({"json": signed.text, "signature": signed.signature})
    return RecordDict({STEP: ConfigRecord({"protocol": PROTOCOL, "step": step}), PLAN: plan})


def _receipt_record(receipt: Receipt | None) -> dict[str, ConfigRecord]:
    return {} if receipt is None else {RECEIPT: ConfigRecord(asdict(receipt))}


def _following(step: str, attempt: Attempt, **fields: Any) -> RecordDict:
    told = ConfigRecord({"protocol": PROTOCOL, "step": step, "run_id": attempt.run_id, "nonce": attempt.nonce})
    return RecordDict({STEP: told, CONTENT: ConfigRecord(fields)})


def _model_records(model: Model) -> dict[str, ArrayRecord]:
    records = {}
    if model.parameters is not None:
        records[PARAMETERS] = array_record({"flat": model.parameters})
    if model.prior is not None:
        records[PRIOR] = array_record(dict(model.prior.arrays()))
    return records


def _check_version(told: object) -> None:
    if type(told) is not int or told != PROTOCOL:
        # Only a number is quoted: the text of another field may be anything.
        got = told if isinstance(told, int) else "none"
        raise VersionMismatchError(f"Expected protocol={PROTOCOL} of the exchanges, got {got}: install one version.")


def _read_signed(content: RecordDict) -> SignedPlan:
    plan = config(content, PLAN)
    return SignedPlan(str(plan["json"]), _bytes(plan["signature"]))


def _read_receipt(content: RecordDict) -> Receipt | None:
    if RECEIPT not in content:
        return None
    told = config(content, RECEIPT)
    return Receipt(**{key: _typed(value, int if key == "count" else str) for key, value in told.items()})


def _read_keys(content: RecordDict) -> KeysRequest:
    return KeysRequest(_read_signed(content))


def _read_bare(content: RecordDict) -> BareRequest:
    return BareRequest(_read_signed(content), _read_model(content), _read_receipt(content))


def _read_shares(content: RecordDict) -> SharesRequest:
    told = config(content, CONTENT)
    columns = (told["names"], told["sealing_keys"], told["mask_keys"], told["signatures"])
    offers = tuple(
        KeyOffer(_typed(name, str), _bytes(sealing), _bytes(masking), _bytes(signature))
        for name, sealing, masking, signature in zip(*columns, strict=True)
    )
    return SharesRequest(_read_attempt(content), Roster(offers), _read_receipt(content))


def _read_sum(content: RecordDict) -> SumRequest:
    told = config(content, CONTENT)
    inbox = Inbox(by_name(told["names"], told["sealed"]))
    return SumRequest(_read_attempt(content), inbox, _read_model(content))


def _read_consent(content: RecordDict) -> ConsentRequest:
    names = tuple(_typed(name, str) for name in config(content, CONTENT)["names"])
    return ConsentRequest(_read_attempt(content), Survivors(names))


def _read_open(content: RecordDict) -> OpenRequest:
    told = config(content, CONTENT)
    pairs = zip(told["names"], told["signatures"], strict=True)
    consents = tuple(Consent(_typed(name, str), _bytes(signature)) for name, signature in pairs)
    return OpenRequest(_read_attempt(content), Consents(consents))


_READERS: dict[str, Callable[[RecordDict], Request]] = {
    "keys": _read_keys,
    "bare": _read_bare,
    "shares": _read_shares,
    "sum": _read_sum,
    "consent": _read_consent,
    "open": _read_open,
}


def _read_attempt(content: RecordDict) -> Attempt:
    told = config(content, STEP)
    return Attempt(_matching(_RUN_ID, told["run_id"]), _matching(_NONCE, told["nonce"]))


def _read_model(content: RecordDict) -> Model:
    parameters, prior = arrays(content, PARAMETERS), arrays(content, PRIOR)
    if any(array.dtype != np.float32 for array in (*parameters.values(), *prior.values())):
        raise ValueError
    return Model(parameters["flat"] if parameters else None, CollaborativePrior(**prior) if prior else None)


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError
    return value


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _bytes(value: Any) -> bytes:
    return cast(bytes, _typed(value, bytes))


def _size(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(_size(one) for one in value)
    return len(value.encode() if isinstance(value, str) else value) if isinstance(value, (str, bytes)) else 8
