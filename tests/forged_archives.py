"""Corruptions of a bundle by who has the archive alone: bytes, members, names."""

from __future__ import annotations

import random
from collections.abc import Callable

from evidence_setting import made

from shared.hazmat.signing import SigningKey
from simulations.audit.bundle.archive import pack, unpack
from simulations.audit.bundle.seal import seal as sealed

Corrupt = Callable[[random.Random], bytes]


def archive() -> bytes:
    return made().bundle.read_bytes()


def flipped(random_: random.Random) -> bytes:
    data = bytearray(archive())
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


def replaced(random_: random.Random) -> bytes:
    data = bytearray(archive())
    at = random_.randrange(len(data))
    data[at] = (data[at] + random_.randrange(1, 256)) % 256
    return bytes(data)


def inserted(random_: random.Random) -> bytes:
    data = archive()
    at = random_.randrange(len(data) + 1)
    return data[:at] + random_.randbytes(random_.choice([1, 7, 512])) + data[at:]


def deleted(random_: random.Random) -> bytes:
    data = archive()
    at, size = random_.randrange(len(data) - 512), random_.choice([1, 7, 512])
    return data[:at] + data[at + size :]


def cut(random_: random.Random) -> bytes:
    data = archive()
    return data[: random_.choice([0, random_.randrange(len(data)), 512 * random_.randrange(len(data) // 512)])]


def longer(random_: random.Random) -> bytes:
    return archive() + random_.choice([b"\0", bytes(512), bytes(10_240 - len(archive()) % 10_240), b"more", archive()])


def members() -> dict[str, bytes]:
    return unpack(archive(), "evidence.tar")


def swapped_members(random_: random.Random) -> bytes:
    found = members()
    one, other = random_.sample(sorted(name for name in found if "sig" not in name), 2)
    found[one], found[other] = found[other], found[one]
    return pack(found)


def removed_member(random_: random.Random) -> bytes:
    found = members()
    del found[random_.choice(sorted(found))]
    return pack(found)


def added_member(random_: random.Random) -> bytes:
    name = random_.choice(["secret.txt", "ledgers/partner-004.jsonl", "transcripts/round-0004.json", "audit.json.bak"])
    return pack({**members(), name: random_.randbytes(random_.randrange(600))})


def renamed_member(random_: random.Random) -> bytes:
    found = members()
    name = random_.choice(sorted(found))
    return pack({**{other: data for other, data in found.items() if other != name}, f"{name[:-1]}x": found[name]})


def of_a_stranger(random_: random.Random) -> bytes:
    return sealed(made().members, made().coordinator.public, SigningKey.generate())


BARE_KINDS: dict[str, Corrupt] = {
    "a bit": flipped,
    "a byte": replaced,
    "bytes more": inserted,
    "bytes less": deleted,
    "cut": cut,
    "longer": longer,
    "members swapped": swapped_members,
    "a member removed": removed_member,
    "a member added": added_member,
    "a member renamed": renamed_member,
    "signed by a stranger": of_a_stranger,
}
