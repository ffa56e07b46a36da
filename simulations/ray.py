"""Flower's simulation engine on Ray: many client processes, one machine or a cluster."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from server.app import run_federation
from server.strategy import Observer
from shared.config import RunConfig
from shared.errors import ConfigError
from simulations.workspace import Workspace

CONNECT_S = 5.0


def run_on_ray(config: RunConfig, workspace: Workspace, out: Path, observer: Observer, *, address: str = "") -> None:
    """Run the rounds on Ray; the same server and client code as in-process.

    Parameters
    ----------
    address : str
        Of a running cluster, as host:port; empty starts Ray on this machine. Its machines see the partners' folders
        under the same paths, and have Veilrec installed.

    Raises
    ------
    ConfigError
        If Ray is not installed, or nothing answers at `address`.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("engine=ray: Ray is not installed. Expected pip install 'veilrec[ray]'.") from None
    from flwr.simulation import run_simulation

    check_address(address)
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its round log would tear the progress bar
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        run_federation(grid, config, workspace.catalogue, out, workspace.root, observer)

    # "local": without it Ray would look for a cluster that it remembers, and wait for one that is gone.
    init: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    run_simulation(
        server_app=server_app,
        client_app=_client_app(workspace.root.resolve()),
        num_supernodes=workspace.partners,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": init},
    )


def check_address(address: str) -> None:
    """Refuse a host and port where nothing listens: Ray itself would try for minutes, and end in a traceback.

    Raises
    ------
    ConfigError
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # empty, or one of Ray's own words, such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError):
        raise ConfigError(f"ray-address: Expected host:port of a running Ray cluster, got {address}.") from None


def _client_app(root: Path) -> ClientApp:
    """The real client app, told where the simulated partners' folders are: Ray nodes have no settings of their own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from client.app import app as real

        # Flower refuses a context whose run_config was changed: the real app gets one of its own.
        told = {**context.run_config, "data-root": str(root)}
        own = Context(context.run_id, context.node_id, context.node_config, context.state, told)
        return real(message, own)

    return app
