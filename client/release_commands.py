"""``veilrec adapter verify`` and ``veilrec releases list|pin|unpin``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.ranking.releases import Entry, ReleaseShelf

adapter_app = typer.Typer(no_args_is_help=True, help="Check a released adapter.")
releases_app = typer.Typer(no_args_is_help=True, help="The releases that a partner serves from, and which one.")

Trusted = Annotated[
    list[str],
    typer.Option(
        "--trust",
        metavar="PUBKEY",
        help="The coordinator's public key, as base64 or a file that holds it; may be given more than once.",
    ),
]
Releases = Annotated[Path, typer.Option("--releases", help="The folder of release folders.")]
State = Annotated[
    Path | None,
    typer.Option(
        "--state", help="The service's own folder, which keeps what was served and is pinned; else $VEILREC_HOME/serve."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


@adapter_app.callback()
def _adapter() -> None:
    """Check a released adapter."""


@adapter_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the release.")],
    trust: Trusted,
    *,
    as_json: Json = False,
) -> None:
    """Check signature, manifest, digests and tensors of a release; neither the base model nor torch is loaded."""
    from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE, read_release
    from shared.release_manifest import FILES
    from shared.release_signature import read_trust

    manifest = read_release(folder, read_trust(trust)).manifest
    own = {*FILES, MANIFEST_FILE, SIGNATURE_FILE}
    told = _told(manifest) | {"ignored": sorted(ascii(e.name)[1:-1] for e in folder.iterdir() if e.name not in own)}
    if as_json:
        typer.echo(json.dumps({"verified": True, **told}))
        return
    typer.echo(f"verified: version {told['version']}, {_privacy(told)}")
    typer.echo(f"base: {told['base']}, sha256 {told['base_sha256']}")
    typer.echo(f"fingerprint: {told['fingerprint']}")
    for name in told["ignored"]:
        typer.echo(f"no part of the release: {name}")


@releases_app.callback()
def _releases() -> None:
    """The releases that a partner serves from, and which one."""


@releases_app.command("list")
def list_(releases: Releases, trust: Trusted, *, state: State = None, as_json: Json = False) -> None:
    """Show every folder: which release is served, and why the others are not."""
    from client.ranking.held_releases import held_of

    entries, held = _shelf(releases, trust, state).entries(), held_of(state).read()
    if as_json:
        typer.echo(json.dumps({"releases": [_row(entry, held) for entry in entries]}))
        return
    for entry in entries:
        told = _row(entry, held)
        about = f"version {told['version']}, {_privacy(told)}" if entry.manifest else told["reason"]
        typer.echo(f"{entry.standing.value:<12}  {entry.name}: {about}")
        if "held" in told:
            typer.echo(f"{'held back':<12}  {told['held']}")
    if not entries:
        typer.echo("no folders")


@releases_app.command()
def pin(
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="The version to serve.")],
    releases: Releases,
    trust: Trusted,
    *,
    state: State = None,
) -> None:
    """Serve one version from now on, an older one too: this is how to roll back."""
    pinned = _shelf(releases, trust, state).pin(version)
    typer.echo(f"pinned: version {version}, fingerprint {pinned.known.fingerprint}")


@releases_app.command()
def unpin(releases: Releases, *, state: State = None) -> None:
    """Serve the newest release again."""
    from client.ranking.release_memory import ReleaseMemory, memory_of
    from shared.errors import ConfigError

    memory = ReleaseMemory(memory_of(state))
    if memory.read().pinned is None:
        raise ConfigError(f"{releases}: Expected a pinned release, there is none.")
    memory.pin(None)
    typer.echo("unpinned: the newest release is served")


def _shelf(releases: Path, trust: list[str], state: Path | None) -> ReleaseShelf:
    from client.ranking.release_memory import memory_of
    from client.ranking.releases import ReleaseShelf
    from shared.release_signature import read_trust

    return ReleaseShelf(releases, read_trust(trust), memory_of(state))


def _told(manifest: dict[str, Any]) -> dict[str, Any]:
    names = ("version", "fingerprint", "base", "base_sha256", "catalogue_sha256")
    return {name: manifest[name] for name in names} | dict(manifest["privacy"])


def _row(entry: Entry, held: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "standing": entry.standing.value}
    if entry.manifest is not None:
        reason = held.get(entry.manifest["fingerprint"])  # by the service's promotion gate, until it is pinned
        return row | _told(entry.manifest) | ({} if reason is None else {"held": reason})
    return row | {"family": entry.refusal.family, "reason": entry.refusal.reason} if entry.refusal else row


def _privacy(told: dict[str, Any]) -> str:
    if told["mode"] == "none":
        return "no privacy (mode none)"
    return f"epsilon {told['epsilon']:.4g}, delta {told['delta']:g}, mode {told['mode']}"
