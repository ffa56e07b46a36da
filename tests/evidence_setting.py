"""A masked run of four partners, an audit of it, and the bundle of both: made once a process.

Keys, agents, ledgers, exchanges, strategy and transcripts are the real ones; what partners learn from is drawn, as no
evidence tells of it (`Given`). A bundle of a whole simulation is made by a slow test.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

import client.agent
from client.agent import PartnerAgent
from client.app import app as client_app
from client.app import partner_folder
from client.premises import IDENTITY_FILE, Premises, write_partner
from client.privatize import add_noise_share
from server.admission import Admission
from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState
from server.receipts import RECEIPTS_FILE, ReceiptBook
from server.strategy import Run, VeilrecStrategy
from server.transcript import TRANSCRIPTS, TranscriptBook
from shared.config import RunConfig
from shared.files import write_bytes, write_json, write_lines
from shared.hazmat.randomness import randomness_for
from shared.hazmat.signing import SigningKey
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.prior import statistics_size
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.plan import PrivacyPlan, Stage
from shared.release_manifest import FILES, manifest_bytes
from shared.release_signature import signature_text
from shared.requests import Answer, Request
from simulations.audit.bundle.collect import collect, make_bundle
from simulations.audit.estimators.assess import assess
from simulations.audit.findings import Measurement, RungResult, ScoreSet, judge, overall
from simulations.federation import InProcessGrid

SEED, CANARIES, ITEMS, SIZE = 5, 40, 12, 30
CATALOGUE, BASE = "c" * 64, "b" * 64
SETTINGS: dict[str, Any] = {
    "prior": {"kind": "popularity"},
    "training": {"rounds": 2, "sampling_rate": 1.0},
    "privacy": {"population": 40, "noise_multiplier": 9.0},
    "federation": {"partners": 4, "quorum": 3, "timeout_s": 30},
}
"""A sample of everybody: such a plan is accounted for in no time."""
BUNDLER = SigningKey.generate()
"""Not the coordinator: who bundles is trusted with nothing that partners or coordinator signed."""


class Shelf:
    """A catalogue of which nobody asks more than this."""

    digest = CATALOGUE

    def __len__(self) -> int:
        return ITEMS


@dataclass
class Given:
    """A learner whose clipped sums are drawn; their noise is the real one."""

    premises: Premises
    catalogue: Any = field(default_factory=Shelf)

    def check_parameters(self, config: RunConfig, parameters: NDArray[np.float32]) -> None:
        """Any will do."""

    def check_canaries(self, config: RunConfig) -> None:
        """There are none."""

    def noised_statistics(self, order: RoundPlan, *, secret: bytes | None = None) -> NoisedSum:
        return self._noised(order, "prior", 1.0, statistics_size("popularity", ITEMS), secret)

    def noised_gradients(
        self, order: RoundPlan, parameters: Any, prior: Any, *, secret: bytes | None = None, **_: Any
    ) -> NoisedSum:
        return self._noised(order, "train", order.plan.partner_clip_norm, SIZE, secret)

    def _noised(self, order: RoundPlan, stage: Stage, clip: float, size: int, secret: bytes | None) -> NoisedSum:
        name = self.premises.name
        values = np.random.default_rng([*name.encode(), order.round]).normal(size=size)
        source = randomness_for(seed=order.config.seed, simulation=True, party=name, secret=secret)
        return add_noise_share(ClippedSum(values, clip), order.plan, stage, source, f"{order.run_id}/{order.round}")


Fails = Callable[[str, Request], bool] | None
"""Whether a partner fails at a request."""


class Fragile(PartnerAgent):
    """The real agent; its sums are given, and it may fail."""

    def __init__(self, premises: Premises, fails: Fails) -> None:
        super().__init__(premises, "cpu")
        self.learner = Given(premises)  # type: ignore[assignment]
        self._fails = fails

    def answer(self, request: Request) -> Answer:
        if self._fails is not None and self._fails(self.premises.name, request):
            raise RuntimeError("out of memory")
        return super().answer(request)


@dataclass(frozen=True)
class Made:
    """A finished run, the coordinator's home, its bundle and the bundle's members."""

    run: Path
    home: Path
    bundle: Path
    members: dict[str, bytes]

    def key(self, name: str) -> SigningKey:
        """The private key of a partner, or of the ``server``: for those who forge."""
        return SigningKey.load(self.home / ("server.key" if name == "server" else f"{name}/identity.key"))

    @property
    def coordinator(self) -> SigningKey:
        return self.key("server")


@cache
def made() -> Made:
    """Nothing in it may be changed: others read it too."""
    root = Path(tempfile.mkdtemp(prefix="veilrec-evidence-"))
    atexit.register(shutil.rmtree, root)
    run = federated(root, RunConfig.model_validate(SETTINGS))
    audit = audited(run)
    bundle = make_bundle(run, run / "partners", root / "evidence.tar", BUNDLER, audit)
    return Made(run, run / "partners", bundle, collect(run, run / "partners", audit))


def federated(root: Path, config: RunConfig, run_id: str = "run", fails: Fails = None) -> Path:
    """Run all rounds of a configuration; returns the run folder."""
    out, home = root / "run", root / "run" / "partners"
    admission = enrolled(home, config.federation.partners)
    with given_sums(home, fails):
        run, records = trained(out, home, admission, config, run_id)
    export(run, out, home, admission, records)
    return out


def trained(
    out: Path, home: Path, admission: Admission, config: RunConfig, run_id: str = "run"
) -> tuple[Run, list[dict[str, Any]]]:
    """All rounds that are left: from the start, or from the last whole round."""
    run = Run(run_id, config, build_plan(config), ITEMS, CATALOGUE)
    store = CheckpointStore(out / "checkpoints")
    start = Checkpoint(run_id, 0, ServerState.start(np.zeros(SIZE, dtype=np.float32)), None, [])
    strategy = VeilrecStrategy(
        run,
        store.load(run_id) or start,
        store,
        admission,
        ReceiptBook(home / RECEIPTS_FILE),
        lambda record: None,
        transcripts=TranscriptBook(out / TRANSCRIPTS, admission.key),
    )
    grid = InProcessGrid(client_app, range(config.federation.partners), home)
    strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds_left)
    return run, strategy.checkpoint.records


def export(run: Run, out: Path, home: Path, admission: Admission, records: list[dict[str, Any]]) -> None:
    """What a finished run leaves in its folder."""
    write_lines(out / "rounds.jsonl", records)
    for folder in sorted(home.glob("partner-*")):
        write_bytes(out / "ledgers" / f"{folder.name}.jsonl", (folder / "ledger.jsonl").read_bytes())
    manifest = released(out / "adapter", run.plan, run.config, admission.key)
    write_json(out / "run.json", document(run, records, manifest))


def enrolled(home: Path, partners: int) -> Admission:
    """Keys of everybody, pinned at everybody."""
    folders = [partner_folder(home, k) for k in range(partners)]
    keys = {folder.name: SigningKey.load_or_create(folder / IDENTITY_FILE).public for folder in folders}
    admission = Admission.create(home, keys)
    policy = {"server_key": admission.key.public.text}
    for folder in folders:
        peers = {name: key.text for name, key in keys.items()}
        write_partner(folder, {"name": folder.name, "simulated": True, "policy": policy, "peers": peers})
    return admission


@contextmanager
def given_sums(home: Path, fails: Fails = None) -> Iterator[None]:
    """The relay finds agents whose sums are given, and who raise where they are told to."""
    agents: dict[Path, PartnerAgent] = {}

    def agent_for(folder: Path) -> PartnerAgent:
        if folder not in agents:
            agents[folder] = Fragile(Premises.open(folder), fails)
        return agents[folder]

    real, client.agent.agent_for = client.agent.agent_for, agent_for  # type: ignore[assignment]
    try:
        yield
    finally:
        client.agent.agent_for = real


def released(folder: Path, plan: PrivacyPlan, config: RunConfig, key: SigningKey) -> dict[str, Any]:
    """The manifest of a release and its signature; the files are not looked at by a bundle without them."""
    told = {
        "format": 1,
        "version": 1,
        "base": config.model.base,
        "base_sha256": BASE,
        "catalogue_sha256": CATALOGUE,
        "privacy": {"mode": plan.mode, "epsilon": epsilon_spent(plan, plan.rounds), "delta": plan.delta},
        "files": dict.fromkeys(FILES, "f" * 64),
    }
    data = manifest_bytes(told)
    write_bytes(folder / "manifest.json", data)
    write_bytes(folder / "manifest.sig", signature_text(key, data))
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def document(run: Run, records: list[dict[str, Any]], manifest: dict[str, Any]) -> dict[str, Any]:
    """``run.json``, as `simulations.results.run_document` writes it; with something that no bundle takes."""
    epsilon = epsilon_spent(run.plan, run.plan.rounds)
    ledger = {"epsilon": epsilon, "delta": run.plan.delta, "plans": 1}
    more = {"epsilon": epsilon, "prior_epsilon": records[0]["epsilon"], "randomness": "seeded", "ledger": ledger}
    return {
        "veilrec_version": "0",
        "seed": run.config.seed,
        "engine": "inprocess",
        "data": {"name": "shop", "users": 40, "partners": run.config.federation.partners},
        "model": {"base": run.config.model.base, "base_sha256": BASE, "adapter_fingerprint": manifest["fingerprint"]}
        | {name: getattr(run.config.model, name) for name in ("adapted_layers", "lora_rank")},
        "privacy": {**asdict(run.plan), **more},
        "metrics": {"federated": {"ndcg@10": 0.1}},
        "config": run.config.model_dump(mode="json"),
    }


def audited(run: Path, canaries: int = CANARIES) -> dict[str, Any]:
    """An audit's results over scores that are drawn here, as the runner writes them."""
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    order = json.loads(json.loads((run / TRANSCRIPTS / "round-0001.json").read_text(encoding="utf-8"))["plan"]["text"])
    known = {each.name for each in fields(PrivacyPlan)}
    plan = PrivacyPlan(**{key: value for key, value in told["privacy"].items() if key in known})
    rng, half = np.random.default_rng(SEED), canaries // 2
    scores = ScoreSet("whole run", rng.normal(1, 1, half), rng.normal(0, 1, half))
    estimates = assess(scores, plan, "whole", seed=SEED)
    measured = Measurement("noise over billed noise", 1.001, "1 ± 0.004", True, "noise halved")
    refuted = any(one.refutes for one in estimates)
    bound = max(one.lower_bound or 0.0 for one in estimates)
    rungs = [
        RungResult("0-mechanism", "Mechanism", judge(False, 1.0), "it holds", 1.0, None, 1.0, (measured,)),
        RungResult(
            "1-gradient-canaries",
            "Insider gradient canaries",
            judge(refuted, 0.3),
            "few canaries",
            2.0,
            bound,
            0.3,
            estimates=estimates,
            scores=(scores,),
            facts={"seed": SEED},
        ),
    ]
    return {
        "format": 1,
        "veilrec_version": told["veilrec_version"],
        "verdict": overall({rung.name: rung.verdict for rung in rungs}).value,
        "claimed": {"epsilon": told["privacy"]["epsilon"], "delta": plan.delta},
        "plan": plan.told(),
        "run": {"run_id": order["run_id"], "data": "shop", "partners": plan.partners, "users": 40},
        "seed": SEED,
        "rungs": json.loads(json.dumps([rung.to_json() for rung in rungs])),
    }
