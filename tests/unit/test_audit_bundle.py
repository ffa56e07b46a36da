"""The evidence bundle: what goes in, what never does, and what a verifier says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from evidence_setting import BUNDLER, SETTINGS, Fails, Made, audited, federated, made
from typer.testing import CliRunner

from client.data.ingest import RawData, write
from shared.config import RunConfig
from shared.errors import ConfigError, IntegrityError, InvalidSignatureError, LedgerError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.requests import ConsentRequest, SumRequest
from shared.requests import Request as Message
from simulations import simulate
from simulations.audit.bundle import independent
from simulations.audit.bundle.collect import collect, load_audit, make_bundle
from simulations.audit.bundle.commands import verify
from simulations.audit.bundle.evidence import read_pins
from simulations.audit.bundle.seal import unseal
from simulations.audit.bundle.verify import BundleReport, verify_bundle
from simulations.marketplace import MarketplaceConfig, generate
from simulations.simulate import Request

SECRET = b"user 17 hates her neighbour"


@pytest.fixture(scope="module", autouse=True)
def run() -> Made:
    return made()


@pytest.fixture
def copy(run: Made, tmp_path: Path) -> Path:
    """The run folder, to be changed."""
    return Path(shutil.copytree(run.run, tmp_path / "run"))


def bundled(folder: Path, audit: dict[str, Any] | None = None) -> BundleReport:
    """Made, and checked by both."""
    out = make_bundle(folder, folder / "partners", folder.parent / "evidence.tar", BUNDLER, audit)
    assert independent.check(out.read_bytes(), BUNDLER.public.text).startswith("consistent")
    return verify_bundle(out, BUNDLER.public)


# --- what it says ---------------------------------------------------------------------------------


def test_a_bundle_says_what_the_run_was(run: Made) -> None:
    report = verify_bundle(run.bundle, BUNDLER.public)
    assert (report.run_id, report.mode, report.rounds, report.sums) == ("run", "distributed", 3, 3)
    assert report.partners == report.policies == tuple(f"partner-{k:03d}" for k in range(4))
    assert report.epsilon == pytest.approx(report.recomputed_epsilon, rel=1e-9) and report.delta == 1e-5
    assert (report.signer, report.coordinator) == (BUNDLER.public.text, (run.coordinator.public.text,))
    assert (report.verdict, report.rungs["0-mechanism"]) == ("INCONCLUSIVE", "PASS")
    assert (report.pinned, report.other_code) == (False, ())


def test_the_same_run_gives_the_same_bytes(run: Made, tmp_path: Path) -> None:
    again = make_bundle(run.run, run.home, tmp_path / "evidence.tar", BUNDLER, audited(run.run))
    assert again.read_bytes() == run.bundle.read_bytes()


def test_partners_whose_keys_are_known_from_elsewhere_are_compared(run: Made) -> None:
    known = read_pins((run.home / "identities.json").read_bytes(), "identities.json")
    assert verify_bundle(run.bundle, BUNDLER.public, known).pinned
    with pytest.raises(IntegrityError, match="pinned key of partner-002"):
        verify_bundle(run.bundle, BUNDLER.public, known | {"partner-002": SigningKey.generate().public})


def test_a_bundle_by_another_key_is_refused(run: Made) -> None:
    with pytest.raises(InvalidSignatureError):
        verify_bundle(run.bundle, run.coordinator.public)


# --- what goes in ---------------------------------------------------------------------------------


def test_nothing_that_is_not_on_the_list_goes_in(copy: Path) -> None:
    """A secret is planted in every folder, in documents, and lies where a partner's data lie."""
    for folder in ("", "adapter", "ledgers", "transcripts", "partners", "partners/partner-000", "policies", "audit"):
        for name in ("notes.txt", "interactions.parquet", "round-9.json.bak", "events.csv"):
            (copy / folder).mkdir(exist_ok=True)
            (copy / folder / name).write_bytes(SECRET)
    document = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    document |= {"notes": SECRET.decode(), "metrics": {"worst user": SECRET.decode()}}
    document["data"]["users"] = SECRET.decode()
    document["model"]["worst review"] = SECRET.decode()
    (copy / "run.json").write_text(json.dumps(document), encoding="utf-8")
    told = (copy / "partners/partner-000/partner.toml").read_text(encoding="utf-8")
    (copy / "partners/partner-000/partner.toml").write_text(f'cache = "{SECRET.decode()}"\n{told}', encoding="utf-8")
    audit = audited(copy) | {"examples": SECRET.decode()}
    data = make_bundle(copy, copy / "partners", copy.parent / "evidence.tar", BUNDLER, audit).read_bytes()
    assert SECRET not in data
    for key in (copy / "partners").rglob("*.key"):
        lines = key.read_bytes().splitlines()
        assert not any(line in data for line in lines), key.name
    assert str(copy).encode() not in data and b"ndcg" not in data


