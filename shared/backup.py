"""Archives of a folder: whole or not there, checked to the byte before anything is restored from them.

A tar file whose last member, ``manifest.json``, names every other with size and SHA-256. That finds damage; whoever may
write to an archive can also make another one, so that it is kept where only operators are. Private keys go in as they
lie on the disk, which is encrypted; one that is not is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO

from shared.backup_manifest import MANIFEST, STAGING, Kept, Kind, Manifest, check_name, decode, encode
from shared.errors import ConfigError, IntegrityError
from shared.files import write_bytes
from shared.plain_keys import is_plain_key

MOST_MANIFEST = 64 * 2**20
BLOCK = 2**20
MODES = 0o755
Settle = Callable[[bytes, bytes], bytes]
"""What to keep of a file that is there (first) and of the archive's (second)."""


def write_archive(
    archive: Path, kind: Kind, name: str, sources: Mapping[str, Path], *, plain_keys: bool = False
) -> Manifest:
    """Write an archive, mode 0600, and read it back.

    Parameters
    ----------
    archive : Path
        A new file.
    kind, name
        See `Manifest`.
    sources : mapping of str to Path
        What each file is called in the archive, and where its bytes are.
    plain_keys : bool
        Whether private keys may go in that are not encrypted.

    Raises
    ------
    ConfigError
        If the file is there already, cannot be written, or a key is not encrypted.
    IntegrityError
        If a file changed while it was read, or what was written cannot be read back.
    """
    if archive.exists():
        raise ConfigError(f"{archive}: Expected a new file, there is one.")
    for told in sources:
        check_name(told, archive)
    if not plain_keys:
        _check_keys(sources)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=archive.parent, prefix=f".{archive.name}.")
    except OSError as error:
        raise ConfigError(f"{archive}: cannot be written ({type(error).__name__}).") from None
    try:
        with os.fdopen(handle, "w+b") as file:
            manifest = _write(file, kind, name, sources)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if _read(file, archive) != manifest:
                raise IntegrityError(f"{archive}: Expected to read back what was written.")
        os.link(temporary, archive)  # of two at once the first one counts
    except FileExistsError:
        raise ConfigError(f"{archive}: Expected a new file, there is one.") from None
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"{archive}: cannot be written ({type(error).__name__}).") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return manifest


def read_archive(archive: Path, kind: Kind) -> Manifest:
    """Check a whole archive.

    Raises
    ------
    ConfigError
        If there is none, or it is of the other side.
    IntegrityError
        If a byte of it is not what was written, or a name in it leads elsewhere.
    """
    with _opened(archive) as file:
        return _of_kind(_read(file, archive), kind, archive)


def restore_archive(
    archive: Path,
    target: Path,
    kind: Kind,
    *,
    replace: bool = False,
    settle: Mapping[str, Settle] | None = None,
    gone: Iterable[str] = (),
) -> Manifest:
    """Put the files of an archive into a folder.

    Parameters
    ----------
    archive, kind
    target : Path
        Made if it is not there. It may be empty; else `replace` says that its files may be replaced. What the archive
        does not have stays.
    settle : mapping of str to callable
        For files that must not go back: what to write where both have one.
    gone : iterable of str
        Patterns of files in `target` that are taken away with a replacement: they belong to what was replaced.

    Raises
    ------
    ConfigError
        If there is no such archive, it is of the other side, or `target` is not empty.
    IntegrityError
        If a byte of the archive is not what was written, or a name in it leads elsewhere.
    VeilrecError
        What `settle` raises.

    Guarantees
    ----------
    The whole archive is checked, and all is settled, before a file of `target` changes. A crash leaves each file whole,
    the old or the new one; the same command with `replace` finishes it.
    """
    with _opened(archive) as file:
        _check_target(target, replace)
        staging = Path(tempfile.mkdtemp(dir=target, prefix=STAGING))
        try:
            manifest = _of_kind(_read(file, archive, staging), kind, archive)
            _settle(staging, target, settle or {})
            for pattern in gone:
                for old in target.glob(pattern):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            # First what must not go back: no process may find the keys without the ledger.
            _move(staging, target, sorted(manifest.files, key=lambda kept: kept.name not in (settle or {})))
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({type(error).__name__}). Run it again.") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


# --- writing --------------------------------------------------------------------------------------


