"""A process that is kept running: started, watched, started again, ended with whoever watches it."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from shared.logs import Log

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0
"""A process that ran for so long is started again at once; one that ends sooner waits longer and longer."""
END_S = 10.0
MARK = "VEILREC_WATCHED"
KILLS, KILL_S = 50, 0.1
"""How often the rest is looked for, and between two looks."""

CALM = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What no process of a deployment may do: tell of itself, look for updates, install, or download."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to start.

    Attributes
    ----------
    name : str
        As logs and status call it.
    argv : sequence of str
        The first is a module of Python (``-m``), or a program's path.
    environment : mapping
        Beside this process's own and `CALM`.
    handles : sequence of int
        Open files that it inherits.
    place : str
        The folder that it works for: no two watchers keep a command of one name for one place. What an earlier
        watcher that was killed left of it is ended before it is started. Empty: of this watcher alone.
    user : str, optional
        Of the operating system; to be asked for by root alone.
    inherits : frozenset of str, optional
        The names in this process's own environment that it is told; all by default.
    prepare : callable
        Called before each start.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    handles: Sequence[int] = ()
    place: str = ""
    user: str | None = None
    inherits: frozenset[str] | None = None
    prepare: Callable[[], None] = lambda: None


class Watched:
    """Keeps one command running.

    Parameters
    ----------
    command : Command
    log : Log
    restarted : callable
        Called with the name whenever it was started again.
    """

    def __init__(self, command: Command, log: Log, restarted: Callable[[str], None] = lambda _: None) -> None:
        self._command, self._log, self._restarted = command, log, restarted
        self._process: asyncio.subprocess.Process | None = None
        self._mark = f"{command.name} {command.place or os.getpid()}"
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def keep(self) -> None:
        """Start it, and start it again whenever it ends; until cancelled, which ends it."""
        pause = SHORTEST_PAUSE_S
        try:
            await self._kill_rest()  # of a watcher that was killed itself
            while True:
                began = time.monotonic()
                self._process = await self._start()
                self.starts += 1
                self._log.tell("started", process=self._command.name, pid=self._process.pid)
                if self.starts > 1:
                    self._restarted(self._command.name)
                code = await self._process.wait()
                await self._kill_rest()  # what it left would hold its ports and locks
                self._log.tell("ended", level="warning", process=self._command.name, code=code)
                steady = time.monotonic() - began > STEADY_S
                pause = SHORTEST_PAUSE_S if steady else min(LONGEST_PAUSE_S, 2 * pause)
                await asyncio.sleep(pause)
        finally:
            await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        command = self._command
        command.prepare()
        told = os.environ if command.inherits is None else _part(command.inherits)
        group = None if command.user is None else pwd.getpwnam(command.user).pw_gid
        return await asyncio.create_subprocess_exec(
            *command.argv,
            env={**told, **CALM, **command.environment, MARK: self._mark},
            pass_fds=tuple(command.handles),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the watcher
            user=command.user,
            group=group,
            extra_groups=None if command.user is None else [],
        )

    async def _end(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S)
            with suppress(ProcessLookupError):
                process.kill()
        await self._kill_rest()
        if process is not None:
            await process.wait()

    async def _kill_rest(self) -> None:
        """Kill whatever the command started and left, in sessions of its own too: all of it has inherited the mark."""
        for _ in range(KILLS):
            left = _marked(self._mark)
            if not left:
                return
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(KILL_S)


def _marked(mark: str) -> list[int]:
    """The processes that were started with a mark in their environment (Linux); not those that ended."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _part(names: frozenset[str]) -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name in names}


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a module of this very installation, and of nothing that lies where it is started (``-P``)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def end_on_signals(task: asyncio.Task[None]) -> None:
    """Cancel a task on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
