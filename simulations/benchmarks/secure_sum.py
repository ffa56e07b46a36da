"""The cost of a masked sum: all partners and the coordinator in one process, one after the other.

`play` is also how the tests run a round: it carries every message, measures who computes, and lets partners
fall silent at any of the five rounds.
"""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple, dataclass, field, is_dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.secure_sum import MaskingSession
from server.secure_sum import SecureSum
from shared.exchange import Inbox, Roster, Survivors
from shared.hazmat.fixed_point import to_ring
from shared.hazmat.randomness import SystemRandomness
from shared.hazmat.signing import SigningKey

Step = Literal["offer", "share", "mask", "consent", "open"]
Leaving = Mapping[Step, Collection[str]]
"""Who does not answer in a round, nor in any after it."""
_T = TypeVar("_T")


@dataclass(slots=True)
class Played:
    """What a round came to.

    Attributes
    ----------
    sum_ : ndarray of int64, shape (P,)
    survivors : tuple of str
        Whose vectors are in the sum.
    client_s, bytes_up : dict
        A partner's seconds and the bytes of all its answers: names, keys, signatures, shares and vector,
        without the framing of a transport.
    server_s : float
    """

    sum_: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    survivors: tuple[str, ...] = ()
    client_s: dict[str, float] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    server_s: float = 0.0

    def client(self, name: str, step: Callable[..., _T], *given: Any) -> _T:
        """Let a partner take a step; count its time and the bytes of its answer."""
        start = time.perf_counter()
        answer = step(*given)
        self.client_s[name] = self.client_s.get(name, 0.0) + time.perf_counter() - start
        self.bytes_up[name] = self.bytes_up.get(name, 0) + payload_bytes(answer)
        return answer

    def server(self, step: Callable[..., _T], *given: Any) -> _T:
        """Let the coordinator take a step; count its time."""
        start = time.perf_counter()
        answer = step(*given)
        self.server_s += time.perf_counter() - start
        return answer


@dataclass(frozen=True, slots=True)
class Federation:
    """Partners with identities that all of them have pinned."""

    identities: dict[str, SigningKey]
    threshold: int

    @classmethod
    def of(cls, partners: int, threshold: int | None = None) -> Federation:
        """`partners` fresh ones; two thirds of them must survive unless `threshold` says otherwise."""
        names = [f"partner-{number:02d}" for number in range(partners)]
        return cls({name: SigningKey.generate() for name in names}, threshold or math.ceil(2 * partners / 3))

    def sessions(self, context: bytes) -> dict[str, MaskingSession]:
        """Every partner's side of one attempt."""
        pinned = {name: key.public for name, key in self.identities.items()}
        return {
            name: MaskingSession(name, context, key, pinned, self.threshold, SystemRandomness())
            for name, key in self.identities.items()
        }

    def coordinator(self, context: bytes, size: int) -> SecureSum:
        """The other side of it."""
        pinned = {name: key.public for name, key in self.identities.items()}
        return SecureSum(context, self.threshold, pinned, size)


def play(
    sessions: Mapping[str, MaskingSession],
    server: SecureSum,
    rings: Mapping[str, NDArray[np.uint32]],
    leaving: Leaving | None = None,
) -> Played:
    """Carry one round's messages; raises whatever one of the two sides raises."""
    played, gone = Played(), dict(leaving or {})

    def here(names: Collection[str], step: Step) -> list[str]:
        return [name for name in names if name not in gone.get(step, ())]

    offers = [played.client(name, sessions[name].offer) for name in here(sessions, "offer")]
    roster: Roster = played.server(server.roster, offers)
    outboxes = [played.client(name, sessions[name].share, roster) for name in here(server.live, "share")]
    inboxes: dict[str, Inbox] = played.server(server.inboxes, outboxes)
    for name in here(server.live, "mask"):  # one vector at a time is in memory
        played.server(server.add, name, played.client(name, _masked, sessions[name], inboxes[name], rings[name]))
    survivors: Survivors = played.server(server.survivors)
    signed = [played.client(name, sessions[name].consent, survivors) for name in here(server.live, "consent")]
    consents = played.server(server.consents, signed)
    openings = [played.client(name, sessions[name].open, consents) for name in here(server.live, "open")]
    played.sum_, played.survivors = played.server(server.open, openings), survivors.names
    return played


def benchmark(partners: Collection[int], parameters: int, dropped: float, repeat: int) -> list[dict[str, Any]]:
    """One row a number of partners without dropouts, and one with; medians over `repeat` rounds with fresh keys.

    Parameters
    ----------
    partners : collection of int
    parameters : int
        P, the length of the vectors.
    dropped : float
        The fraction of partners that share their secrets and then do not deliver, at most as many as may.
    repeat : int
    """
    rows = []
    for n in partners:
        most = n - Federation.of(n).threshold
        for lost in sorted({0, min(round(dropped * n), most)}):
            rounds = [_measure(n, parameters, lost) for _ in range(repeat)]
            row: dict[str, Any] = {"partners": n, "parameters": parameters, "dropped": lost}
            row |= {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            rows.append(row | {"bytes_up_per_partner": max(one["bytes_up_per_partner"] for one in rounds)})
    return rows


def payload_bytes(value: Any) -> int:
    """Bytes of what an answer holds: text, bytes and arrays, at any depth."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value) and not isinstance(value, type):
        value = astuple(value)
    return sum(payload_bytes(part) for part in ([*value, *value.values()] if isinstance(value, dict) else value))


def _measure(partners: int, parameters: int, lost: int) -> dict[str, float]:
    """One round with fresh identities, keys and vectors."""
    federation, context = Federation.of(partners), secrets.token_bytes(32)
    names = list(federation.identities)
    draw = np.random.default_rng().normal(0.0, 2.0**16, size=(partners, parameters))
    values = dict(zip(names, np.rint(draw).astype(np.int64), strict=True))
    rings = {name: to_ring(value, partners) for name, value in values.items()}
    played = play(
        federation.sessions(context), federation.coordinator(context, parameters), rings, {"mask": names[:lost]}
    )
    plain = sum((values[name] for name in played.survivors), np.zeros(parameters, np.int64))
    return {
        "client_s": statistics.mean(played.client_s[name] for name in played.survivors),
        "server_s": played.server_s,
        "total_compute_s": sum(played.client_s.values()) + played.server_s,
        "bytes_up_per_partner": max(played.bytes_up.values()),
        "max_error_steps": float(np.abs(played.sum_ - plain).max()),
    }


def _masked(session: MaskingSession, inbox: Inbox, ring: NDArray[np.uint32]) -> NDArray[np.uint32]:
    session.receive(inbox)
    return session.mask(ring)