def test_the_adapter_s_files_go_in_only_when_asked_for(run: Made, copy: Path) -> None:
    assert {name for name in run.members if name.startswith("adapter/")} == {
        "adapter/manifest.json",
        "adapter/manifest.sig",
    }
    for name in ("adapter_config.json", "adapter_model.safetensors", "behaviour.safetensors", "config.json"):
        (copy / "adapter" / name).write_bytes(name.encode())
    assert "adapter/behaviour.safetensors" in collect(copy, copy / "partners", with_release=True)
    with pytest.raises(IntegrityError, match="Expected the SHA-256 of the release's manifest"):
        make_bundle(copy, copy / "partners", copy.parent / "evidence.tar", BUNDLER, with_release=True)


def test_a_run_whose_ledger_was_rolled_back_is_not_bundled(copy: Path) -> None:
    ledger = copy / "ledgers" / "partner-001.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:5]))
    out = copy.parent / "evidence.tar"
    with pytest.raises(LedgerError, match="partner-001"):
        make_bundle(copy, copy / "partners", out, BUNDLER)
    assert not out.exists()


@pytest.mark.parametrize("name", ["transcripts", "rounds.jsonl", "adapter/manifest.json", "partners/receipts.json"])
def test_what_is_not_there_is_named(copy: Path, name: str) -> None:
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    with pytest.raises(ConfigError, match=Path(name).name):
        make_bundle(copy, copy / "partners", copy.parent / "evidence.tar", BUNDLER)


def test_a_line_that_a_crash_tore_is_left_out(copy: Path) -> None:
    ledger = copy / "ledgers" / "partner-001.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"index":')
    assert bundled(copy).rounds == 3


def test_a_deployment_has_no_run_json_and_policies_are_handed_in(copy: Path) -> None:
    members = collect(copy, copy / "partners")
    (copy / "run.json").unlink()
    config = json.loads(members["plan.json"])["config"]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for k in range(4):
        shutil.rmtree(copy / "partners" / f"partner-{k:03d}")
    (copy / "policies").mkdir()
    (copy / "policies" / "partner-001.json").write_bytes(members["policies/partner-001.json"])
    report = bundled(copy)
    assert report.policies == ("partner-001",) and report.epsilon == report.recomputed_epsilon


# --- other runs -----------------------------------------------------------------------------------


def configured(**sections: dict[str, Any]) -> RunConfig:
    told = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    return RunConfig.model_validate(told)


@pytest.mark.parametrize("mode", ["none", pytest.param("local", marks=pytest.mark.slow)])
def test_a_run_without_masks_is_evidence_too(tmp_path: Path, mode: str) -> None:
    config = configured(
        privacy={"mode": mode} | ({"noise_multiplier": None} if mode == "none" else {}),
        federation={"secure_sum": False},
    )
    report = bundled(federated(tmp_path, config))
    assert report.mode == mode and (report.epsilon is None) == (mode == "none")


def fails_at(partner: str, kind: type[Message], *rounds: int) -> Fails:
    """A partner that fails at one exchange of some rounds (0 is the first)."""
    seen: list[Message] = []

    def fails(name: str, request: Message) -> bool:
        if name != partner or not isinstance(request, kind):
            return False
        seen.append(request)
        return len(seen) - 1 in rounds

    return fails


@pytest.mark.parametrize(
    "fails",
    [
        pytest.param(fails_at("partner-002", SumRequest, 1), marks=pytest.mark.slow),
        fails_at("partner-002", ConsentRequest, 1),
        pytest.param(fails_at("partner-003", SumRequest, 0, 1, 2), marks=pytest.mark.slow),
    ],
    ids=["did not pay in one round", "did not consent in one round", "never paid"],
)
def test_a_partner_that_drops_out_is_no_contradiction(tmp_path: Path, fails: Fails) -> None:
    if fails is not None:
        report = bundled(federated(tmp_path, configured(), fails=fails))
        assert (report.rounds, len(report.partners)) == (3, 4)


