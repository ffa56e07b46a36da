"""A coordinator with valid TLS that submits its own app bundle reads no row and no key, and lowers no floor.

Everything is real: SuperLink, gate, TLS, node authentication, and agent and node as two users of the operating
system. The bundle's ClientApp takes all that it can (`plunder`); its ServerApp sends what the test writes. Each
detector is shown to fire: the same code, run where a partner has separated nothing, brings a row home.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from hostile_setting import CARELESS, CONFIG, PADDING, SECRET, VICTIM, Hostile, given, soon
from open_python import python_for_all, two_users
from plunder import SHUT

from client.agent_service import LARGEST_MESSAGE
from client.agent_socket import MESSAGES, METRICS, STATUS, ask
from shared.enrolment import installed_version
from shared.hazmat.signing import SigningKey
from shared.wire_frames import from_frame, pack_error, to_frame

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: agent and node have to be two users"),
]
JUNK = to_frame(pack_error("Anything"))
MIB = 2**20
WAYS = 24
"""That `plunder` tries where an agent runs."""
PLUNDER = Path(__file__).with_name("plunder.py")
KNOCK = """
import json, sys
from pathlib import Path
from client.agent_socket import MESSAGES, METRICS, STATUS, ask
sock, metrics, status = Path(sys.argv[1]), METRICS, STATUS
told = {path: ask(sock, "GET", path) for path in (METRICS, STATUS)}
for frame in sys.argv[2:]:
    told[frame[-24:]] = ask(sock, "POST", MESSAGES, bytes.fromhex(frame))
