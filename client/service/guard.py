"""Who may ask, how often, and how much: before a request is read.

A token is 256 bits of somebody else's choosing; the file is the partner's, readable by its owner alone. Only digests
of tokens are held, and they are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import ConfigError

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""The page itself holds nothing; what it shows it asks for with a token."""
OPEN_PREFIX = "/page/"
SHORTEST_TOKEN = 20
MOST_BODY = 4 * 2**20
OWN_NAMES = ("localhost", "127.0.0.1", "[")
"""Of this machine, as a Host header begins with them (an IPv6 address with its bracket). Without tokens no other name
is answered: a web page elsewhere could have its own name resolve to this machine (DNS rebinding)."""
CALLERS = 10_000
"""Buckets that are held at once."""


def read_tokens(file: Path) -> frozenset[bytes]:
    """Digests of the tokens in a file: one a line; empty lines and those with # in front do not count.

    Raises
    ------
    ConfigError
        If there is no such file, others may read it, or a token is short.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        lines = [line.strip() for line in file.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{file}: Expected a readable file with one token a line, in ASCII.") from None
    if mode & 0o077:
        raise ConfigError(f"{file}: Expected mode=0600, got {mode:04o}: others may read the tokens.")
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens or any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise ConfigError(f"{file}: Expected tokens of at least {SHORTEST_TOKEN} characters, one a line.")
    return frozenset(hashlib.sha256(token.encode()).digest() for token in tokens)


def check_exposure(host: str, tokens: frozenset[bytes]) -> None:
    """Refuse to listen to others than this machine without tokens.

    Raises
    ------
    ConfigError
    """
    try:
        own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own and not tokens:
        raise ConfigError("Expected --tokens FILE where --host is not this machine alone.")


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` requests a second, `burst` at once."""

    rate: float
    burst: float
    level: float = field(default=0.0)
    at: float = field(default_factory=time.monotonic)

    def take(self, now: float) -> bool:
        """Whether one more request fits."""
        self.level = max(0.0, self.level - (now - self.at) * self.rate)
        self.at = now
        if self.level + 1 > self.burst:
            return False
        self.level += 1
        return True


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app : ASGI application
    tokens : frozenset of bytes
        Digests; empty lets everybody in.
    rate : float
        Requests a second of one token, or of one address where there are none; 0 for no limit.
    most_body : int
        Bytes of a request.
    """

    def __init__(
        self, app: ASGIApp, tokens: frozenset[bytes] = frozenset(), rate: float = 0.0, most_body: int = MOST_BODY
    ) -> None:
        self._app, self._tokens, self._rate, self._most_body = app, tokens, rate, most_body
        self._buckets: dict[bytes, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 401, 413 or 429."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        caller = self._caller(scope, headers)
        if caller is None:
            await _refuse(send, 401, "Expected Authorization: Bearer TOKEN of this service.", [_ASK])
        elif not self._in_time(caller):
            await _refuse(send, 429, f"Expected at most {self._rate:g} requests a second.", [(b"retry-after", b"1")])
        elif _length(headers) > self._most_body:
            await _refuse(send, 413, f"Expected at most {self._most_body} bytes.")
        else:
            await self._pass(scope, receive, send)

    def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> bytes | None:
        """Whose bucket counts; None for one who may not ask."""
        path = scope["path"]
        address = (scope.get("client") or ("",))[0].encode()
        if not self._tokens or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return bytes(address)
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        known = [hmac.compare_digest(digest, one) for one in self._tokens]  # all of them, whichever fits
        return digest if kind.lower() == b"bearer" and any(known) else None

    def _in_time(self, caller: bytes) -> bool:
        if not self._rate:
            return True
        if len(self._buckets) >= CALLERS and caller not in self._buckets:
            self._buckets.pop(min(self._buckets, key=lambda one: self._buckets[one].at))
        bucket = self._buckets.setdefault(caller, Bucket(self._rate, max(1.0, 2 * self._rate)))
        return bucket.take(time.monotonic())

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take the whole body, as far as it is allowed to go, then let the request through: a body may come without
        its length, and one that is too large is refused before anybody reads it."""
        messages: list[Message] = []
        came, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            came += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if came > self._most_body:
                await _refuse(send, 413, f"Expected at most {self._most_body} bytes.")
                return
        replayed = iter(messages)

        async def again() -> Message:
            return next(replayed, None) or await receive()

        await self._app(scope, again, send)


_ASK = (b"www-authenticate", b"Bearer")


def _length(headers: dict[bytes, bytes]) -> int:
    told = headers.get(b"content-length", b"0")
    return int(told) if told.isdigit() else 0


async def _refuse(send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps({"error": "RefusedError", "message": message}).encode()
    told = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
