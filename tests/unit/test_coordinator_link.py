"""What a node finds out before it connects, over real TLS: who is there, which version, what time it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from email.utils import formatdate
from pathlib import Path

import pytest
from link_setting import Authority, free_port, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from client.coordinator_link import AHEAD_S, BEHIND_S, HELLO, PROTOCOL_HEADER, UPGRADE, check_clock, check_coordinator
from server import gate
from shared.errors import ConfigError, IntegrityError, VeilrecError, VersionMismatchError
from shared.hazmat import certificates
from shared.wire_frames import PROTOCOL

OURS = {"protocol": PROTOCOL}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


def hello(answer: Callable[[Request], Response]) -> Starlette:
    return Starlette(routes=[Route(HELLO, answer)])


def says(told: object, status: int = 200, *, ahead_s: float = 0.0) -> Starlette:
    """A coordinator whose clock is ahead of this machine's."""
    return hello(lambda _: JSONResponse(told, status, headers={"date": formatdate(time.time() + ahead_s, usegmt=True)}))


def checked(app: Starlette, authority: Authority) -> None:
    with served(app, authority, date_header=False) as port:
        check_coordinator(f"127.0.0.1:{port}", authority.certificate)


def test_a_coordinator_of_the_same_version_and_time_is_accepted(authority: Authority) -> None:
    spoken: list[str | None] = []

    def answer(request: Request) -> Response:
        spoken.append(request.headers.get(PROTOCOL_HEADER))
        return JSONResponse(OURS)

    checked(hello(answer), authority)
    assert spoken == [str(PROTOCOL)]


@pytest.mark.parametrize(("ahead_s", "told"), [(-60.0, r"got \+6[01] s"), (3600.0, r"got -(3600|3599) s")])
def test_a_clock_that_is_not_the_coordinators_is_refused_with_the_seconds(
    authority: Authority, ahead_s: float, told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^Expected a clock at most 5 s ahead.* and 300 s behind.*{told}: set the"):
        checked(says(OURS, ahead_s=ahead_s), authority)


@pytest.mark.parametrize("ahead_s", [-(AHEAD_S - 3), BEHIND_S - 60])
def test_a_clock_within_the_bounds_is_accepted(authority: Authority, ahead_s: float) -> None:
    checked(says(OURS, ahead_s=ahead_s), authority)


def test_the_bounds_of_the_clock_are_those_of_flowers_signatures() -> None:
    now = 1_800_000_000.0
    for wrong in (AHEAD_S, AHEAD_S + 1, -BEHIND_S, -BEHIND_S - 1):
        with pytest.raises(ConfigError, match=re.escape(f"got {wrong:+.0f} s")):
            check_clock(formatdate(now - wrong, usegmt=True), now)
    for right in (AHEAD_S - 1, 0, -BEHIND_S + 1):
        check_clock(formatdate(now - right, usegmt=True), now)
    check_clock("", now)
    check_clock("no date", now)


@pytest.mark.parametrize("told", [{"protocol": PROTOCOL + 1}, {"protocol": "1"}, {}, [], None])
def test_a_coordinator_of_another_version_is_refused(authority: Authority, told: object) -> None:
    with pytest.raises(VersionMismatchError, match=rf"Expected a coordinator with protocol={PROTOCOL}, got \w+: "):
        checked(says(told), authority)


def test_a_coordinator_that_refuses_the_nodes_version_says_its_own(authority: Authority) -> None:
    with pytest.raises(VersionMismatchError, match="protocol=1, got 7: install one version"):
        checked(says({"protocol": 7}, UPGRADE), authority)
    assert (gate.PROTOCOL_HEADER, gate.HELLO, gate._UPGRADE) == (PROTOCOL_HEADER, HELLO, UPGRADE)


@pytest.mark.parametrize(
    ("answer", "family", "told"),
    [
        (PlainTextResponse("hello"), ConfigError, "got JSONDecodeError"),
        (PlainTextResponse("busy", 503), VersionMismatchError, "got none"),
    ],
)
def test_whoever_is_no_coordinator_is_refused(
    authority: Authority, answer: Response, family: type[VeilrecError], told: str
) -> None:
    with pytest.raises(family, match=told):
        checked(hello(lambda _: answer), authority)


def test_a_certificate_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority.make(tmp_path)
    with (
        served(says(OURS), other) as port,
        pytest.raises(IntegrityError, match=r"Expected a certificate of .* by the CA of the bundle, got another"),
    ):
        check_coordinator(f"127.0.0.1:{port}", authority.certificate)


@pytest.mark.parametrize(
    ("shift_s", "family", "told"),
    [
        (-3600.0, ConfigError, r"got -3(600|599) s: set the clock"),
        (0.0, IntegrityError, "that is in date, got one that is"),
    ],
)
def test_a_certificate_that_is_not_valid_yet_is_first_compared_with_the_clock(
    tmp_path: Path, shift_s: float, family: type[VeilrecError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a partner whose clock is an hour behind, a fresh certificate is from the future."""

    class Future(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Future:
            return cls.fromtimestamp(time.time() + 3600, tz)

    monkeypatch.setattr(certificates, "datetime", Future)
    early = Authority.make(tmp_path)
    with served(says(OURS, ahead_s=-shift_s), early, date_header=False) as port, pytest.raises(family, match=told):
        check_coordinator(f"127.0.0.1:{port}", early.certificate)


def test_a_certificate_of_another_address_is_refused(authority: Authority) -> None:
    with (
        served(says(OURS), authority, host="127.0.0.2") as port,
        pytest.raises(IntegrityError, match=re.escape("Expected a certificate of 127.0.0.2")),
    ):
        check_coordinator(f"127.0.0.2:{port}", authority.certificate)


def test_a_coordinator_that_is_not_there_is_one_clear_line(authority: Authority) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"^Expected the coordinator at {address}, nobody answers there.$"):
        check_coordinator(address, authority.certificate)
