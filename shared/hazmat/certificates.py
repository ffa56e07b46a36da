"""The coordinator's certificates for TLS: an authority of its own (10 years) and a server certificate (1 year).

X.509 v3, RFC 5280; ECDSA on P-384. Partners trust this one authority and nothing that their machine trusts besides.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ConfigError, DataError
from shared.files import write_bytes
from shared.hazmat.key_files import Passphrase, private_pem, read_private_key, write_once

AUTHORITY_DAYS, SERVER_DAYS = 3653, 365
LOCAL = ("localhost", "127.0.0.1")
_SKEW = timedelta(minutes=5)
"""A certificate counts from a little earlier, so that a partner whose clock is behind can connect at once."""
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate that is none; it parses a part when asked for it, not before."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a person or a status page is told of a certificate.

    Attributes
    ----------
    subject : str
    names : tuple of str
        DNS names and addresses for which it counts.
    not_before, not_after : datetime
        With time zone.
    sha256 : str
        Of the certificate (DER), hexadecimal.
    """

    subject: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    sha256: str

    def days_left(self, now: datetime) -> float:
        """Until it ends; negative after."""
        return (self.not_after - now) / timedelta(days=1)


def create_authority(key_file: Path, certificate_file: Path, name: str, passphrase: Passphrase) -> None:
    """Make the authority's key and certificate unless they are there.

    Guarantees
    ----------
    It may sign server certificates and nothing below them (path length 0); its key is encrypted and never replaced.

    Raises
    ------
    ConfigError, DataError
        If there is a key file that cannot be used.
    """
    if not key_file.exists():
        write_once(key_file, private_pem(ec.generate_private_key(ec.SECP384R1()), passphrase))
    if certificate_file.exists():
        return
    key = _key(key_file, passphrase)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(public, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(public), critical=False)
    )
    write_bytes(certificate_file, builder.sign(key, SHA384()).public_bytes(Encoding.PEM))


def issue_server_certificate(
    authority: tuple[Path, Path], key_file: Path, certificate_file: Path, hosts: Sequence[str], passphrase: Passphrase
) -> CertificateFacts:
    """Make a server certificate with a fresh key; what was there before is replaced.

    Parameters
    ----------
    authority : tuple of Path
        Key and certificate of the authority.
    key_file, certificate_file : Path
    hosts : sequence of str
        Names and addresses by which partners reach the server; this machine's own are added.
    passphrase : Passphrase

    Guarantees
    ----------
    The certificate counts for those names and for a server alone, and never outlives the authority.

    Raises
    ------
    ConfigError
        If a host is neither a name nor an address, or the authority has ended.
    DataError
        If the authority's key does not belong to its certificate.
    """
    authority_key, issuer = _key(authority[0], passphrase), read_certificate(authority[1].read_text("ascii"))
    if issuer.public_key() != authority_key.public_key():
        raise DataError(f"Expected the key of {authority[1].name} in {authority[0].name}, got another.")
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOCAL])]
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "veilrec coordinator")])
    builder = _builder(subject, issuer.subject, key.public_key(), SERVER_DAYS, issuer.not_valid_after_utc)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(own, critical=False)
        .add_extension(signer, critical=False)
    )
    certificate = builder.sign(authority_key, SHA384())
    write_bytes(key_file, private_pem(key, passphrase))
    write_bytes(certificate_file, certificate.public_bytes(Encoding.PEM))
    return _facts(certificate)


def certificate_facts(pem: str) -> CertificateFacts:
    """What a certificate says.

    Raises
    ------
    DataError
        If it is none.
    """
    return _facts(read_certificate(pem))


def check_authority(pem: str) -> CertificateFacts:
    """Accept one certificate of an authority as `create_authority` makes it, in its own spelling, and nothing else.

    Guarantees
    ----------
    It is one certificate, signed by itself, that may sign server certificates and no authorities.

    Raises
    ------
    DataError
        If not.
    """
    certificate = read_certificate(pem)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(certificate)
    except (x509.ExtensionNotFound, InvalidSignature, *_UNREADABLE):
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca or constraints.path_length != 0:
        raise DataError("Expected the certificate of an authority, signed by itself, with path length 0.")
    return _facts(certificate)


def read_certificate(pem: str) -> x509.Certificate:
    """One certificate in PEM, and not a byte more.

    Raises
    ------
    DataError
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        exact = certificate.public_bytes(Encoding.PEM).decode() == pem
    except _UNREADABLE:
        exact = False
    if not exact:
        raise DataError("Expected one certificate in PEM.")
    return certificate


def _key(path: Path, passphrase: Passphrase) -> ec.EllipticCurvePrivateKey:
    key: ec.EllipticCurvePrivateKey = read_private_key(path, ec.EllipticCurvePrivateKey, "EC P-384", passphrase)
    return key


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    try:
        return CertificateFacts(
            certificate.subject.rfc4514_string(),
            _names(certificate),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.fingerprint(SHA256()).hex(),
        )
    except _UNREADABLE:
        raise DataError("Expected a certificate with a subject, names and times that can be read.") from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        told = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in told)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, end: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    until = now + timedelta(days=days)
    if end is not None and end <= now:
        raise ConfigError("Expected an authority that has not ended: make a new one and give all partners its bundle.")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(until if end is None else min(until, end))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError("Expected hosts as ASCII names or addresses.") from None
