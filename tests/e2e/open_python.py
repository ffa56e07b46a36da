"""Users of the operating system for a test, and this installation for them, who may not pass through its folders.

A test's virtual environment often lies in its owner's home. In a mount namespace of their own, partners see it under
a folder that is open to all; nothing of the machine is changed.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def python_for_all(root: Path) -> tuple[str, ...]:
    """The beginning of a command line that starts Python for any user; needs root.

    Parameters
    ----------
    root : Path
        An open folder, to hold the mount points.
    """
    places = {
        root / "python": Path(sys.base_prefix),
        root / "packages": Path(sysconfig.get_paths()["purelib"]),
        root / "veilrec": REPOSITORY,
    }
    for point in places:
        point.mkdir(exist_ok=True)
    mounts = " && ".join(f"mount --bind '{place}' '{point}'" for point, place in places.items())
    program = root / "python" / "bin" / f"python3.{sys.version_info.minor}"
    seen = f"PYTHONPATH='{root / 'veilrec'}:{root / 'packages'}' LD_LIBRARY_PATH='{root / 'python' / 'lib'}'"
    start = f"{mounts} && cd / && exec env {seen} '{program}' \"$@\""
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", start, "sh")


@contextmanager
def two_users() -> Iterator[tuple[str, str]]:
    """Two new users of the operating system, one for agents and one for nodes; removed afterwards. Needs root."""
    names = (f"vr-a-{secrets.token_hex(4)}", f"vr-n-{secrets.token_hex(4)}")
    try:
        for name in names:
            subprocess.run(["useradd", "--system", "--no-create-home", name], check=True, capture_output=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["userdel", name], check=False, capture_output=True)
