"""A federation on disk: everybody's keys are pinned at everybody, and what was paid stays where it was paid."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from client.agent import agent_for
from client.app import partner_folder
from client.data.ingest import RawData
from client.premises import IDENTITY_FILE, LEDGER_FILE, Premises
from server.admission import SERVER_KEY_FILE, Admission
from shared.config import ModelConfig
from shared.errors import ConfigError, DataError
from shared.hazmat.signing import SigningKey
from simulations.marketplace import MarketplaceConfig, generate
from simulations.partition import partition
from simulations.spending import export_ledgers, spent, told
from simulations.workspace import HELD_OUT, Workspace, prepare

PARTNERS = 3


def shop(users: int = 24) -> RawData:
    interactions, items = generate(MarketplaceConfig(users=users, items=136, partners=PARTNERS, seed=1))
    return RawData("shop", interactions.drop("partner"), items)


def prepared(root: Path, partners: int = PARTNERS) -> Workspace:
    data = shop()
    spread = partition(data.interactions, data.items, partners=partners, method="iid", seed=0)
    return prepare(data, spread, root, seed=0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace") / "partners"
    prepared(root)
    return root


@pytest.fixture
def workspace(original: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    shutil.copytree(original, tmp_path / "partners")
    agent_for.cache_clear()
    return Workspace.open(tmp_path / "partners")


def premises(workspace: Workspace) -> list[Premises]:
    return [Premises.open(partner_folder(workspace.root, k)) for k in range(workspace.partners)]


# --- who is who -----------------------------------------------------------------------------------


def test_everybody_has_a_key_of_their_own_pinned_at_everybody(workspace: Workspace) -> None:
    admission, partners = Admission.open(workspace.root), premises(workspace)
    assert [one.name for one in partners] == ["partner-000", "partner-001", "partner-002"]
    keys = {one.name: one.identity.public for one in partners}
    assert len({admission.key.public, *keys.values()}) == PARTNERS + 1
    assert dict(admission.identities) == keys
    for one in partners:
        assert one.simulated
        assert dict(one.peers) == keys
        assert one.policy.server_key == admission.key.public


def test_nobody_else_may_read_a_key(workspace: Workspace) -> None:
    for file in (workspace.root / SERVER_KEY_FILE, *workspace.root.glob(f"partner-*/{IDENTITY_FILE}")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_preparing_again_keeps_keys_and_ledgers(workspace: Workspace) -> None:
    """The data may have changed; whose they are, and what was spent on them, has not."""
    before = {one.name: one.identity.public for one in premises(workspace)}
    server = Admission.open(workspace.root).key.public
    ledger = agent_for(partner_folder(workspace.root, 0)).ledger.path
    paid = ledger.read_bytes()
    again = prepared(workspace.root)
    assert {one.name: one.identity.public for one in premises(again)} == before
    assert Admission.open(workspace.root).key.public == server
    assert ledger.read_bytes() == paid


def test_partners_of_a_larger_federation_would_take_part_and_are_not_left(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="holds more than 2 partners"):
        prepared(workspace.root, partners=2)


def test_a_federation_without_partners_or_held_out_events_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected a prepared federation"):
        Workspace.open(tmp_path / "none")
    (workspace.root / HELD_OUT).unlink()
    with pytest.raises(DataError, match="Expected a prepared federation"):
        Workspace.open(workspace.root)


def test_a_partner_holds_what_is_its_own(workspace: Workspace) -> None:
    users = [set(histories.users) for histories in workspace.histories(ModelConfig())]
    assert sum(map(len, users)) == len(set.union(*users)) == 24
    targets = workspace.targets(0, ModelConfig())
    assert len(targets) == len(users[0]) and (targets >= 0).any()


# --- a partner alone ------------------------------------------------------------------------------


def test_a_partner_alone_has_keys_and_a_ledger_of_its_own_over_the_same_data(
    workspace: Workspace, tmp_path: Path
) -> None:
    together = workspace.learner(1)
    paid = agent_for(partner_folder(workspace.root, 1)).ledger.path
    before = {file: file.read_bytes() for file in workspace.root.rglob("*") if file.is_file()}
    root = workspace.alone(1, tmp_path / "alone")
    agent = agent_for(partner_folder(root, 1))
    assert dict(agent.premises.peers) == dict(Admission.open(root).identities)
    assert set(agent.premises.peers) == {"partner-001"}
    assert agent.premises.identity.public != together.premises.identity.public
    assert agent.ledger.path != paid and agent.ledger.path.name == LEDGER_FILE
    assert agent.learner.histories(ModelConfig()).users == together.histories(ModelConfig()).users
    assert {file: file.read_bytes() for file in workspace.root.rglob("*") if file.is_file()} == before


# --- what was spent -------------------------------------------------------------------------------


def test_nothing_is_spent_before_the_first_run(workspace: Workspace, tmp_path: Path) -> None:
    total = spent(workspace)
    assert (total.epsilon, total.delta, total.plans) == (0, 0, 0)
    assert told(total) == ""
    export_ledgers(workspace, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lost_identity_is_not_replaced_in_silence(workspace: Workspace) -> None:
    (partner_folder(workspace.root, 0) / IDENTITY_FILE).unlink()
    with pytest.raises(ConfigError):
        _ = premises(workspace)[0].identity
    SigningKey.load_or_create(partner_folder(workspace.root, 0) / IDENTITY_FILE)
    with pytest.raises(ConfigError, match="pins as peers"):
        _ = premises(workspace)[0].identity
