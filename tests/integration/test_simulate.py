"""A whole simulation: the same result every time and from files in any order; and nothing but a family's name when
a partner fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from run_setting import (
    ROUNDS,
    SECRET,
    Killed,
    files,
    killed_after,
    round_of,
    rounds,
    same_run,
)

from client.agent import PartnerAgent
from client.data.ingest import RawData, write
from shared.config import FederationConfig, PrivacyConfig, RunConfig
from shared.errors import CheckpointError, ConfigError, DataError, ProtocolError
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import sensitivity
from shared.privacy.ledger_audit import read_ledger
from shared.requests import Answer, KeysRequest, OpenRequest, Request, SumRequest
from simulations.results import evaluate_on
from simulations.simulate import REQUEST_FILE, alone_config, resume, run
from simulations.workspace import HELD_OUT, Workspace

if TYPE_CHECKING:
    from conftest import Done, Start


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_contract_names(whole: Done) -> None:
    for name in ("run.json", "rounds.jsonl", "report.html", "adapter", "checkpoints", "tensorboard"):
        assert (whole.out / name).exists(), name
    assert json.loads((whole.out / "run.json").read_text()) == whole.document
    assert tuple(record["round"] for record in rounds(whole.out)) == ROUNDS
    document = whole.document
    assert set(document["metrics"]) >= {"federated", "frozen_bert", "popularity", "item_knn", "ease", "cold_items"}
    assert {"ndcg@10", "hr@10", "mrr", "coverage@10"} <= set(document["metrics"]["federated"])
    assert document["data"]["partners"] == 3 and document["data"]["items"] == 136
    assert 0 < document["privacy"]["prior_epsilon"] < document["privacy"]["epsilon"] <= 8.0
    assert (document["privacy"]["masked"], document["privacy"]["randomness"]) == (True, "seeded")
    assert "mask" in (whole.out / "report.html").read_text()


def test_epsilon_grows_from_the_prior_s_to_the_whole(whole: Done) -> None:
    spent = [record["epsilon"] for record in rounds(whole.out)]
    assert spent == sorted(spent)
    assert spent[0] == whole.document["privacy"]["prior_epsilon"]
    assert spent[-1] == whole.document["privacy"]["epsilon"]


def test_no_file_of_a_run_holds_a_user_or_a_review(whole: Done, shop_data: RawData) -> None:
    """Only the partners' own folders do, and what evaluation holds back; neither do their ledgers."""
    reviews = shop_data.interactions.get_column("review").unique().to_list()
    private = [text.encode() for text in (*shop_data.interactions.get_column("user_id").unique(), *reviews) if text]
    assert len(private) > 100
    own = {"partner-000", "partner-001", "partner-002", HELD_OUT}
    told = [
        file for file in whole.out.rglob("*") if file.is_file() and not own & set(file.relative_to(whole.out).parts)
    ]
    ledgers = list(whole.out.rglob("ledger.jsonl"))
    assert {"run.json", "receipts.json", "server.key", "items.parquet"} <= {file.name for file in told}
    assert len(ledgers) == 3
    for file in (*told, *ledgers):
        data = file.read_bytes()
        assert not any(text in data for text in private), file.name


def test_the_same_seed_gives_the_same_run_even_without_a_cache(
    begin: Start, whole: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEILREC_HOME", str(tmp_path / "home"))
    out = tmp_path / "run"
    same_run(out, run(begin(out), show=False), whole)


def test_another_seed_gives_another_adapter(begin: Start, whole: Done, tmp_path: Path) -> None:
    document = run(begin(tmp_path / "run", seed=1), show=False)
    assert document["model"]["adapter_fingerprint"] != whole.document["model"]["adapter_fingerprint"]
    assert document["metrics"]["federated"] != whole.document["metrics"]["federated"]


def test_the_order_of_the_rows_of_the_files_changes_nothing(
    begin: Start, whole: Done, shop_data: RawData, tmp_path: Path
) -> None:
    interactions = shop_data.interactions
    tied = int(interactions.select("user_id", "timestamp").is_duplicated().sum())
    assert tied > interactions.height / 2  # otherwise this shows nothing
    shuffled = RawData(
        "shop",
        interactions.sample(fraction=1.0, shuffle=True, seed=11),
        shop_data.items.sample(fraction=1.0, shuffle=True, seed=12),
    )
    write(shuffled, tmp_path / "shop")
    out = tmp_path / "run"
    same_run(out, run(begin(out, data=tmp_path / "shop"), show=False), whole)


# --- what cannot be begun or resumed --------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_not_begun_again(begin: Start, whole: Done) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        begin(whole.out)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"name": "shop"}', '{"name": "shop", "rounds": 3}'])
def test_what_is_no_simulation_cannot_be_resumed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / REQUEST_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="Expected a simulation to resume"):
        resume(tmp_path)


