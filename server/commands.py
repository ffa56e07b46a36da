"""``veilrec server``: the coordinator's home, its partners and its keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.federation_bundle import Bundle
    from shared.hazmat.key_files import Passphrase

server_app = typer.Typer(no_args_is_help=True, help="The coordinator's own installation.")

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's folder.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File of the keys' passphrase; else VEILREC_PASSPHRASE_FILE, else the systemd credential."),
]


@server_app.callback()
def _server() -> None:
    """The coordinator's own installation."""


@server_app.command()
def init(
    home: Home,
    *,
    address: Annotated[str, typer.Option(help="HOST:PORT by which partners reach this machine.")],
    items: Annotated[Path, typer.Option(help="The public catalogue: items.parquet.")],
    config: Annotated[Path | None, typer.Option(help="The run's configuration as JSON.")] = None,
    partners: Annotated[int, typer.Option(min=3, help="Partners of the run; without --config.")] = 4,
    population: Annotated[int, typer.Option(min=0, help="Declared users of all partners; without --config.")] = 0,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the coordinator's folder: authority, server certificate, own key, Flower app. All keys are encrypted."""
    from server.enrolment import init_home

    made = init_home(home, address, items, _config(config, partners, population), passphrase_file)
    if made.passphrase_file_made:
        typer.echo(f"made {passphrase_file or 'the passphrase file'}: keep it apart from the backups of {home}")
    typer.echo(f"coordinator's key: {made.public_key}")
    typer.echo(
        f"server certificate until {made.certificate.not_after:%Y-%m-%d} for {', '.join(made.certificate.names)}"
    )
    typer.echo(f"app: {made.app}")
    typer.echo(f"next: collect the partners' requests, then `veilrec server enroll {home} NAME.request.json ...`")


@server_app.command()
def enroll(
    home: Home,
    requests: Annotated[list[Path] | None, typer.Argument(metavar="REQUEST...", help="The partners' files.")] = None,
    *,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take partners' requests and write the bundle that every partner is given, with what to compare by voice.

    Without requests: issue the bundle anew after an upgrade or a changed configuration.
    """
    from server.enrolment import enroll as take
    from shared.enrolment import EnrolmentRequest

    files = requests or []
    bundle = take(home, files, _passphrase(passphrase_file))
    for request in sorted((EnrolmentRequest.read(file) for file in files), key=lambda each: each.name):
        typer.echo(f"{request.name}: ask the partner to read out  {request.fingerprint}")
    _print_bundle(home, bundle)


@server_app.command()
def revoke(
    home: Home,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The partner's.")],
    *,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a partner out, for good: out of the roster, the registry and, where it runs, the SuperLink."""
    from server.enrolment import revoke as take_out
    from server.registry import sync_nodes
    from server.settings import ServerSettings
    from shared.errors import ProtocolError

    bundle = take_out(home, name, _passphrase(passphrase_file))
    try:
        gone = len(sync_nodes(home, ServerSettings.open(home).superlink).unregistered)
        typer.echo(f"{name}: revoked, nodes out of the SuperLink: {gone}")
    except ProtocolError:
        typer.echo(f"{name}: revoked; the SuperLink does not run here and forgets its nodes when it is started")
    _print_bundle(home, bundle)


@server_app.command()
def renew(home: Home, *, passphrase_file: PassphraseFile = None) -> None:
    """Make a new server certificate, with a new key; restart the server to use it. Partners need nothing new."""
    from server.enrolment import renew as make

    facts = make(home, _passphrase(passphrase_file))
    typer.echo(f"server certificate until {facts.not_after:%Y-%m-%d} for {', '.join(facts.names)}")


@server_app.command()
def rotate(
    home: Home,
    *,
    finish: Annotated[bool, typer.Option("--finish", help="Switch to the new key and drop the old one.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Change the coordinator's own key: first a bundle signed by both keys; with --finish, once all have joined it."""
    from server.rotation import begin
    from server.rotation import finish as switch

    told = _passphrase(passphrase_file)
    _print_bundle(home, switch(home, told) if finish else begin(home, told))


def _passphrase(file: Path | None) -> Passphrase | None:
    from shared.hazmat.key_files import Passphrase

    return None if file is None else Passphrase.read(file)


def _config(file: Path | None, partners: int, population: int) -> RunConfig:
    from shared.config import load_config, parse_config
    from shared.errors import ConfigError

    if file is not None:
        return load_config(file)
    if population == 0:
        raise ConfigError("Expected --config FILE, or --population: the declared users of all partners together.")
    told = f'"federation": {{"partners": {partners}}}, "privacy": {{"population": {population}}}'
    return parse_config(f'{{"simulation": false, "seed": null, {told}}}')


def _print_bundle(home: Path, bundle: Bundle) -> None:
    told = bundle.federation
    typer.echo(f"bundle {bundle.folder}: serial {told.serial}, {', '.join(told.roster) or 'no partners'}")
    if len(told.partners) != told.config.federation.partners:
        typer.echo(f"note: {len(told.partners)} of the configured {told.config.federation.partners} partners")
    typer.echo(f"give it to every partner, and the same digits by telephone:  {bundle.fingerprint}")
