"""``veilrec audit verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulations.audit.bundle.verify import BundleReport


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The archive: evidence.tar.")],
    *,
    trust: Annotated[str, typer.Option(help="Public key of who bundled, as base64 or a file that holds it.")],
    identities: Annotated[
        Path | None, typer.Option(help="The partners' public keys as you know them: JSON of names and keys.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Check a bundle offline: archive, signatures, ledgers, receipts, transcripts, epsilon, and the audit's numbers.

    Exit code 0 only if nothing in it contradicts anything else. That it tells of real partners takes --identities.
    """
    from shared.errors import ConfigError
    from shared.release_signature import read_trust
    from simulations.audit.bundle.verify import verify_bundle

    keys = read_trust([trust])
    if len(keys) != 1:
        raise ConfigError(f"Expected trust=one key, of who bundled, got {len(keys)}.")
    pins = None
    if identities is not None:
        from simulations.audit.bundle.evidence import read_pins

        try:
            pins = read_pins(identities.read_bytes(), str(identities))
        except OSError as error:
            raise ConfigError(f"{identities}: cannot be read ({type(error).__name__}).") from None
    report = verify_bundle(bundle, next(iter(keys)), pins)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
        return
    for line in _lines(report):
        typer.echo(line)


def _lines(report: BundleReport) -> list[str]:
    epsilon = (
        "none: nothing is claimed" if report.epsilon is None else f"{report.epsilon:.4g} at delta {report.delta:g}"
    )
    lines = [
        f"run {report.run_id}, mode {report.mode}: epsilon {epsilon}",
        f"rounds: {report.rounds}, sums opened: {report.sums}, partners: {', '.join(report.partners)}",
        f"bundled by {report.signer}, coordinator {' or '.join(report.coordinator)}",
        f"partners' keys: {'as you gave them' if report.pinned else 'as the bundler tells them (see --identities)'}",
    ]
    if report.recomputed_epsilon is not None:
        lines.append(f"epsilon recomputed: {report.recomputed_epsilon:.4g}")
    if report.verdict is not None:
        rungs = ", ".join(f"{name} {verdict}" for name, verdict in report.rungs.items())
        lines.append(f"audit: {report.verdict} ({rungs})")
    if report.other_code:
        lines.append(f"code: {len(report.other_code)} files differ from this installation's")
    return [*lines, "the bundle is consistent"]
