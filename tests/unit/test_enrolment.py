"""A request, a bundle and the digits that people compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from enrolled import NAMES, Enrolled, cheap_scrypt, joined
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import federation_bundle
from shared.enrolment import EnrolmentRequest, fingerprint, parse, same_fingerprint, spelled
from shared.errors import ConfigError, DataError, IntegrityError, InvalidSignatureError, VersionMismatchError
from shared.federation_bundle import Federation, read_bundle, split_address, write_bundle
from shared.hazmat.key_files import Passphrase
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import PinnedKeys, SigningKey, distinct, pin

Tree = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def cheap() -> Iterator[None]:
    with cheap_scrypt():
        yield


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[NodeKey]:
    folder = tmp_path_factory.mktemp("nodes")
    return [NodeKey.load_or_create(folder / name, Passphrase(b"x" * 16)) for name in ("a", "b")]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return joined(tmp_path_factory)


@pytest.fixture
def bundle(federation: Enrolled, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    for file in federation.bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# --- fingerprints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("request", b"abc", "50779 50435 28178 10290 37757 66479 33887 19837"),
        ("bundle", b"", "11616 44296 33345 27457 83704 79549 24915 64933"),
    ],
)
def test_fingerprints_have_the_digits_that_sha256sum_gives(kind: str, data: bytes, expected: str) -> None:
    """``printf 'veilrec/v1/fingerprint/KIND\\0DATA' | sha256sum``, modulo 10^40."""
    assert fingerprint(kind, data) == expected


@given(data=st.binary(max_size=50))
def test_a_fingerprint_is_eight_groups_of_five_digits_and_is_known_however_it_is_typed(data: bytes) -> None:
    told = fingerprint("bundle", data)
    groups = told.split(" ")
    assert len(groups) == 8 and all(len(group) == 5 and group.isdecimal() for group in groups)
    assert same_fingerprint("".join(groups), told) and same_fingerprint("-".join(groups) + "\n", told)
    other = fingerprint("request", data)
    assert not same_fingerprint(other, told)
    for wrong in ("", told[:-1], told + "0", told.replace(told[0], str((int(told[0]) + 1) % 10))):
        assert not same_fingerprint(wrong, told)


# --- requests -------------------------------------------------------------------------------------


def test_a_request_is_read_back_and_signed_again_has_the_same_fingerprint(nodes: list[NodeKey], tmp_path: Path) -> None:
    key = SigningKey.generate()
    made = EnrolmentRequest.make("alder", 1, [key], nodes[:1])
    (tmp_path / "r").write_bytes(made.to_bytes())
    assert EnrolmentRequest.read(tmp_path / "r") == made
    assert made.pin == key.public and made.nodes == (nodes[0].public_text,)
    again = EnrolmentRequest.make("alder", 1, [key], nodes[:1])
    assert again.signatures != made.signatures and again.fingerprint == made.fingerprint  # ECDSA is randomised
    assert EnrolmentRequest.make("alder", 2, [key], nodes[:1]).fingerprint != made.fingerprint


def test_a_key_that_the_sender_does_not_hold_is_refused(nodes: list[NodeKey]) -> None:
    own, others = SigningKey.generate(), SigningKey.generate()
    made = EnrolmentRequest.make("alder", 1, [own, others], nodes).model_dump(mode="json")
    signatures = made["signatures"]
    stranger = SigningKey.generate().public.text
    for wrong in (
        {"identities": [stranger, made["identities"][1]]},  # somebody else's identity
        {"identities": [made["identities"][0], stranger]},  # beside the own one
        {"nodes": list(reversed(made["nodes"]))},
        {"name": "birch"},
        {"serial": 2},
        {"signatures": [signatures[1], signatures[0], *signatures[2:]]},
        {"signatures": signatures[:3]},
        {"signatures": [*signatures[:3], "!"]},
    ):
        with pytest.raises(InvalidSignatureError):
            parse(EnrolmentRequest, spelled({**made, **wrong}), "r").checked("r")


def test_one_key_twice_is_no_change_of_keys(nodes: list[NodeKey]) -> None:
    key = SigningKey.generate()
    with pytest.raises(DataError, match="two different keys"):
        EnrolmentRequest.make("alder", 1, [key, key], nodes)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: {**told, "extra": 1},
        lambda told: {**told, "name": "../up"},
        lambda told: {**told, "name": "a" * 65},
        lambda told: {**told, "serial": 0},
        lambda told: {**told, "serial": "1"},
        lambda told: {**told, "format": 2},
        lambda told: {**told, "identities": []},
        lambda told: {**told, "identities": ["A" * 44]},
        lambda told: {**told, "nodes": ["ssh-rsa " + "A" * 40]},
        lambda told: dict(reversed(told.items())),
        lambda told: {key: value for key, value in told.items() if key != "version"},
    ],
    ids=["extra", "path", "long", "zero", "text", "format", "none", "no key", "no node", "order", "missing"],
)
def test_what_is_no_request_is_refused(nodes: list[NodeKey], change: Callable[[Tree], Tree], tmp_path: Path) -> None:
    made = EnrolmentRequest.make("alder", 1, [SigningKey.generate()], nodes[:1])
    (tmp_path / "r").write_bytes(spelled(change(made.model_dump(mode="json"))))
    with pytest.raises((DataError, IntegrityError), match=r"^r: Expected"):
        EnrolmentRequest.read(tmp_path / "r")


@pytest.mark.parametrize("data", [b"", b"[", b"[" * 10_000, b"\xff", b"null", b"x" * (4 * 2**20 + 1)])
def test_bytes_that_are_none_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(DataError, match="Expected"):
        EnrolmentRequest.read(tmp_path / "r")


# --- bundles --------------------------------------------------------------------------------------


def test_a_bundle_says_who_is_in_the_federation(federation: Enrolled) -> None:
    told = read_bundle(federation.bundle)
    assert tuple(told.federation.roster) == NAMES
    assert told.federation.serial == 1 and told.federation.config.simulation is False
    assert told.items() == (federation.root / "items.parquet").read_bytes()
    assert told.fingerprint == fingerprint("bundle", (federation.bundle / "federation.json").read_bytes())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography reads these still, and will refuse them
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(min_value=0), flip=st.integers(1, 255))
def test_a_bundle_with_one_changed_byte_is_refused(bundle: Path, at: int, flip: int) -> None:
    file = bundle / "federation.json"
    before = file.read_bytes()
    changed = bytearray(before)
    changed[at % len(before)] ^= flip
    file.write_bytes(changed)
    try:
        with pytest.raises((DataError, IntegrityError, VersionMismatchError)):
            read_bundle(bundle)
    finally:
        file.write_bytes(before)
    read_bundle(bundle)


def test_a_bundle_without_its_signatures_or_by_another_key_is_refused(bundle: Path) -> None:
    signature = bundle / "federation.sig"
    told = json.loads(signature.read_bytes())
    stranger = SigningKey.generate()
    by_stranger = [[stranger.public.text, told[0][1]]]
    for wrong in ([], [*told, *told], [[told[0][0], "AAAA"]], by_stranger, [[told[0][0]]], {}):
        signature.write_bytes(spelled(wrong))
        with pytest.raises(InvalidSignatureError, match=r"federation\.sig"):
            read_bundle(bundle)
    signature.unlink()
    with pytest.raises(DataError):
        read_bundle(bundle)


def test_a_bundle_of_another_coordinator_is_refused_once_one_is_pinned(bundle: Path) -> None:
    own = read_bundle(bundle).federation.server
    assert read_bundle(bundle, own).federation.server == own
    with pytest.raises(InvalidSignatureError, match="pinned key"):
        read_bundle(bundle, SigningKey.generate().public)


def test_a_swapped_catalogue_is_refused(bundle: Path) -> None:
    told = read_bundle(bundle)
    with (bundle / "items.parquet").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match="Expected the catalogue that the bundle names"):
        told.items()


def test_a_federation_for_a_newer_installation_is_refused_by_its_version(bundle: Path) -> None:
    file = bundle / "federation.json"
    told = json.loads(file.read_bytes())
    file.write_bytes(spelled({**told, "least_version": "99.0.0", "a_field_of_the_future": 1}))
    with pytest.raises(VersionMismatchError, match=r"veilrec version >= 99\.0\.0, got .* upgrade"):
        read_bundle(bundle)


def signed_as(federation: Enrolled, folder: Path, **changes: Any) -> None:
    """What a coordinator that means ill, or has a bug, could sign."""
    told = json.loads((federation.bundle / "federation.json").read_bytes())
    key = SigningKey.load(federation.home / "server.key", federation.passphrase("server"))
    write_bundle(folder, parse(Federation, spelled({**told, **changes}), "f"), [key], b"")


def test_no_coordinator_can_sign_for_a_key_that_a_partner_does_not_hold(
    federation: Enrolled, tmp_path: Path, nodes: list[NodeKey]
) -> None:
    partners = json.loads((federation.bundle / "federation.json").read_bytes())["partners"]
    swapped = [{**partners[0], "identities": [SigningKey.generate().public.text]}, *partners[1:]]
    with pytest.raises(InvalidSignatureError, match="partner alder"):
        signed_as(federation, tmp_path, partners=swapped)
    server = SigningKey.load(federation.home / "server.key", federation.passphrase("server"))
    its_own = EnrolmentRequest.make("willow", 1, [server], nodes[:1]).model_dump(mode="json")
    with pytest.raises(DataError, match="another key for every partner"):
        signed_as(federation, tmp_path, partners=[*partners, its_own])
    key = SigningKey.generate()
    twice = [EnrolmentRequest.make(name, 1, [key], [node]) for name, node in zip(("x", "y"), nodes, strict=True)]
    with pytest.raises(DataError, match="another key for every partner"):
        signed_as(federation, tmp_path, partners=[request.model_dump(mode="json") for request in twice])
    with pytest.raises(DataError, match="sorted by name, each once"):
        signed_as(federation, tmp_path, partners=[*partners, partners[0]])
    assert not any(tmp_path.iterdir())


def test_the_same_key_under_two_names_would_pass_without_the_check(
    federation: Enrolled, tmp_path: Path, nodes: list[NodeKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation_bundle, "distinct", lambda _: True)  # the planted bug
    key = SigningKey.generate()
    twice = [EnrolmentRequest.make(name, 1, [key], [node]) for name, node in zip(("x", "y"), nodes, strict=True)]
    signed_as(federation, tmp_path, partners=[request.model_dump(mode="json") for request in twice])
    assert tuple(read_bundle(tmp_path).federation.roster) == ("x", "y")


def test_a_server_certificate_is_no_authority(federation: Enrolled, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="authority"):
        signed_as(federation, tmp_path, authority=(federation.home / "tls.crt").read_text())


@pytest.mark.parametrize("address", ["", "host", "host:0", "host:65536", "a b:1", "http://h:1", "[::1:1", "h:1\n"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)


def test_an_address_is_a_host_and_a_port() -> None:
    assert split_address("a.test:1") == ("a.test", 1) and split_address("[::1]:65535") == ("::1", 65535)


# --- pins -----------------------------------------------------------------------------------------


def test_either_key_of_a_party_that_changes_its_own_counts_and_no_third() -> None:
    old, new, other = (SigningKey.generate() for _ in range(3))
    both = pin([old.public, new.public])
    for key in (old, new):
        both.verify("purpose", b"m", key.sign("purpose", b"m"))
    for purpose, key in (("purpose", other), ("another", old)):
        with pytest.raises(InvalidSignatureError):
            both.verify("purpose", b"m", key.sign(purpose, b"m"))
    assert pin([old.public]) == old.public


def test_two_pins_with_one_key_in_common_are_not_two_parties() -> None:
    a, b, c = (SigningKey.generate().public for _ in range(3))
    assert distinct([PinnedKeys((a, b)), c])
    assert not distinct([PinnedKeys((a, b)), b]) and not distinct([PinnedKeys((a, b)), PinnedKeys((b, c))])
    for wrong in ([], [a, a], [a, b, c]):
        with pytest.raises(ConfigError, match="two different keys"):
            pin(wrong)