def _check_keys(sources: Mapping[str, Path]) -> None:
    plain = []
    for name, path in sorted(sources.items()):
        with path.open("rb") as file:
            if is_plain_key(name, file.read(16_384)):
                plain.append(name)
    if plain:
        raise ConfigError(
            f"Expected encrypted private keys, got {', '.join(plain)} in the clear: encrypt them, or say "
            "--include-plain-keys and keep the archive as you keep the keys."
        )


def _write(file: IO[bytes], kind: Kind, name: str, sources: Mapping[str, Path]) -> Manifest:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        kept = tuple(_add(tar, told, path) for told, path in sorted(sources.items()))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(kind, name, version("veilrec"), created, kept)
        data = encode(manifest)
        info = _info(MANIFEST, len(data), 0o600)
        tar.addfile(info, io.BytesIO(data))
    return manifest


def _add(tar: tarfile.TarFile, name: str, path: Path) -> Kept:
    with path.open("rb") as source:
        facts = os.fstat(source.fileno())
        hashed = _Hashed(source)
        mode = stat.S_IMODE(facts.st_mode) & MODES
        try:
            tar.addfile(_info(name, facts.st_size, mode), hashed)
        except OSError:
            if hashed.size < facts.st_size:
                raise IntegrityError(f"{name}: Expected a file that keeps its bytes, it became shorter.") from None
            raise
    return Kept(name, facts.st_size, mode, hashed.digest)


def _info(name: str, size: int, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, mode
    return info


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    try:
        file = archive.open("rb")
    except OSError as error:
        raise ConfigError(f"{archive}: cannot be read ({type(error).__name__}). Expected a backup.") from None
    with file:
        yield file


def _read(file: IO[bytes], archive: Path, into: Path | None = None) -> Manifest:
    """Read all members, each into a file of the folder `into` if there is one, and hold them to the manifest."""
    found: dict[str, Kept] = {}
    manifest: Manifest | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                plain = member.type == tarfile.REGTYPE and not member.issparse()
                if manifest is not None or not plain or member.name in found:
                    raise IntegrityError(f"{archive}: Expected files, each once, and {MANIFEST} as the last.")
                source = tar.extractfile(member)
                if source is None:
                    raise ValueError
                if member.name == MANIFEST:
                    manifest = decode(source.read(MOST_MANIFEST))
                else:
                    check_name(member.name, archive)
                    found[member.name] = _copy(member, source, into)
    except (tarfile.TarError, OSError, ValueError, TypeError, KeyError, EOFError, RecursionError):
        raise IntegrityError(f"{archive}: Expected a whole backup, got a damaged one.") from None
    if manifest is None or {kept.name: kept for kept in manifest.files} != found:
        raise IntegrityError(f"{archive}: Expected the files that its manifest names, byte by byte, got others.")
    return manifest


def _copy(member: tarfile.TarInfo, source: IO[bytes], into: Path | None) -> Kept:
    hashed = _Hashed(source)
    with open(os.devnull if into is None else _made(into / member.name), "wb") as to:  # noqa: PTH123
        shutil.copyfileobj(hashed, to, BLOCK)
        if into is not None:
            to.flush()
            os.fsync(to.fileno())
    if hashed.size != member.size:
        raise EOFError
    return Kept(member.name, member.size, member.mode, hashed.digest)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _of_kind(manifest: Manifest, kind: Kind, archive: Path) -> Manifest:
    if manifest.kind != kind:
        raise ConfigError(f"{archive}: Expected a backup of a {kind}, got one of a {manifest.kind}.")
    return manifest


# --- restoring ------------------------------------------------------------------------------------


def _check_target(target: Path, replace: bool) -> None:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in target.glob(f"{STAGING}*"):  # of a restore that was killed
        shutil.rmtree(left)
    if not replace and any(target.iterdir()):
        raise ConfigError(f"{target}: Expected an empty folder, or --replace.")


def _settle(staging: Path, target: Path, settle: Mapping[str, Settle]) -> None:
    for name, choose in settle.items():
        archived, current = staging / name, target / name
        if archived.exists() and current.exists():
            write_bytes(archived, choose(current.read_bytes(), archived.read_bytes()))


def _move(staging: Path, target: Path, files: Iterable[Kept]) -> None:
    for kept in files:
        made = _made(target / kept.name)
        (staging / kept.name).chmod(kept.mode & MODES | 0o600)
        (staging / kept.name).replace(made)
    with suppress(OSError):
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