@pytest.mark.slow
def test_a_run_in_buckets_opens_several_sums_a_round(tmp_path: Path) -> None:
    config = configured(federation={"partners": 9, "quorum": 3, "buckets": 3, "combine": "median"})
    report = bundled(federated(tmp_path, config))
    assert (report.sums, len(report.partners)) == (9, 9)


def test_a_partner_that_changed_its_key_afterwards_is_still_known(copy: Path) -> None:
    """What its old key signed in the rounds is held against the ledger, which tells who took it over."""
    home, successor = copy / "partners", SigningKey.generate()
    Ledger(home / "partner-000" / "ledger.jsonl", made().key("partner-000")).hand_over(successor)
    shutil.copy(home / "partner-000" / "ledger.jsonl", copy / "ledgers" / "partner-000.jsonl")
    told = json.loads((home / "identities.json").read_text(encoding="utf-8"))
    (home / "identities.json").write_text(json.dumps(told | {"partner-000": successor.public.text}), encoding="utf-8")
    for k in range(4):
        shutil.rmtree(home / f"partner-{k:03d}")
    assert bundled(copy).rounds == 3


# --- the command ----------------------------------------------------------------------------------


def test_the_command_tells_what_it_found(run: Made, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verify)
    key = tmp_path / "bundler.pub"
    key.write_text(BUNDLER.public.text, encoding="ascii")
    told = CliRunner().invoke(app, [str(run.bundle), "--trust", str(key)])
    assert told.exit_code == 0 and "the bundle is consistent" in told.stdout
    pinned = ["--identities", str(run.home / "identities.json"), "--json"]
    told = CliRunner().invoke(app, [str(run.bundle), "--trust", BUNDLER.public.text, *pinned])
    assert json.loads(told.stdout) == json.loads(json.dumps(verified(run).to_json() | {"pinned": True}))
    refused = CliRunner().invoke(app, [str(run.bundle), "--trust", run.coordinator.public.text])
    assert isinstance(refused.exception, InvalidSignatureError) and refused.stdout == ""


def verified(run: Made) -> BundleReport:
    return verify_bundle(run.bundle, BUNDLER.public)


def test_an_audit_is_read_from_where_it_lies(copy: Path) -> None:
    assert load_audit(copy) is None
    (copy / "audit").mkdir()
    (copy / "audit" / "audit.json").write_text(json.dumps(audited(copy)), encoding="utf-8")
    assert bundled(copy, load_audit(copy)).verdict == "INCONCLUSIVE"
    (copy / "audit" / "audit.json").write_text("[", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"audit\.json"):
        load_audit(copy)


def test_members_of_a_bundle_are_those_that_were_collected(run: Made) -> None:
    sealed = unseal(run.bundle.read_bytes(), BUNDLER.public, "evidence.tar")
    assert sealed.members == run.members


@pytest.mark.soak
def test_a_whole_simulation_is_evidence(tmp_path: Path) -> None:
    """With BERT, its release and its own ``run.json``; a sampled plan, people at two partners."""
    interactions, items = generate(MarketplaceConfig(users=40, items=136, partners=4, seed=5))
    few = items.head(20)
    events = interactions.drop("partner").with_columns(review=pl.lit(""))
    kept = events.filter(pl.col("item_id").is_in(few.get_column("item_id").implode()))
    write(RawData("shop", kept, few), tmp_path / "shop")
    model = {"adapted_layers": 1, "lora_rank": 2, "lora_alpha": 4, "head_rank": 2, "max_events": 8}
    settings = {"model": model, "training": {"rounds": 2, "sampling_rate": 0.5}, "federation": {"quorum": 3}}
    asked = Request(str(tmp_path / "shop"), 4, "iid", 5, "inprocess", 0, 0, False, settings, "")
    simulate.run(simulate.start(asked, tmp_path / "run"), show=False)
    home, out = tmp_path / "run" / "partners", tmp_path / "evidence.tar"
    make_bundle(tmp_path / "run", home, out, BUNDLER, audited(tmp_path / "run"), with_release=True)
    assert independent.check(out.read_bytes(), BUNDLER.public.text).startswith("consistent")
    assert "adapter/behaviour.safetensors" in unseal(out.read_bytes(), BUNDLER.public, "").members
