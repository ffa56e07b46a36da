"""A process that dies at its n-th durable step, in two ways: by an exception that nothing survives, and by SIGKILL."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


class Killed(BaseException):
    """The process is gone: no ``except Exception`` sees it."""


def dies_at(step: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> bool:
    """Run `act` until its `step`-th sync, rename or removal, before which it dies, as does all that it tries then.

    Returns
    -------
    bool
        Whether it died; False if it has fewer steps.
    """
    left = step

    def mortal(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **told: object) -> object:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed(name)
            return real(*arguments, **told)

        return call

    with patch.context() as context:
        context.setattr(os, "fsync", mortal("fsync", os.fsync))
        for name in ("replace", "unlink", "write_bytes"):
            context.setattr(pathlib.Path, name, mortal(name, getattr(pathlib.Path, name)))
        try:
            act()
        except Killed:
            return True
    return False


def killed_at(step: int, call: str, folder: Path, now: float, *, before: str = "") -> int:
    """Run ``call`` (an expression of ``premises`` and ``now``) in a process that SIGKILLs itself at a step.

    With `before` it does so as well before it renames anything to that name.

    Returns
    -------
    int
        Its exit status: -9 if it was killed.
    """
    program = f"""
import os, pathlib, signal
from pathlib import Path
from client.intake.erasure import erase
from client.intake.importing import import_once
from client.premises import Premises
left = {step}
def mortal(real):
    def call(*arguments, **told):
        global left
        left -= 1
        if left <= 0 or (len(arguments) > 1 and getattr(arguments[1], "name", "") == {before!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **told)
    return call
os.fsync = mortal(os.fsync)
for name in ("replace", "unlink", "write_bytes"):
    setattr(pathlib.Path, name, mortal(getattr(pathlib.Path, name)))
premises, now = Premises.open(Path({str(folder)!r})), {now!r}
{call}
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False, capture_output=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode
