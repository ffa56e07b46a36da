"""The one form of an evidence archive: an uncompressed tar in which no byte is free.

ustar, names sorted, mode 0644, time and owners 0, every member padded with zeros to whole blocks, two blocks of zeros
at the end and nothing after them. A reader packs what it read again and compares bytes, so that nothing can hide in a
header, in padding, or behind the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.errors import ConfigError, IntegrityError

BLOCK = 512
END = bytes(2 * BLOCK)
NAME, SIZE = slice(0, 100), slice(124, 135)
"""Of a header: the name, and the size in octal digits."""
MOST_NAME = 100
MODE = 0o644


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of these members, by name; the same members give the same bytes.

    Raises
    ------
    ConfigError
        If a name does not fit in a header.
    """
    return b"".join(_member(name, members[name]) for name in sorted(members)) + END


def unpack(data: bytes, where: str) -> dict[str, bytes]:
    """The members of an archive.

    Raises
    ------
    IntegrityError
        If the bytes are not exactly those that `pack` writes for what they hold; `where` names the file.
    """
    members = _read(data, where)
    try:
        same = pack(members) == data
    except ConfigError:
        same = False
    if not same:
        raise IntegrityError(f"{where}: Expected an evidence archive in its one form, got other bytes.")
    return members


def _member(name: str, data: bytes) -> bytes:
    if not name.isascii() or not 0 < len(name) < MOST_NAME:
        raise ConfigError(f"evidence: Expected names of 1 to {MOST_NAME - 1} ASCII characters, got {name!r}.")
    return _header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def _header(name: str, size: int) -> bytes:
    """POSIX.1-1988, "ustar": field by field. The sum of all bytes counts its own field as spaces."""
    nobody = b"%07o\0%07o\0" % (0, 0)
    numbers = b"%07o\0" % MODE + nobody + b"%011o\0%011o\0" % (size, 0)
    start, rest = name.encode().ljust(MOST_NAME, b"\0") + numbers, b"0" + bytes(MOST_NAME) + b"ustar\x0000"
    total = sum(start) + sum(rest) + 8 * ord(" ")
    return (start + b"%06o\0 " % total + rest).ljust(BLOCK, b"\0")


def _read(data: bytes, where: str) -> dict[str, bytes]:
    """Names and contents, as the headers tell them; what else a header says is compared by `unpack`."""
    members: dict[str, bytes] = {}
    start = 0
    while (header := data[start : start + BLOCK]).strip(b"\0"):
        try:
            name, size = header[NAME].rstrip(b"\0").decode("ascii"), int(header[SIZE], 8)
        except ValueError:
            raise IntegrityError(
                f"{where}: Expected the header of a member at byte {start}, got other bytes."
            ) from None
        start += BLOCK
        if name in members or size < 0 or start + size > len(data):
            raise IntegrityError(f"{where}: Expected whole members with names of their own, got other bytes.")
        members[name] = data[start : start + size]
        start += size + -size % BLOCK
    return members
