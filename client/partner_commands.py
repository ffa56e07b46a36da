"""``veilrec partner init``, ``join`` and ``rotate``: plain functions, which the command line registers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.enrolment import Requested, Review
    from client.premises import Premises

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File of the keys' passphrase; else VEILREC_PASSPHRASE_FILE, else the systemd credential."),
]


def init(
    folder: Folder,
    *,
    name: Annotated[str, typer.Option(help="The partner's name in the federation.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a partner's keys, all encrypted, and the request to be handed to the coordinator."""
    from client.enrolment import init_partner

    done = init_partner(folder, name, passphrase_file)
    if done.passphrase_file_made:
        typer.echo(f"made {passphrase_file or 'the passphrase file'}: keep it apart from the backups of {folder}")
    _print_request(done)


def join(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that the coordinator gave.")],
    *,
    fingerprint: Annotated[str | None, typer.Option(help="The digits that the coordinator read out.")] = None,
    max_epsilon: Annotated[float | None, typer.Option(help="The partner's own limit over all runs.")] = None,
    max_delta: Annotated[float | None, typer.Option(help="The partner's own limit over all runs.")] = None,
    min_cohort: Annotated[int | None, typer.Option(help="The least partners in a sum.")] = None,
    min_colluders: Annotated[int | None, typer.Option(help="Partners against whom the noise must hold.")] = None,
    max_buckets: Annotated[int | None, typer.Option(help="Sums that a round may be split into.")] = None,
) -> None:
    """Pin the keys of a federation, or of its next bundle, after the fingerprint was compared by voice."""
    from client.enrolment import join as take

    options = {
        "max_epsilon": max_epsilon,
        "max_delta": max_delta,
        "min_cohort": min_cohort,
        "min_colluders": min_colluders,
        "max_buckets": max_buckets,
    }
    floor: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    confirm = _ask if sys.stdin.isatty() else None
    review, premises = take(folder, bundle, fingerprint=fingerprint, floor=floor, confirm=confirm)
    if confirm is None or fingerprint is not None or not review.needs_voice:  # else it was shown with the question
        _print_review(review)
    _print_joined(review, premises)


def rotate(
    folder: Folder,
    *,
    finish: Annotated[bool, typer.Option("--finish", help="Switch, once every partner joined both keys.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Change identity and node key: first a request signed by old and new; with --finish the switch."""
    from client.key_rotation import begin
    from client.key_rotation import finish as switch
    from shared.hazmat.key_files import Passphrase

    told = None if passphrase_file is None else Passphrase.read(passphrase_file)
    _print_request((switch if finish else begin)(folder, told))


def _print_request(done: Requested) -> None:
    typer.echo(f"give the coordinator {done.file}, and when asked read out  {done.fingerprint}")


def _ask(review: Review) -> bool:
    _print_review(review)
    return typer.confirm("Did the coordinator read out the same digits, and are these the partners?")


def _print_review(review: Review) -> None:
    federation = review.bundle.federation
    typer.echo(f"bundle {review.bundle.folder}: serial {federation.serial}, {federation.address}")
    typer.echo(f"partners: {', '.join(federation.roster)}")
    for words, names in (("new", review.added), ("gone", review.removed), ("with other keys", review.replaced)):
        if names and not review.first:
            typer.echo(f"  {words}: {', '.join(names)}")
    privacy, rounds = federation.config.privacy, federation.config.training.rounds
    typer.echo(f"asks for mode {privacy.mode}, epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, {rounds} rounds")
    typer.echo(f"fingerprint:  {review.bundle.fingerprint}")


def _print_joined(review: Review, premises: Premises) -> None:
    from client.enrolment import shortfalls

    for words in shortfalls(review.bundle.federation, premises.policy, len(premises.peers)):
        typer.echo(f"note: this partner will refuse the rounds: {words}")
    typer.echo(f"joined; {premises.folder / 'partner.toml'} pins {len(premises.peers)} partners and the coordinator")
