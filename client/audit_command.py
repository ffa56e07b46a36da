"""``veilrec partner audit-canaries``: a plain function, which the command line registers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def audit_canaries(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `veilrec ledger show` prints it.")],
    *,
    out: Annotated[Path | None, typer.Option(help="A new file for it; else it is printed.")] = None,
) -> None:
    """Tell an auditor the seed of a run's audit canaries, as JSON; only after the run's last round."""
    import json
    from dataclasses import asdict

    from client.audit_canaries import reveal
    from client.premises import Premises
    from shared.errors import ConfigError
    from shared.files import write_json

    told = asdict(reveal(Premises.open(folder), run))
    if out is None:
        typer.echo(json.dumps(told))
        return
    if out.exists():
        raise ConfigError(f"{out}: Expected a new file, there is one.")
    write_json(out, told)
    typer.echo(f"{out}: give it to the auditor, with a copy of the ledger")
