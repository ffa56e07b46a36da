"""This installation of Python and Veilrec, for users that may not pass through the folders in which it lies.

A test's virtual environment often lies in its owner's home. In a mount namespace of their own, partners see it under
a folder that is open to all; nothing of the machine is changed.
"""

from __future__ import annotations

import sys
import sysconfig
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
