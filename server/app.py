"""The Flower ServerApp: reads the run's configuration, runs the rounds, writes the run folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from server.admission import Admission
from server.attempts import ATTEMPTS_FILE, Attempts
from server.audit_sum import with_audit_sum
from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import ServerState
from server.patience import SIMULATED, Patience
from server.prompt_grid import PromptGrid
from server.receipts import RECEIPTS_FILE, ReceiptBook
from server.release import ReleaseBook
from server.strategy import Observer, Run, VeilrecStrategy, Witness
from server.transcript import TRANSCRIPTS, TranscriptBook
from shared.adapter import flatten_parameters, load_parameters, save_release
from shared.catalogue import read_catalogue
from shared.config import RunConfig, load_config, parse_config
from shared.errors import ConfigError, ProtocolError
from shared.files import write_json, write_lines
from shared.model.behaviour import BehaviourStage
from shared.model.prior import uninformed
from shared.model.weights import find_base
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.schema import Catalogue

app = ServerApp()
LOCK_S = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's configuration asks for (``config``, ``data-root``, ``out``)."""
    settings = context.run_config
    root = str(settings.get("data-root", ""))
    if not root:
        raise ConfigError("Expected data-root: a folder with items.parquet and the partners' folders.")
    config = _read_config(str(settings.get("config", "")), Path(root) / "config.json")
    catalogue = read_catalogue(Path(root) / "items.parquet")
    patience = Patience.from_text(str(settings.get("patience", "")))
    prompt = PromptGrid(grid, enough=config.federation.least, grace_s=patience.grace_s)
    out = Path(str(settings.get("out", "veilrec-run")))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "run.lock", timeout=LOCK_S):  # the process of an earlier try may still be ending
        run_federation(prompt, config, catalogue, out, Path(root), patience=patience)


def run_federation(
    grid: Grid,
    config: RunConfig,
    catalogue: Catalogue,
    out: Path,
    home: Path,
    observer: Observer | None = None,
    patience: Patience = SIMULATED,
    witness: Witness | None = None,
) -> Checkpoint:
    """Do the rounds that are left and release the adapter; the same on every engine.

    Parameters
    ----------
    grid : Grid
        Flower's way to the partners: in-process, Ray or a SuperLink.
    out : Path
        The run folder: ``config.json``, ``rounds.jsonl``, ``checkpoints/``, ``transcripts/``, ``adapter/``,
        and ``audit/sum.safetensors`` where the plan has audit canaries.
    home : Path
        The coordinator's own folder, the same for all runs: ``server.key``, ``identities.json``, ``receipts.json``,
        ``releases.json``.
    observer : callable, optional
        Called with each round's record.
    patience : Patience
        How long it waits and how often it asks again.
    witness : callable, optional
        Is shown the opened sums of every round.

    Returns
    -------
    Checkpoint
        After the last round.
    """
    run = describe_run(config, catalogue)
    write_json(out / "config.json", config.model_dump(mode="json"))
    store = CheckpointStore(out / "checkpoints")
    model = BehaviourStage(find_base(config.model.base), config.model, n_items=len(catalogue), seed=config.seed or 0)
    checkpoint = store.load(run.run_id) or Checkpoint(
        run.run_id, 0, ServerState.start(flatten_parameters(model)), None, []
    )

    if checkpoint.records:  # a run that was killed may have kept a round that it had not told of
        write_lines(out / "rounds.jsonl", checkpoint.records)

    def observe(record: dict[str, object]) -> None:
        write_lines(out / "rounds.jsonl", strategy.checkpoint.records)
        if observer:
            observer(record)

    receipts = ReceiptBook(home / RECEIPTS_FILE)
    admission = Admission.open(home)
    attempts = Attempts(out / ATTEMPTS_FILE, patience)
    transcripts = TranscriptBook(out / TRANSCRIPTS, admission.key)
    witness = with_audit_sum(witness, out, run.run_id, run.plan, len(checkpoint.state.parameters))
    strategy = VeilrecStrategy(run, checkpoint, store, admission, receipts, observe, patience, transcripts, witness)
    _finish_rounds(strategy, grid, attempts)
    _release(out / "adapter", run, model, strategy.checkpoint, ReleaseBook(home, admission))
    return strategy.checkpoint


def _finish_rounds(strategy: VeilrecStrategy, grid: Grid, attempts: Attempts) -> None:
    """Do the rounds that are left; one that fails is attempted again as long as there is patience."""
    timeout = strategy.run.config.federation.timeout_s
    while strategy.rounds_left > 0:
        try:
            strategy.start(grid, ArrayRecord(), num_rounds=strategy.rounds_left, timeout=timeout)
        except ProtocolError as error:
            attempts.failed(strategy.checkpoint.round + 1, error)
        strategy.go_on()


def _release(folder: Path, run: Run, model: BehaviourStage, final: Checkpoint, book: ReleaseBook) -> None:
    """Write what the rounds came to, signed; `model` takes the parameters."""
    load_parameters(model, final.state.released)
    plan = run.plan
    save_release(
        folder,
        model,
        final.prior or uninformed(run.n_items),
        run.config,
        catalogue_digest=run.catalogue_digest,
        privacy={"mode": plan.mode, "epsilon": epsilon_spent(plan, plan.rounds), "delta": plan.delta},
        version=book.version_of,
        sign=book.sign,
    )


def _read_config(text: str, prepared: Path) -> RunConfig:
    """The run's own configuration, else the one that `veilrec data partition` wrote beside the partners."""
    return load_config(prepared) if not text and prepared.exists() else parse_config(text, "run configuration")


def describe_run(config: RunConfig, catalogue: Catalogue) -> Run:
    """The constants of a run; its id is a digest of configuration and catalogue."""
    text = f"{config.model_dump_json()}\n{catalogue.digest}"
    run_id = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Run(run_id, config, build_plan(config), len(catalogue), catalogue.digest)
