"""The Flower app that the coordinator submits: two modules that import the installed package, and its hash.

Partners pin the hash. They never run the app: their agent is their own installation (`client.agent`).
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import tomli_w

from shared.enrolment import installed_version
from shared.files import write_bytes

APP = "app"
_PACKAGE = "veilrec_app"


def build_app(home: Path) -> str:
    """Write ``app/`` and return the SHA-256 of the bundle that Flower makes of it.

    The same installation makes the same bytes: Flower sorts the files and gives all of them one date.
    """
    from flwr.cli.build import build_fab_from_disk

    folder = home / APP
    for name, content in _files().items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            write_bytes(folder / name, content)
    with warnings.catch_warnings():  # Flower's, about a pattern of pathspec's
        warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)
        return hashlib.sha256(build_fab_from_disk(folder)).hexdigest()


def _files() -> dict[str, bytes]:
    return {
        "pyproject.toml": tomli_w.dumps(_project()).encode(),
        f"{_PACKAGE}/__init__.py": b'"""Veilrec as a Flower app: all code is in the installed package."""\n',
        f"{_PACKAGE}/server.py": b"from server.app import app as app\n",
        f"{_PACKAGE}/client.py": b"from client.app import app as app\n",
    }


def _project() -> dict[str, object]:
    app = {
        "publisher": "veilrec",
        "fab-include": [f"{_PACKAGE}/**/*.py"],
        "components": {"serverapp": f"{_PACKAGE}.server:app", "clientapp": f"{_PACKAGE}.client:app"},
        "config": {"config": "", "data-root": "", "out": "veilrec-run", "patience": ""},
    }
    project = {
        "name": "veilrec-app",
        "version": installed_version(),
        "description": "Submits Veilrec's rounds.",
        "license": "LicenseRef-Proprietary",
        "dependencies": [],
    }
    return {"project": project, "tool": {"flwr": {"app": app}}}
