"""Keys at rest: files that only their owner may use, encrypted under a passphrase that is kept elsewhere.

Private keys are PEM (PKCS8, RFC 5958). PKCS8 as OpenSSL writes it stretches a passphrase with 2,048 rounds of PBKDF2,
which is little: the passphrase first goes through scrypt (RFC 7914), whose salt and cost stand in a line before the
PEM block. Raw secrets are sealed with AES-256-GCM under a key of the same scrypt.

The passphrase comes from the file that ``VEILREC_PASSPHRASE_FILE`` names, else from the systemd credential
``veilrec-passphrase``.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shared.errors import ConfigError, DataError, IntegrityError
from shared.files import write_bytes

PASSPHRASE_VARIABLE = "VEILREC_PASSPHRASE_FILE"
CREDENTIAL = "veilrec-passphrase"
SHORTEST_PASSPHRASE = 16

SCRYPT_LOG_N, SCRYPT_P = 15, 3
"""32 MiB and three passes: the least that OWASP's password storage cheat sheet advises."""
_LARGEST_LOG_N, _LARGEST_P = 20, 16  # what a file may ask for: more would only stop the reader
_SALT_BYTES, _NONCE_BYTES = 16, 12
_STRETCHED = re.compile(rb"\Aveilrec-scrypt: log_n=(\d{1,2}) p=(\d{1,2}) salt=([0-9a-f]{32})\n")
_SEALED = re.compile(rb"\Aveilrec-sealed: log_n=(\d{1,2}) p=(\d{1,2}) salt=([0-9a-f]{32})\n")


@dataclass(frozen=True, slots=True)
class Passphrase:
    """What key files are encrypted with.

    Attributes
    ----------
    secret : bytes
        At least 16 bytes; never shown by ``repr``.

    Guarantees
    ----------
    A passphrase that `create_passphrase_file` made has 256 bits from the operating system. Of one that a person
    chose only the length is known: scrypt makes each guess cost 32 MiB and about a fifth of a second.

    Raises
    ------
    ConfigError
        If it is shorter.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < SHORTEST_PASSPHRASE:
            raise ConfigError(f"Expected a passphrase of at least {SHORTEST_PASSPHRASE} bytes, got a shorter one.")

    @classmethod
    def read(cls, path: Path, *, by_group: bool = False) -> Passphrase:
        """Read a file's first line.

        Parameters
        ----------
        path : Path
        by_group : bool
            Whether the group may read it too: systemd gives a service its credential by an access list, which
            shows as a mode of 0440.

        Raises
        ------
        ConfigError
            If there is none, others may read it, or it is too short.
        """
        text = read_private_file(path, "passphrase file", 0o037 if by_group else 0o077)
        line, _, rest = text.partition(b"\n")
        if rest.strip():
            raise ConfigError(f"Expected one line in the passphrase file {path.name}, got more.")
        return cls(line.rstrip(b"\r"))

    @classmethod
    def of_environment(cls) -> Passphrase | None:
        """The passphrase that the process was started with; None if it was started without.

        Raises
        ------
        ConfigError
            If the file that is named cannot be used.
        """
        named = os.environ.get(PASSPHRASE_VARIABLE)
        if named:
            return cls.read(Path(named))
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(folder) / CREDENTIAL if folder else None
        return cls.read(file, by_group=True) if file is not None and file.exists() else None


def create_passphrase_file(path: Path) -> bool:
    """Make a passphrase file of 32 random bytes as text unless there is one; whether one was made.

    Guarantees
    ----------
    Mode 0600, 256 bits from the operating system, and never written over a file that is there.
    """
    if path.exists():
        return False
    return write_once(path, secrets.token_urlsafe(32).encode() + b"\n")


def wanted_passphrase(file: Path | None) -> tuple[Passphrase, bool]:
    """The passphrase for new keys, and whether its file was made just now.

    Parameters
    ----------
    file : Path or None
        Made if it is not there; None for the environment's (`Passphrase.of_environment`), whose file is made as well
        where ``VEILREC_PASSPHRASE_FILE`` names one.

    Raises
    ------
    ConfigError
        If there is none: new keys are always encrypted.
    """
    named = os.environ.get(PASSPHRASE_VARIABLE)
    path = file or (Path(named) if named else None)
    if path is not None:
        made = create_passphrase_file(path)
        return Passphrase.read(path), made
    told = Passphrase.of_environment()
    if told is None:
        raise ConfigError(f"Expected --passphrase-file FILE or {PASSPHRASE_VARIABLE}: new keys are always encrypted.")
    return told, False


def read_private_file(path: Path, what: str, forbidden: int = 0o077) -> bytes:
    """Read a file that nobody but its owner may use.

    Guarantees
    ----------
    The mode is that of the opened file, not of the path: nobody can swap it in between.

    Raises
    ------
    ConfigError
        If it cannot be read, or its mode has a bit of `forbidden`.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except OSError as error:
        raise ConfigError(f"Expected a readable {what} {path.name}, got {type(error).__name__}.") from None
    if os.name == "posix" and mode & forbidden:
        raise ConfigError(f"Expected mode=0600 of the {what} {path.name}, got {mode:04o}: others may use the key.")
    return data


