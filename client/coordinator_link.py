"""What a node finds out of the coordinator before it connects: one clear error instead of Flower's refusals later."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from shared.errors import ConfigError, IntegrityError, VeilrecError, VersionMismatchError
from shared.wire_frames import PROTOCOL

HELLO, PROTOCOL_HEADER = "/v1/hello", "veilrec-protocol"
AHEAD_S, BEHIND_S = 5.0, 300.0
"""How far this clock may be ahead of the coordinator's and behind it: Flower signs the time of every request, and a
coordinator takes no signature from the future."""
TIMEOUT_S = 30.0
UPGRADE = 426
"""The coordinator's answer to a node of another version; it says what it speaks itself."""


def check_coordinator(address: str, ca_certificate: Path) -> None:
    """Ask the coordinator who it is, over TLS that the pinned CA must have signed.

    Raises
    ------
    ConfigError
        If this machine's clock is not the coordinator's, or nobody answers.
    IntegrityError
        If the certificate is not by the pinned CA, not of this address, or out of date.
    VersionMismatchError
        If the two speak different versions of the exchanges.
    """
    context = ssl.create_default_context(cafile=str(ca_certificate))
    try:
        spoken = {PROTOCOL_HEADER: str(PROTOCOL)}
        answer = httpx.get(f"https://{address}{HELLO}", headers=spoken, verify=context, timeout=TIMEOUT_S)
        told: Any = answer.json() if answer.is_success or answer.status_code == UPGRADE else None
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise _of_certificate(address, str(error)) from None
        raise ConfigError(f"Expected the coordinator at {address}, nobody answers there.") from None
    except (httpx.HTTPError, ValueError) as error:
        raise ConfigError(f"Expected the coordinator at {address}, got {type(error).__name__}.") from None
    check_version(told)
    check_clock(answer.headers.get("date", ""), time.time())


def _of_certificate(address: str, told: str) -> VeilrecError:
    """What is wrong with a certificate; one out of date is more often a clock that is, so it is compared first."""
    if "mismatch" in told:
        return IntegrityError(f"Expected a certificate of {address}, got one of other names.")
    if "not yet valid" not in told and "has expired" not in told:
        return IntegrityError(f"Expected a certificate of {address} by the CA of the bundle, got another.")
    try:
        # Whoever answers is not believed: what is said here ends the connection, it never begins one.
        date = httpx.head(f"https://{address}{HELLO}", verify=False, timeout=TIMEOUT_S).headers.get("date", "")
        check_clock(date, time.time())
    except ConfigError as error:
        return error
    except httpx.HTTPError:
        pass
    return IntegrityError(f"Expected a certificate of {address} that is in date, got one that is not.")


def check_version(told: Any) -> None:
    """Refuse a coordinator of another version.

    Raises
    ------
    VersionMismatchError
    """
    version = told.get("protocol") if isinstance(told, dict) else None
    if version != PROTOCOL:
        got = version if isinstance(version, int) else "none"
        raise VersionMismatchError(f"Expected a coordinator with protocol={PROTOCOL}, got {got}: install one version.")


def check_clock(date: str, now: float) -> None:
    """Refuse to go on with a clock that the coordinator would refuse.

    Parameters
    ----------
    date : str
        The coordinator's, as its HTTP answer has it: whole seconds.
    now : float
        This machine's, in seconds since 1970.

    Raises
    ------
    ConfigError
    """
    try:
        ahead = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return  # it does not tell: Flower finds out
    if not -BEHIND_S < ahead < AHEAD_S:
        raise ConfigError(
            f"Expected a clock at most {AHEAD_S:g} s ahead of the coordinator's and {BEHIND_S:g} s behind it, "
            f"got {ahead:+.0f} s: set the clock (NTP)."
        )
