"""Which code is installed: versions of all that it depends on, and the digest of every source file."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("client", "server", "shared", "simulations")
SUFFIXES = (".py", ".html", ".css", ".js", ".svg", ".json", ".toml")
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def installed_code() -> dict[str, Any]:
    """``code.json``: ``veilrec_version``, ``versions`` by package, ``files``: SHA-256 by path."""
    return {"veilrec_version": metadata.version("veilrec"), "versions": _versions(), "files": source_digests()}


def source_digests() -> dict[str, str]:
    """SHA-256 of every source file of Veilrec, by its path below the four packages' parent."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            files = (file for file in Path(root).rglob("*") if file.is_file() and file.suffix in SUFFIXES)
            found |= {
                f"{package}/{file.relative_to(root).as_posix()}": hashlib.sha256(file.read_bytes()).hexdigest()
                for file in files
            }
    return dict(sorted(found.items()))


def _versions() -> dict[str, str]:
    """Of Python and of what Veilrec says that it needs; optional packages only where they are installed."""
    found = {"python": platform.python_version()}
    for requirement in metadata.requires("veilrec") or []:
        name = _REQUIREMENT.findall(requirement)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