print(json.dumps({name: (code, body.hex()) for name, (code, body) in told.items()}))
"""
"""What a process of the node's user can do at the agent's socket."""
FLOOD = """
import socket, sys
from contextlib import suppress
held, piece = [], b"%x\\r\\n" % 2**20 + bytes(2**20) + b"\\r\\n"
for _ in range(int(sys.argv[3])):
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(0.5)
    made.connect(sys.argv[1])
    made.sendall(b"POST /v1/messages HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
    with suppress(OSError):
        for _ in range(int(sys.argv[2]) // 2**20):
            made.sendall(piece)
    held.append(made)
print("sent")
"""
"""Messages that do not end, all at once."""
TOO_LARGE = """
import sys
from pathlib import Path
from client.agent_socket import MESSAGES, ask
print(ask(Path(sys.argv[1]), "POST", MESSAGES, bytes(int(sys.argv[2])))[0])
"""


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    """The victim, and a coordinator that turned hostile after everybody joined; the other partners are away."""
    with ExitStack() as ended:
        users = ended.enter_context(two_users())
        root = Path(ended.enter_context(tempfile.TemporaryDirectory(prefix="vr")))  # short: a socket's path is
        root.chmod(0o711)
        items, events = given(root)
        deployment = Hostile.prepare(root, items, events, CONFIG, users=users, python=python_for_all(root))
        assert isinstance(deployment, Hostile)
        deployment.bundle = deployment.turn_hostile()
        ended.callback(deployment.stop)
        deployment.start("server", VICTIM)
        soon((deployment.victim / "operator.sock").exists, 40, "an agent")
        code, answer = ask(deployment.victim / "agent.sock", "POST", MESSAGES, deployment.signed())
        assert (code, "error" in from_frame(answer)) == (200, False)  # an honest round is answered
        yield deployment


def refusals(answers: list[dict[str, Any]]) -> list[str]:
    """The families of answers that are refusals and nothing else, byte for byte."""
    return [family_of(base64.b64decode(answer["frame"])) for answer in answers]


def family_of(frame: bytes) -> str:
    told = from_frame(frame)
    family = str(dict(told["error"])["family"])
    assert frame == to_frame(pack_error(family))
    return family


def nothing_ran(hostile: Hostile) -> None:
    """No code of the bundle ran here, and nothing of it came to the partner."""
    assert list(hostile.marks.iterdir()) == []
    assert 0 < hostile.received(VICTIM) < PADDING / 4
    files = [path for path in hostile.victim.rglob("*") if path.is_file()]
    assert files and not any(b"veilrec_app" in path.read_bytes() for path in files)
    assert len(hostile.nodes()) == 1 and not hostile.pids("flwr-clientapp")


def hostile_plans(hostile: Hostile) -> dict[str, tuple[bytes, str]]:
    """First messages of rounds that nobody may be asked for, and the family of the refusal."""
    signed, consistent = hostile.signed, hostile.consistent
    policy = "PolicyViolationError"
    return {
        "no message": (JUNK, "ProtocolError"),
        "by another key": (signed(key=SigningKey.generate()), "InvalidSignatureError"),
        "mode none": (consistent({"simulation": True, "seed": 0, "privacy.mode": "none"}), policy),
        "mode none of real data": (signed({"config.privacy.mode": "none"}), "ProtocolError"),
        "epsilon above the floor": (consistent({"privacy.noise_multiplier": 0.2}), policy),
        "quorum below the cohort": (consistent({"federation.quorum": 2}), policy),
        "population 0": (signed({"config.privacy.population": 0}), "ProtocolError"),
        "population 0 in the plan": (signed({"plan.population": 0}), policy),
        "less noise than the plan's": (signed({"plan.noise_multiplier": 0.1}), policy),
        "no masks": (signed({"config.federation.secure_sum": False}), "ProtocolError"),
        "no masks in the plan": (signed({"plan.masked": False}), policy),
        "a round too many": (signed({"round": 4, "stage": "train"}), policy),
        "a path for a name": (signed({"run_id": "../../node/spool"}), "ProtocolError"),
    }


def test_a_bundle_that_nobody_agreed_to_is_neither_fetched_nor_run(hostile: Hostile) -> None:
    before = hostile.spent()
    (answers,) = hostile.ask(JUNK, hostile.signed())
    assert refusals(answers) == ["PolicyViolationError"] * 2
    nothing_ran(hostile)
    assert hostile.spent() == before


def test_a_bundle_that_was_agreed_to_is_not_run_either_and_lowers_no_floor(hostile: Hostile) -> None:
    hostile.pin(hostile.bundle)
    before, plans = hostile.spent(), hostile_plans(hostile)
    (answers,) = hostile.ask(*(frame for frame, _ in plans.values()))
    assert dict(zip(plans, refusals(answers), strict=True)) == {name: family for name, (_, family) in plans.items()}
    nothing_ran(hostile)
    assert hostile.spent() == before


def test_code_of_the_nodes_user_finds_everything_shut(hostile: Hostile) -> None:
    """As in the worst case: the node itself was taken over."""
    assert hostile.users is not None
    before = hostile.spent()
    loot = json.loads(hostile.as_user(hostile.users[1], "-c", PLUNDER.read_text(), str(hostile.victim)))
    assert {name: what for name, what in loot.items() if what != SHUT} == {}
    assert len(loot) == WAYS
    assert hostile.spent() == before


def test_code_of_the_nodes_user_is_told_nothing_at_the_socket(hostile: Hostile) -> None:
    assert hostile.users is not None
    before, plans = hostile.spent(), hostile_plans(hostile)
    frames = [frame.hex() for frame, _ in plans.values()]
    told = json.loads(hostile.as_user(hostile.users[1], "-c", KNOCK, str(hostile.victim / "agent.sock"), *frames))
    answers = {name: (code, bytes.fromhex(body)) for name, (code, body) in told.items()}
    assert answers.pop(METRICS)[0] == 403
    code, status = answers.pop(STATUS)
    assert code == 200
    assert json.loads(status) == {"partner": VICTIM, "version": installed_version(), "state": "running"}
    assert [family_of(body) for _, body in answers.values()] == [family for _, family in plans.values()]
    assert hostile.spent() == before


def test_messages_that_do_not_end_do_not_fill_the_agents_memory(hostile: Hostile) -> None:
    """Ten of 60 MiB at once; then one that is larger than any may be."""
    assert hostile.users is not None
    address, before = str(hostile.victim / "agent.sock"), memory_of(hostile.agent())
    code = hostile.as_user(hostile.users[1], "-c", FLOOD, address, str(60 * MIB), "10")
    assert code == "sent\n"
    assert memory_of(hostile.agent()) - before < 200 * MIB
    code = hostile.as_user(hostile.users[1], "-c", TOO_LARGE, address, str(LARGEST_MESSAGE + MIB))
    assert code == "413\n"
    assert memory_of(hostile.agent()) - before < 2 * LARGEST_MESSAGE


def memory_of(pid: int) -> int:
    """The most that a process has had in memory, in bytes."""
    told = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(told.partition("VmHWM:")[2].split()[0])


def steal(hostile: Hostile) -> bytes:
    """What tells the hostile ClientApp whom to plunder."""
    told = ConfigRecord({"folder": str(hostile.victim), "marks": str(hostile.marks)})
    return to_frame(RecordDict({"steal": told}))


def loot_of(answers: list[list[dict[str, Any]]]) -> dict[str, str]:
    """What came back from the one node that ran the bundle."""
    contents = [from_frame(base64.b64decode(each["frame"])) for (each,) in answers]
    (loot,) = (dict(content["loot"])["json"] for content in contents if "loot" in content)
    told: dict[str, str] = json.loads(str(loot))
    return told


def test_a_node_that_runs_the_bundle_finds_everything_shut(hostile: Hostile) -> None:
    """Flower's own SuperNode as the node's user: here the hostile code does run, and has nothing to send."""
    assert hostile.users is not None
    with hostile.stock_node(hostile.users[1]):
        loot = loot_of(hostile.ask(steal(hostile), nodes=2))
    assert len(list(hostile.marks.iterdir())) == 1 and hostile.received(CARELESS) > PADDING
    assert loot == dict.fromkeys(loot, SHUT) and len(loot) == WAYS


def test_where_nothing_is_separated_the_same_bundle_brings_a_row_home(hostile: Hostile) -> None:
    """The weakness, planted: a SuperNode as the agent's own user."""
    assert hostile.users is not None
    with hostile.stock_node(hostile.users[0]):
        loot = loot_of(hostile.ask(steal(hostile), nodes=2))
    assert SECRET in loot["rows"]
    assert [name for name, what in loot.items() if what == SHUT] == []
    assert len(loot) == WAYS


def test_data_that_all_may_read_are_read(hostile: Hostile) -> None:
    """The weakness, planted: a file with the wrong mode."""
    assert hostile.users is not None
    data = hostile.victim / "data"
    for path, mode in ((data, 0o755), (data / "interactions.parquet", 0o644)):
        path.chmod(mode)
    loot = json.loads(hostile.as_user(hostile.users[1], "-c", PLUNDER.read_text(), str(hostile.victim)))
    for path, mode in ((data, 0o700), (data / "interactions.parquet", 0o600)):
        path.chmod(mode)
    assert SECRET in loot["rows"]
    assert [name for name, what in loot.items() if what != SHUT] == ["rows"]
