"""What may leave a partner, field by field: the allow-list, and answers to Flower's records and back.

`ALLOWED` is all of it. A number is either public, which means that it does not depend on the partner's
data, or it was paid for and carries the hash of the ledger's entry. Errors cross as the name of their
family. Anything else cannot be packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from shared.errors import ProtocolError
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.messages import MaskedUpdate
from shared.privacy.ledger import LedgerHead
from shared.requests import Answer, Contribution
from shared.wire import UNREADABLE, array_record, arrays, by_name, config
from shared.wire_frames import ERROR

ANSWER, UPDATE = "answer", "update"


@dataclass(frozen=True, slots=True)
class Field:
    """One field that may leave.

    Attributes
    ----------
    kind : {"public", "secret share", "paid"}
        ``public``: independent of the data. ``secret share``: random to all but its reader. ``paid``: depends
        on the data, under noise and mask, and was reserved in the ledger.
    why : str
    """

    kind: Literal["public", "secret share", "paid"]
    why: str


_NAME = Field("public", "the partner's name in the federation")
ALLOWED: dict[str, dict[str, Field]] = {
    "KeyOffer": {
        "name": _NAME,
        "sealing_key": Field("public", "a fresh public key"),
        "mask_key": Field("public", "a fresh public key"),
        "signature": Field("public", "by the partner's identity, over the keys"),
    },
    "Outbox": {
        "name": _NAME,
        "recipients": Field("public", "all peers of the roster"),
        "sealed": Field("secret share", "shares of this attempt's secrets, sealed for one peer each"),
    },
    "Contribution": {
        "name": _NAME,
        "masked": Field("public", "as the plan says"),
        "head_count": Field("public", "length of the ledger"),
        "head_hash": Field("public", "the ledger's head once the vector was paid for; covers public fields only"),
        "update": Field("paid", "the clipped sum with its noise, under masks where the plan says so"),
        "loss": Field("public", "mode none only: simulations without privacy"),
    },
    "Consent": {"name": _NAME, "signature": Field("public", "over the names of the survivors")},
    "Opening": {
        "name": _NAME,
        "survivors": Field("public", "as the coordinator named them"),
        "self_seeds": Field("secret share", "one share of each survivor's seed"),
        "dropped": Field("public", "the rest of the roster"),
        "mask_keys": Field("secret share", "one share of each dropped partner's key"),
    },
    "error": {"family": Field("public", "the name of the error's class, never its text")},
}


def pack_answer(answer: Answer) -> RecordDict:
    """The content of a partner's answer.

    Raises
    ------
    ProtocolError
        If the answer is not of a kind that may leave, or has a field that is not on the list.
    """
    match answer:
        case KeyOffer(name, sealing_key, mask_key, signature):
            return _told("KeyOffer", name=name, sealing_key=sealing_key, mask_key=mask_key, signature=signature)
        case Outbox(name, sealed):
            return _told("Outbox", name=name, recipients=list(sealed), sealed=list(sealed.values()))
        case Consent(name, signature):
            return _told("Consent", name=name, signature=signature)
        case Opening(name, self_seeds, mask_keys):
            return _told(
                "Opening",
                name=name,
                survivors=list(self_seeds),
                self_seeds=list(self_seeds.values()),
                dropped=list(mask_keys),
                mask_keys=list(mask_keys.values()),
            )
        case Contribution():
            return _contribution(answer)
    raise ProtocolError(f"Expected an answer of one of the exchanges to send, got {type(answer).__name__}.")


def unpack_answer(content: RecordDict) -> Answer:
    """Read a partner's answer.

    Raises
    ------
    ProtocolError
        If it is an error (the message then names its family), or not an answer.
    """
    if ERROR in content:
        raise ProtocolError(f"Expected an answer, the partner refused with {error_name(content)}.")
    try:
        return _read(config(content, ANSWER), content)
    except UNREADABLE:
        raise ProtocolError("Expected a partner's answer to an exchange.") from None


def error_name(content: RecordDict) -> str:
    """The family of a refusal; only letters, as it comes from the other side."""
    name = str(cast(ConfigRecord, content[ERROR]).get("family", ""))
    return name if name.isalpha() and len(name) < 60 else "an error"


def _contribution(answer: Contribution) -> RecordDict:
    update = answer.update
    if not isinstance(update, MaskedUpdate) or update.values.dtype != np.uint32:
        raise ProtocolError(f"Expected a MaskedUpdate to send, got {type(update).__name__}.")
    loss = {} if update.loss is None else {"loss": update.loss}
    content = _told(
        "Contribution",
        name=answer.name,
        masked=update.masked,
        head_count=answer.head.count,
        head_hash=answer.head.hash,
        **loss,
    )
    content[UPDATE] = array_record({"flat": update.values})
    return content


def _told(kind: str, **fields: object) -> RecordDict:
    unknown = fields.keys() - ALLOWED[kind].keys()
    if unknown:
        raise ProtocolError(f"Expected only fields of {kind} that may leave, got {', '.join(sorted(unknown))}.")
    return RecordDict({ANSWER: ConfigRecord({"kind": kind, **fields})})  # type: ignore[dict-item]


def _read(told: dict[str, object], content: RecordDict) -> Answer:
    kind, fields = told["kind"], told
    name = str(fields["name"])
    if kind == "KeyOffer":
        return KeyOffer(name, *(_bytes(fields[key]) for key in ("sealing_key", "mask_key", "signature")))
    if kind == "Outbox":
        return Outbox(name, by_name(*_columns(fields, "recipients", "sealed")))
    if kind == "Consent":
        return Consent(name, _bytes(fields["signature"]))
    if kind == "Opening":
        seeds = by_name(*_columns(fields, "survivors", "self_seeds"))
        return Opening(name, seeds, by_name(*_columns(fields, "dropped", "mask_keys")))
    if kind != "Contribution":
        raise ValueError
    values, loss = arrays(content, UPDATE)["flat"], fields.get("loss")
    if values.dtype != np.uint32 or values.ndim != 1:
        raise ValueError
    update = MaskedUpdate(values, fields["masked"] is True, None if loss is None else float(cast(float, loss)))
    head = LedgerHead(int(cast(int, fields["head_count"])), str(fields["head_hash"]))
    return Contribution(name, update, head)


def _columns(fields: dict[str, object], keys: str, values: str) -> tuple[list[str], list[bytes]]:
    return cast(list[str], fields[keys]), cast(list[bytes], fields[values])


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return value