def write_once(path: Path, data: bytes) -> bool:
    """Put `data` whole into `path` (mode 0600); False, and nothing is changed, if another process was first."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_bytes(fresh, data)
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        return False  # the other one's key counts
    finally:
        fresh.unlink()
    return True


def private_pem(key: Any, passphrase: Passphrase | None) -> bytes:
    """A private key as the bytes of a file: PEM, PKCS8, encrypted if there is a passphrase."""
    if passphrase is None:
        pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem
    salt = os.urandom(_SALT_BYTES)
    stretched = base64.b64encode(_stretch(passphrase, salt, SCRYPT_LOG_N, SCRYPT_P))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(stretched))
    return _header("veilrec-scrypt", salt) + pem


def read_private_key(path: Path, kind: type[Any], name: str, passphrase: Passphrase | None = None) -> Any:
    """Read a private key, encrypted or not.

    Parameters
    ----------
    path : Path
    kind : type
        The class of `cryptography`'s that it must be.
    name : str
        What to call it in an error: ``Ed25519``.
    passphrase : Passphrase, optional
        That of the environment by default; only asked for if the file is encrypted.

    Raises
    ------
    ConfigError
        If there is no such file, others may use it, or it is encrypted and there is no passphrase.
    DataError
        If it does not hold such a key, or not under this passphrase.
    """
    data = read_private_file(path, "key file")
    encrypted = _is_encrypted_pem(data)
    password = _password(path, data, passphrase) if encrypted else None
    try:
        key = load_pem_private_key(_STRETCHED.sub(b"", data), password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if key is None or not isinstance(key, kind):
        # No cause is attached: a parser's message may quote the file.
        under = "under this passphrase" if encrypted else "without one"
        raise DataError(f"Expected an {name} key (PEM, PKCS8) in the file {path.name}, {under}.")
    return key


def seal_secret(secret: bytes, purpose: str, passphrase: Passphrase) -> bytes:
    """A raw secret as the bytes of a file: AES-256-GCM under scrypt, bound to its purpose.

    Guarantees
    ----------
    Nobody without the passphrase reads it, changes it, or passes it off as one of another purpose. Salt and nonce
    are fresh each time.
    """
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    header = _header("veilrec-sealed", salt)
    key = _stretch(passphrase, salt, SCRYPT_LOG_N, SCRYPT_P)
    sealed = AESGCM(key).encrypt(nonce, secret, header + purpose.encode())
    return header + base64.b64encode(nonce + sealed) + b"\n"


def is_sealed(data: bytes) -> bool:
    """Whether `data` is what `seal_secret` writes, by its first line."""
    return _SEALED.match(data) is not None


def open_secret(data: bytes, purpose: str, name: str, passphrase: Passphrase | None = None) -> bytes:
    """Open what `seal_secret` sealed.

    Parameters
    ----------
    data : bytes
    purpose : str
    name : str
        Of the file, for errors.
    passphrase : Passphrase, optional
        That of the environment by default.

    Raises
    ------
    ConfigError
        If there is no passphrase.
    IntegrityError
        If it was changed, is of another purpose, or the passphrase is another.
    """
    header = _SEALED.match(data)
    text = data[header.end() :].strip() if header else b""
    try:
        sealed = base64.b64decode(text, validate=True)
    except ValueError:
        sealed = b""
    # One secret, one spelling: base64 has bits at its end that decode to nothing.
    if header is None or len(sealed) <= _NONCE_BYTES or base64.b64encode(sealed) != text:
        raise IntegrityError(f"Expected a sealed secret in the file {name}.")
    key = _stretch(_needed(name, passphrase), *_cost(name, header))
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], header[0] + purpose.encode())
    except InvalidTag:
        raise IntegrityError(f"Expected the {purpose} in the file {name} under this passphrase: got another.") from None


def is_encrypted(path: Path) -> bool:
    """Whether a key file says that it is encrypted; its content is not checked.

    Raises
    ------
    ConfigError
        If it cannot be read, or others may use it.
    """
    data = read_private_file(path, "key file")
    return is_sealed(data) or _is_encrypted_pem(data)


def memory_copy(path: Path, passphrase: Passphrase | None = None) -> int:
    """An open file in memory (Linux) with the private key in the clear, for a program that takes no passphrase.

    Give a child process the descriptor (``pass_fds``) and the path ``/proc/self/fd/<descriptor>``; close it at the end.

    Guarantees
    ----------
    The key in the clear is on no disk and has no name in the file system; it is gone with the last process that holds
    the descriptor. Whoever may trace these processes can read it.

    Raises
    ------
    ConfigError, DataError
        As `read_private_key`.
    """
    key = read_private_key(path, object, "private", passphrase)
    handle = os.memfd_create(path.name, os.MFD_CLOEXEC)
    os.fchmod(handle, 0o600)
    _write_copy(handle, private_pem(key, None))
    return handle


def refresh_copy(handle: int, path: Path, passphrase: Passphrase | None = None) -> None:
    """Put the key that is in `path` now into what `memory_copy` made.

    Guarantees
    ----------
    As `memory_copy`; if it raises, the copy is what it was.

    Raises
    ------
    ConfigError, DataError
        As `read_private_key`.
    """
    _write_copy(handle, private_pem(read_private_key(path, object, "private", passphrase), None))


def _write_copy(handle: int, pem: bytes) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, pem, 0)


def _is_encrypted_pem(data: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data


def passphrase_copy(uid: int, gid: int) -> int | None:
    """An open file in memory (Linux) with this process's passphrase, that another user may read; None without one.

    Give a child process the descriptor and its path (``VEILREC_PASSPHRASE_FILE=/proc/self/fd/<descriptor>``).

    Guarantees
    ----------
    As `memory_copy`; of mode 0600, owned by that user.
    """
    told = Passphrase.of_environment()
    if told is None:
        return None
    handle = os.memfd_create(CREDENTIAL, os.MFD_CLOEXEC)
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(told.secret + b"\n")
    os.fchmod(handle, 0o600)
    os.fchown(handle, uid, gid)
    return handle


def _header(kind: str, salt: bytes) -> bytes:
    return f"{kind}: log_n={SCRYPT_LOG_N} p={SCRYPT_P} salt={salt.hex()}\n".encode()


def _cost(name: str, header: re.Match[bytes]) -> tuple[bytes, int, int]:
    log_n, p = int(header[1]), int(header[2])
    if not (1 <= log_n <= _LARGEST_LOG_N and 1 <= p <= _LARGEST_P):
        raise DataError(f"Expected log_n <= {_LARGEST_LOG_N} and p <= {_LARGEST_P} in the file {name}, got others.")
    return bytes.fromhex(header[3].decode()), log_n, p


def _password(path: Path, data: bytes, passphrase: Passphrase | None) -> bytes:
    """What opens the PEM block: the stretched passphrase; as it is where another program encrypted the key."""
    told, header = _needed(path.name, passphrase), _STRETCHED.match(data)
    return told.secret if header is None else base64.b64encode(_stretch(told, *_cost(path.name, header)))


def _needed(name: str, passphrase: Passphrase | None) -> Passphrase:
    told = passphrase or Passphrase.of_environment()
    if told is None:
        raise ConfigError(
            f"Expected a passphrase for the file {name}, which is encrypted: {PASSPHRASE_VARIABLE} names no file and "
            f"there is no credential {CREDENTIAL}."
        )
    return told


def _stretch(passphrase: Passphrase, salt: bytes, log_n: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=8, p=p).derive(passphrase.secret)
