"""``veilrec serve``."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.service.service import Service


def serve(
    data: Annotated[str, typer.Option(help="The shop's own data: an imported set, a folder or a file.")],
    run: Annotated[Path | None, typer.Option(help="Run folder with an adapter; no signature is asked for.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Folder of signed releases, watched.")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="The coordinator's public key, or a file with it; may be repeated.")
    ] = None,
    catalogue: Annotated[
        str | None, typer.Option(help="Data with the federation's items, where the shop's own differ.")
    ] = None,
    premises: Annotated[
        Path | None, typer.Option(help="The partner's, whose personal part of a release is added (partner value).")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the service's own; by default in VEILREC_HOME.")] = None,
    database: Annotated[str | None, typer.Option(help="postgresql://... instead of SQLite in the folder.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of bearer tokens, one a line, mode 0600.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of one token; 0: no limit.")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    gate: Annotated[
        bool, typer.Option(help="Hold a release of --releases back that leaps an item into too many users' lists.")
    ] = True,
) -> None:
    """Local ranking over HTTP, with its web page."""
    from client.service.guard import check_exposure, read_tokens
    from shared.errors import ConfigError

    if (run is None) == (releases is None):
        raise ConfigError("Expected one of --run and --releases.")
    if releases is not None and not trust:
        raise ConfigError("Expected --trust KEY beside --releases: whose signature counts.")
    known = read_tokens(tokens) if tokens is not None else frozenset()
    check_exposure(host, known)
    service = open_service(data, run, releases, trust or (), catalogue, premises, state, database, device, gate=gate)
    listen(service, host, port, known, rate)


def open_service(
    data: str,
    run: Path | None,
    releases: Path | None,
    trust: Sequence[str],
    catalogue: str | None,
    premises: Path | None,
    state: Path | None,
    database: str | None,
    device: str,
    *,
    gate: bool = True,
) -> Service:
    """The service that the options describe; the shop's interactions are in its store."""
    from client.data.cleaning import clean
    from client.data.ingest import data_home
    from client.data.pseudonyms import PseudonymKey
    from client.ranking.held_releases import held_of
    from client.ranking.promotion_gate import PromotionGate
    from client.ranking.rank import data_of
    from client.ranking.release_memory import memory_of
    from client.ranking.releases import ReleaseShelf
    from client.ranking.store import EventStore
    from client.service.monitor import Monitor
    from client.service.service import Service, Source
    from client.service.stand import StandMaker
    from shared.catalogue import build_catalogue
    from shared.release_signature import read_trust

    home = data_home().parent
    folder = state or home / "serve"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cleaned = clean(data_of(run or Path(), data))[0]
    ours = build_catalogue(cleaned.items)
    theirs = build_catalogue(clean(data_of(run or Path(), catalogue))[0].items) if catalogue else ours
    if run is not None:
        source = Source(adapter=run / "adapter")
    elif releases is not None:
        source = Source(shelf=ReleaseShelf(releases, read_trust(trust), memory_of(state)))
    else:
        raise AssertionError("checked before")
    key = PseudonymKey.load_or_create(folder / "pseudonyms.key")
    store = EventStore.open(database or f"sqlite:///{folder / 'events.sqlite'}", key)
    store.import_histories(cleaned.interactions)
    maker = StandMaker(theirs, ours, folder, home / "cache" / "text-vectors.sqlite", device, premises)
    return Service(maker, source, store, Monitor(), gate=PromotionGate(held_of(state)) if gate else None)


def quiet() -> None:
    """Take tracebacks out of what the server logs of itself: they quote what was asked. The monitor tells the type."""
    for name in ("uvicorn.error", "asyncio"):
        log = logging.getLogger(name)
        if _bare not in log.filters:
            log.addFilter(_bare)


def _bare(record: logging.LogRecord) -> bool:
    record.exc_info = record.exc_text = None
    return True


def listen(service: Service, host: str, port: int, tokens: frozenset[bytes], rate: float) -> None:
    """Answer until the process is told to end; requests that have begun are finished."""
    import uvicorn

    from client.service.app import create_app
    from client.service.guard import OWN_NAMES

    app = create_app(service, tokens=tokens, rate=rate, hosts=() if tokens else OWN_NAMES)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever asks would choose the address that limits count by
        ws="none",
        timeout_graceful_shutdown=30,
    )
    quiet()
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    socket.listen(config.backlog)  # before it is told: who reads the line may ask at once
    service.monitor.tell("listening", port=socket.getsockname()[1], pid=os.getpid())
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more when it has finished
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[socket])
    finally:
        service.close()
