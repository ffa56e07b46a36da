"""The SuperLink's list of nodes, kept in step with ``partners.json`` over Flower's control API.

The control API has no authentication of its own (flwr 1.41): it is bound to loopback, and the gate lets nothing of it
through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import tomli_w

from server.partners import Registry
from shared.errors import ProtocolError
from shared.files import write_bytes
from shared.hazmat.node_keys import superlink_form

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

CONNECTION = "veilrec"
_GONE = "unregistered"


@dataclass(frozen=True, slots=True)
class Synced:
    """What `sync_nodes` found and did.

    Attributes
    ----------
    nodes : dict
        Flower's id of every node that may connect now, and the partner's name.
    registered, unregistered : tuple of int
        The ids that changed.
    """

    nodes: dict[int, str]
    registered: tuple[int, ...]
    unregistered: tuple[int, ...]


def sync_nodes(home: Path, superlink_address: str) -> Synced:
    """Register the nodes of all active partners and unregister every other; a second time changes nothing.

    Parameters
    ----------
    home : Path
        The coordinator's.
    superlink_address : str
        ``HOST:PORT`` on loopback.

    Raises
    ------
    ProtocolError
        If the SuperLink cannot be reached or refuses, or a partner's node key cannot be registered.
    """
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

    active = Registry.open(home).active
    wanted = {superlink_form(key): record.name for record in active for key in record.request.nodes}
    with control(home, superlink_address) as client:
        listed = client.ListNodes(ListNodesRequest()).nodes_info
        there = {node.public_key: node.node_id for node in listed if node.status != _GONE}
        gone = [node for key, node in there.items() if key not in wanted]
        for node in gone:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        nodes = {there[key]: name for key, name in wanted.items() if key in there}
        fresh = {
            client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id: name
            for key, name in wanted.items()
            if key not in there
        }
    if 0 in fresh:
        raise ProtocolError(f"Expected the SuperLink to register the node of {fresh[0]}, got none.")
    return Synced(nodes | fresh, tuple(fresh), tuple(gone))


def write_flower_home(home: Path, superlink_address: str) -> Path:
    """Flower's own configuration for `flwr` commands (``FLWR_HOME``): the connection ``veilrec``, and no other."""
    folder = home / "superlink" / "flwr-home"
    connection = {"address": superlink_address, "root-certificates": str((home / "ca.crt").resolve())}
    told = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    write_bytes(folder / "config.toml", tomli_w.dumps(told).encode())
    return folder


@contextmanager
def control(home: Path, address: str) -> Iterator[ControlHttpClient]:
    """Flower's control API of the SuperLink on this machine.

    Raises
    ------
    ProtocolError
        If it does not answer, or refuses.
    """
    from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    interceptors: list[Any] = [CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="veilrec")]
    authority = (home / "ca.crt").read_bytes()
    client = ControlHttpClient.from_server_address(address, False, authority, interceptors)
    try:
        yield client
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise ProtocolError(f"Expected the SuperLink at {address} to answer, got HTTP {code}.") from None
    except (httpx.HTTPError, OSError) as error:
        raise ProtocolError(f"Expected a SuperLink at {address}, got {type(error).__name__}.") from None
    finally:
        client.close()
