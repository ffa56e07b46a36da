"""A process that is watched is there while its watcher is, and no longer; all of them are real."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shared import watched as module
from shared.logs import Log
from shared.watched import CALM, Command, Watched, python

SLEEPS = ("/bin/sleep", "60")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_PAUSE_S", 0.02)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr(module, "END_S", 0.4)


def shell(script: str, name: str = "x", **more: object) -> Command:
    return Command(name, ("/bin/sh", "-c", script), **more)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    return False


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def kept(watched: Watched, holds: Callable[[], bool]) -> None:
    """Keep it until something holds, and end it."""
    task = asyncio.create_task(watched.keep())
    try:
        await until(holds)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def number(file: Path) -> int:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def test_a_process_that_is_killed_is_started_again_and_told(tmp_path: Path) -> None:
    async def play() -> None:
        restarts: list[str] = []
        watched = Watched(Command("superlink", SLEEPS), Log(log), restarts.append)
        task = asyncio.create_task(watched.keep())
        await until(lambda: watched.pid is not None)
        first = watched.pid
        assert first is not None and restarts == []
        os.kill(first, signal.SIGKILL)
        await until(lambda: watched.starts == 2)
        assert watched.pid not in (None, first) and restarts == ["superlink"]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert watched.pid is None

    log = io.StringIO()
    asyncio.run(play())
    told = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in told] == ["started", "ended", "started"]
    assert told[1]["code"] == -signal.SIGKILL and told[1]["level"] == "warning"


def test_a_process_that_ends_at_once_is_not_started_in_a_spin() -> None:
    """Pauses are 0.04, 0.08, 0.16, then 0.3 s: within a second no more than seven starts."""
    watched = Watched(shell("exit 3"), Log(None))

    async def play() -> None:
        began = time.monotonic()
        await kept(watched, lambda: time.monotonic() - began > 1.0)

    asyncio.run(play())
    assert 3 <= watched.starts <= 7


def test_a_process_that_was_steady_is_started_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY_S", 0.1)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 30.0)
    watched = Watched(shell("sleep 0.15"), Log(None))
    asyncio.run(kept(watched, lambda: watched.starts >= 6))


def test_it_ends_with_its_watcher_and_so_does_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "child"
    watched = Watched(shell(f"sleep 60 & echo $! > {file}; wait"), Log(None))
    asyncio.run(kept(watched, lambda: number(file) > 0))
    assert watched.pid is None
    asyncio.run(until(lambda: not alive(number(file))))  # the kernel takes a moment to end it


def test_what_it_started_in_a_session_of_its_own_ends_with_it_too(tmp_path: Path) -> None:
    """As a SuperLink starts what runs the rounds: no signal to a group reaches that."""
    file = tmp_path / "child"
    watched = Watched(shell(f"setsid sh -c 'echo $$ > {file}; exec sleep 60' & wait"), Log(None))
    asyncio.run(kept(watched, lambda: number(file) > 0))
    asyncio.run(until(lambda: not alive(number(file))))


def test_what_a_watcher_that_was_killed_left_is_ended_by_the_next(tmp_path: Path) -> None:
    """Of the same command for the same folder, and of no other."""
    files = [tmp_path / "left", tmp_path / "others"]
    lefts = [
        subprocess.Popen(["sh", "-c", f"echo $$ > {file}; exec sleep 60"], env={**os.environ, module.MARK: mark})
        for file, mark in zip(files, (f"x {tmp_path}", f"x {tmp_path}-other"), strict=True)
    ]
    asyncio.run(until(lambda: all(number(file) > 0 for file in files)))
    watched = Watched(Command("x", SLEEPS, place=str(tmp_path)), Log(None))
    asyncio.run(kept(watched, lambda: watched.pid is not None))
    assert [alive(left.pid) for left in lefts] == [False, True]
    for left in lefts:
        left.kill()
        left.wait()


def test_one_that_takes_no_notice_of_a_signal_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "child"
    script = f"trap '' TERM; (trap '' TERM; echo $$ > {file}; while :; do sleep 0.05; done)"
    watched, began = Watched(shell(script), Log(None)), time.monotonic()
    asyncio.run(kept(watched, lambda: number(file) > 0))
    assert not alive(number(file))
    assert time.monotonic() - began < 4.0


def test_what_a_killed_process_left_behind_is_ended_before_it_is_started_again(tmp_path: Path) -> None:
    """A SuperLink's own children would hold its port, and the lock of the run."""
    file = tmp_path / "children"
    watched = Watched(shell(f"sleep 60 & echo $! >> {file}; wait"), Log(None))

    def children() -> list[int]:
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    async def play() -> None:
        task = asyncio.create_task(watched.keep())
        await until(lambda: len(children()) == 1)
        assert watched.pid is not None
        os.kill(watched.pid, signal.SIGKILL)
        await until(lambda: len(children()) == 2)
        left = alive(children()[0])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not left

    asyncio.run(play())


def test_a_program_that_is_not_there_is_an_error_of_whoever_wanted_it() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(Watched(Command("x", ("/no/such/program",)), Log(None)).keep())


def test_it_is_told_to_keep_still_and_inherits_what_it_is_handed(tmp_path: Path) -> None:
    out, (read, write) = tmp_path / "told", os.pipe()
    os.write(write, b"handed")
    os.close(write)
    script = f"head -c 6 /proc/self/fd/{read} > {out}.part; env >> {out}.part; mv {out}.part {out}; sleep 60"
    watched = Watched(shell(script, environment={"VEILREC_X": "1"}, handles=(read,)), Log(None))
    asyncio.run(kept(watched, out.exists))
    os.close(read)
    told = out.read_text()
    assert told.startswith("handed")
    assert {f"{key}={value}" for key, value in CALM.items()} | {"VEILREC_X=1"} <= set(told[6:].splitlines())


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is taken by root alone")
def test_another_users_process_has_that_users_rights_and_no_groups(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    out = tmp_path / "told"
    out.mkdir()
    out.chmod(0o777)
    watched = Watched(shell(f"id > {out}/part; mv {out}/part {out}/id; sleep 60", user="nobody"), Log(None))
    for folder in tmp_path.parents:
        if folder.owner() == "root" and folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
    asyncio.run(kept(watched, (out / "id").exists))
    told = (out / "id").read_text()
    assert "(nobody)" in told and "(root)" not in told


# --- launched -------------------------------------------------------------------------------------


def test_what_was_launched_ends_with_whoever_started_it_even_by_sigkill(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-m', 'shared.launched', '/bin/sleep', '60']).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        end = time.monotonic() + 5
        while "sleep" not in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
            assert time.monotonic() < end
            time.sleep(0.01)
        starter.kill()
        starter.wait()
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_launched_is_the_program_itself_with_its_exit_code() -> None:
    done = subprocess.run(
        python("shared.launched", "/bin/sh", "-c", "echo $$ $0 $1; exit 7", "a", "b"), check=False, capture_output=True
    )
    assert done.returncode == 7 and done.stdout.split()[1:] == [b"a", b"b"]