def test_a_run_whose_settings_were_changed_is_not_resumed(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More noise or less from the middle on would be a run that no plan describes."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            run(begin(out, privacy={"mode": "none"}), show=False)
    request = json.loads((out / REQUEST_FILE).read_text())
    request["settings"]["privacy"]["clip_norm"] = 0.1
    (out / REQUEST_FILE).write_text(json.dumps(request))
    with pytest.raises(CheckpointError, match="Expected run_id"):
        run(resume(out), show=False)


def test_a_workspace_that_is_not_whole_is_refused(begin: Start, tmp_path: Path) -> None:
    simulation = begin(tmp_path / "run")
    (simulation.workspace.root / "held_out.parquet").unlink()
    with pytest.raises(DataError, match="Expected a prepared federation"):
        Workspace.open(simulation.workspace.root)
    with pytest.raises(DataError, match="Expected a prepared federation"):
        Workspace.open(tmp_path / "none")


# --- a partner that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [KeysRequest, SumRequest, OpenRequest])
def test_a_partner_that_fails_ends_the_run_with_a_family_s_name_and_nothing_is_released(
    begin: Start, whole: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: type[Request]
) -> None:
    out, answer = tmp_path / "run", PartnerAgent.answer

    def fail(self: PartnerAgent, request: Request) -> Answer:
        if isinstance(request, exchange) and self.premises.name == "partner-001" and round_of(self, request) == 3:
            raise RuntimeError(SECRET)
        return answer(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(PartnerAgent, "answer", fail)
        with pytest.raises(ProtocolError) as caught:
            run(begin(out), show=False)
    assert str(caught.value) == "Expected answers >= 3, partners refused with VeilrecError."
    assert SECRET not in repr((caught.value.__cause__, caught.value.__context__))
    assert not (out / "adapter").exists() and not (out / "run.json").exists()
    assert all(SECRET.encode() not in file.read_bytes() for file in out.rglob("*") if file.is_file())
    # What was spent until then stays on record, and the run can go on from there.
    assert rounds(out) == rounds(whole.out)[:2]
    same_run(out, run(resume(out), show=False), whole)


def test_a_quorum_goes_on_without_a_partner_that_fails_for_a_round(
    begin: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answer = tmp_path / "run", PartnerAgent.answer

    def fail(self: PartnerAgent, request: Request) -> Answer:
        if isinstance(request, SumRequest) and self.premises.name == "partner-001" and round_of(self, request) == 2:
            raise RuntimeError(SECRET)
        return answer(self, request)

    monkeypatch.setattr(PartnerAgent, "answer", fail)
    document = run(begin(out, federation={"quorum": 2}), show=False)
    assert [record["cohort"] for record in rounds(out)] == [3, 2, 3, 3]
    ledgers = [read_ledger(file).runs[0] for file in sorted((out / "ledgers").iterdir())]
    assert [(paid.reserved, paid.released, paid.opened) for paid in ledgers] == [(4, 4, 4), (3, 3, 3), (4, 4, 4)]
    # A plan counts whole, at whichever partner.
    assert {paid.epsilon for paid in ledgers} == {document["privacy"]["epsilon"]}


# --- baselines of a run ---------------------------------------------------------------------------


def test_every_partner_can_be_trained_alone(begin: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    one_round = {"rounds": 1, "sampling_rate": 0.5}
    document = run(begin(out, local_only=True, privacy={"mode": "none"}, training=one_round), show=False)
    alone, together = document["metrics"]["local_only"], document["metrics"]["federated"]
    assert alone["users"] == together["users"]
    assert alone["ndcg@10"] != together["ndcg@10"]
    adapters = [files(out / "local" / f"partner-{k:03d}" / "adapter")["behaviour.safetensors"] for k in range(3)]
    assert len(set(adapters)) == 3


def test_a_partner_alone_declares_its_part_of_the_people_and_adds_all_the_noise() -> None:
    config = RunConfig(
        privacy=PrivacyConfig(population=90, partners_per_user=2, noise_multiplier=1.0, colluders=1),
        federation=FederationConfig(partners=4, quorum=3),
    )
    alone = alone_config(config, 4, items=300)
    assert (alone.privacy.population, alone.privacy.partners_per_user) == (22, 1)
    assert alone.federation.survivors == 1
    RunConfig.model_validate(alone.model_dump())
    plan = build_plan(alone)
    assert not plan.masked  # a sum of one is no secret
    billed = plan.noise_multiplier * sensitivity(plan.scale("train"), 10, 1)
    assert plan.share_variance("train", 10) == pytest.approx(billed**2)


def test_an_adapter_measured_on_the_data_at_one_place_is_worth_the_same(whole: Done, shop: Path) -> None:
    found = evaluate_on(whole.out, str(shop))
    assert found["privacy"]["epsilon"] == whole.document["privacy"]["epsilon"]
    told = whole.document["metrics"]
    segments, there = found["metrics"].pop("segments"), told["segments"]
    for method, metrics in found["metrics"].items():
        assert metrics == pytest.approx(told[method], abs=1e-6), method
    assert segments.keys() == there.keys() == {"long_tail", "few_events"}  # no category holds enough of 136 items
    for name, methods in segments.items():
        for method, metrics in methods.items():
            assert metrics == pytest.approx(there[name][method], abs=1e-6), (name, method)


def test_an_adapter_is_measured_on_what_its_run_held_out_whatever_its_seed(
    begin: Start, shop: Path, tmp_path: Path
) -> None:
    """Most events of the shop are tied: in the order of another seed the last item is one that was trained on."""
    out = tmp_path / "run"
    told = run(begin(out, seed=1, privacy={"mode": "none"}, training={"rounds": 0}), show=False)["metrics"]
    found = evaluate_on(out, str(shop))["metrics"]
    for method in ("federated", "ease", "popularity"):
        assert found[method] == pytest.approx(told[method], abs=1e-6), method


def test_a_run_of_the_prior_alone_is_a_run(begin: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    document = run(begin(out, privacy={"mode": "none"}, training={"rounds": 0}), show=False)
    assert [record["stage"] for record in rounds(out)] == ["prior"]
    assert document["metrics"]["prior_only"]["ndcg@10"] > 0


def test_the_shop_has_doubles_and_ties(shop_data: RawData) -> None:
    """What the tests of order need."""
    assert shop_data.items.get_column("item_id").is_duplicated().any()
    assert shop_data.interactions.select("user_id", "item_id", "timestamp", "event").is_duplicated().any()
    assert pl.Series(shop_data.interactions.get_column("timestamp") % 86_400).max() == 0
