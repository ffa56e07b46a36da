"""What a partner keeps of a run between messages: another process may answer the next one.

``runs/<run_id>/`` in the partner's folder: the prior of the run, and of its current round the plan, the
attempts that were made, the session of the secure sum, and the noised sum, which is drawn once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.errors import IntegrityError, LedgerError
from shared.files import write_bytes
from shared.hazmat.randomness import SECRET_BYTES
from shared.messages import NoisedSum, SignedPlan
from shared.model.prior import CollaborativePrior


@dataclass(frozen=True, slots=True)
class RoundState:
    """The current attempt at a round.

    Attributes
    ----------
    round : int
    attempts : tuple of str
        Nonces of all attempts of the run, the current one last.
    signed : SignedPlan
        Its plan, checked when it came.
    session : bytes or None
        Of the secure sum (secret); None once it is over.
    """

    round: int
    attempts: tuple[str, ...]
    signed: SignedPlan
    session: bytes | None


class RunFolder:
    """The files of one run at one partner.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._state, self._prior, self._sum = folder / "round.json", folder / "prior.safetensors", folder / "sum"
        self._secret = folder / "secret"

    def state(self) -> RoundState | None:
        """The current attempt; None before the first.

        Raises
        ------
        IntegrityError
            If the file is not what was written.
        """
        try:
            told = json.loads(self._state.read_text(encoding="utf-8"))
            signed = SignedPlan(str(told["text"]), _bytes(told["signature"]))
            session = None if told["session"] is None else _bytes(told["session"])
            return RoundState(int(told["round"]), tuple(told["attempts"]), signed, session)
        except FileNotFoundError:
            return None
        except (OSError, ArithmeticError, KeyError, RecursionError, TypeError, ValueError):
            raise IntegrityError(f"{self._state}: Expected the state of a round.") from None

    def keep_state(self, state: RoundState, *, durable: bool = True) -> None:
        """Replace the current attempt.

        A session that is lost only drops the partner from a sum. An older one that comes back could answer a
        step twice: from the first answer that hangs on secrets it is kept durably.
        """
        told = {
            "round": state.round,
            "attempts": list(state.attempts),
            "text": state.signed.text,
            "signature": _text(state.signed.signature),
            "session": None if state.session is None else _text(state.session),
        }
        _write(self._state, json.dumps(told).encode(), durable=durable)

    def secret(self, request: str) -> bytes:
        """The secret from which all randomness of a request is drawn; made on first use, durable before it is used."""
        text = self._secret.read_text(encoding="ascii") if self._secret.exists() else ""
        known, _, secret = text.partition(" ")
        if known != request:
            secret = os.urandom(SECRET_BYTES).hex()
            _write(self._secret, f"{request} {secret}".encode())
        return bytes.fromhex(secret)

    def forget_secret(self) -> None:
        """Erase the secret of a round that was released: its noised sum is kept."""
        self._secret.unlink(missing_ok=True)

    def keep_sum(self, request: str, noised: NoisedSum) -> str:
        """Keep the noised sum of a request, durably; returns its digest for the ledger."""
        digest = _digest(noised.values)
        loss = "" if noised.loss is None else repr(noised.loss)
        _write(self._sum, save({"values": noised.values}, {"request": request, "digest": digest, "loss": loss}))
        return digest

    def kept_sum(self, request: str, digest: str) -> NoisedSum | None:
        """The noised sum that was kept for a request, if it is the one with that digest."""
        try:
            with safe_open(self._sum, framework="np") as kept:
                meta, values = kept.metadata() or {}, kept.get_tensor("values")
            loss = float(meta["loss"]) if meta["loss"] else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        if meta.get("request") != request or _digest(values) != digest:
            return None
        return NoisedSum(values, loss)

    def keep_prior(self, prior: CollaborativePrior) -> None:
        """Keep the federation's prior for the rounds of the run."""
        _write(self._prior, save(dict(prior.arrays())))

    def prior(self) -> CollaborativePrior | None:
        """The prior of the run; None if it never came.

        Raises
        ------
        IntegrityError
            If the file is not what was written.
        """
        if not self._prior.exists():
            return None
        try:
            with safe_open(self._prior, framework="np") as kept:
                return CollaborativePrior(**{name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, TypeError):
            raise IntegrityError(f"{self._prior}: Expected the prior of a run.") from None


def _write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """As `write_bytes`; a full disk is an error of what has to be kept, like that of the ledger."""
    try:
        write_bytes(path, data, durable=durable)
    except OSError as error:
        raise LedgerError(
            f"Expected to keep {path.name} of a run, got {type(error).__name__}: {error.strerror}."
        ) from None


def _digest(values: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i8").tobytes()).hexdigest()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: object) -> bytes:
    return base64.b64decode(str(text), validate=True)
