"""The coordinator's certificates: what they allow, for whom, until when, and that TLS holds to it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from enrolled import cheap_scrypt

from shared.errors import ConfigError, DataError, InvalidSignatureError
from shared.hazmat import certificates
from shared.hazmat.certificates import (
    CertificateFacts,
    certificate_facts,
    check_authority,
    create_authority,
    issue_server_certificate,
    read_certificate,
)
from shared.hazmat.key_files import Passphrase, memory_copy
from shared.hazmat.node_keys import NodeKey, check_node_key, superlink_form, verify_node
from shared.hazmat.signing import SigningKey

PASSPHRASE = Passphrase(b"a passphrase of some length")


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    with cheap_scrypt():
        yield


def authority(folder: Path, name: str = "test") -> tuple[Path, Path]:
    files = folder / f"{name}.key", folder / f"{name}.crt"
    create_authority(*files, name, PASSPHRASE)
    return files


def issue(folder: Path, *hosts: str, by: tuple[Path, Path] | None = None) -> CertificateFacts:
    files = folder / "tls.key", folder / "tls.crt"
    return issue_server_certificate(by or authority(folder), *files, hosts, PASSPHRASE)


def test_an_authority_may_sign_servers_and_nothing_below(tmp_path: Path) -> None:
    key, file = authority(tmp_path)
    certificate = read_certificate(file.read_text())
    told = certificate.extensions
    constraints = told.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = told.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and usage.crl_sign and not usage.digital_signature
    facts = check_authority(file.read_text())
    assert 3650 < facts.days_left(datetime.now(UTC)) < 3655
    before = key.read_bytes(), file.read_bytes()
    authority(tmp_path)
    assert (key.read_bytes(), file.read_bytes()) == before


def test_a_server_certificate_counts_for_its_names_and_a_year(tmp_path: Path) -> None:
    facts = issue(tmp_path, "server.test", "10.1.2.3", "::1", "localhost")
    assert facts.names == ("server.test", "10.1.2.3", "::1", "localhost", "127.0.0.1")
    assert 363 < facts.days_left(datetime.now(UTC)) < 366
    certificate = read_certificate((tmp_path / "tls.crt").read_text())
    certificate.verify_directly_issued_by(read_certificate((tmp_path / "test.crt").read_text()))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(DataError, match="authority"):
        check_authority((tmp_path / "tls.crt").read_text())


def test_a_renewed_certificate_has_a_new_key_and_the_same_authority(tmp_path: Path) -> None:
    first = issue(tmp_path, "server.test")
    key = (tmp_path / "tls.key").read_bytes()
    again = issue(tmp_path, "server.test")
    assert again.sha256 != first.sha256 and (tmp_path / "tls.key").read_bytes() != key
    assert certificate_facts((tmp_path / "tls.crt").read_text()) == again


def test_no_certificate_outlives_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 10)
    assert issue(tmp_path, "server.test").days_left(datetime.now(UTC)) < 11
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 0)
    with pytest.raises(ConfigError, match="has not ended"):
        issue(tmp_path, "server.test", by=authority(tmp_path, "ended"))


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    swapped = authority(tmp_path, "other")[0], authority(tmp_path)[1]
    with pytest.raises(DataError, match=r"Expected the key of test\.crt in other\.key"):
        issue(tmp_path, "server.test", by=swapped)


@pytest.mark.parametrize("host", ["größe.test", "\udc80"])
def test_a_host_that_no_certificate_can_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="ASCII"):
        issue(tmp_path, host)


def test_what_is_not_one_certificate_is_refused(tmp_path: Path) -> None:
    text = authority(tmp_path)[1].read_text()
    for wrong in ("", "words", text + text, text + " ", text[:-60]):
        with pytest.raises(DataError, match="Expected one certificate"):
            check_authority(wrong)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography reads these still, and will refuse them
def test_a_certificate_with_any_byte_changed_is_refused_as_an_authority_and_ends_in_no_other_error(
    tmp_path: Path,
) -> None:
    issue(tmp_path, "server.test")
    for name in ("test", "tls"):
        der = ssl.PEM_cert_to_DER_cert((tmp_path / f"{name}.crt").read_text())
        signed = x509.load_der_x509_certificate(der).tbs_certificate_bytes
        end = der.index(signed) + len(signed)
        for at, flip in itertools.product(range(len(der)), (1, 2, 4, 8, 28, 33, 128)):
            changed = bytearray(der)
            changed[at] ^= flip
            pem = ssl.DER_cert_to_PEM_cert(bytes(changed))
            with contextlib.suppress(DataError):
                certificate_facts(pem)
            # Behind what is signed an octet counts the unused bits of the signature, and may count some.
            with pytest.raises(DataError) if at < end else contextlib.suppress(DataError):
                check_authority(pem)


def test_tls_is_made_with_the_right_authority_and_not_with_a_swapped_one(tmp_path: Path) -> None:
    issue(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    handle = memory_copy(tmp_path / "tls.key", PASSPHRASE)
    server.load_cert_chain(tmp_path / "tls.crt", f"/proc/self/fd/{handle}")
    authority(tmp_path, "other")
    assert handshake(server, tmp_path / "test.crt", "localhost") is None
    assert handshake(server, tmp_path / "test.crt", "127.0.0.1") is None
    assert "CERTIFICATE_VERIFY_FAILED" in str(handshake(server, tmp_path / "other.crt", "localhost"))
    assert "Hostname mismatch" in str(handshake(server, tmp_path / "test.crt", "elsewhere.test"))


def handshake(server: ssl.SSLContext, trusted: Path, name: str) -> Exception | None:
    context = ssl.create_default_context(cafile=str(trusted))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    ends = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(ends[0], server_side=True).close()
        except (ssl.SSLError, OSError):
            ends[0].close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context.wrap_socket(ends[1], server_hostname=name).close()
    except ssl.SSLError as error:
        ends[1].close()
        return error
    finally:
        thread.join(10)
    return None


# --- node keys ------------------------------------------------------------------------------------


def test_a_node_key_has_the_forms_that_flower_reads(tmp_path: Path) -> None:
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, uses_nist_ec_curve

    made = NodeKey.load_or_create(tmp_path / "node.key", PASSPHRASE)
    assert made.public_text.startswith("ecdsa-sha2-nistp384 ")
    secret, public = NodeKey.load(tmp_path / "node.key", PASSPHRASE).pair
    assert uses_nist_ec_curve(public) and secret.public_key() == public
    assert superlink_form(made.public_text) == public_key_to_bytes(public)
    assert bytes_to_public_key(superlink_form(made.public_text)) == public


def test_who_signs_for_a_node_holds_its_key(tmp_path: Path) -> None:
    one, other = (NodeKey.load_or_create(tmp_path / name, PASSPHRASE) for name in ("a", "b"))
    verify_node(one.public_text, b"statement", one.sign(b"statement"))
    for statement, signature in ((b"statement", other.sign(b"statement")), (b"other", one.sign(b"statement"))):
        with pytest.raises(InvalidSignatureError):
            verify_node(one.public_text, statement, signature)


def test_what_is_no_node_key_is_refused(tmp_path: Path) -> None:
    text = NodeKey.load_or_create(tmp_path / "node.key", PASSPHRASE).public_text
    for wrong in ("", "words", text + " comment", text[:60], text.replace("nistp384", "nistp256", 1)):
        with pytest.raises(ConfigError, match="Expected a node key"):
            check_node_key(wrong)
    SigningKey.load_or_create(tmp_path / "identity.key", PASSPHRASE)
    with pytest.raises(DataError, match="Expected an EC P-384 key"):
        NodeKey.load(tmp_path / "identity.key", PASSPHRASE)
