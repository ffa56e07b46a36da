"""Make a bundle of a finished run: from a list of files, each read and told anew, and nothing else.

No file is taken because it lies in a folder. What a partner has on its premises (data, keys, text vectors, kept sums)
is on no list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.policy import Policy
from client.premises import PARTNER_FILE, Premises
from server.admission import IDENTITIES_FILE, SERVER_KEY_FILE, Admission
from server.receipts import RECEIPTS_FILE
from server.transcript import TRANSCRIPTS
from shared.config import RunConfig, load_config
from shared.errors import ConfigError, IntegrityError, VeilrecError
from shared.files import write_bytes
from shared.hazmat.signing import Pin, SigningKey, VerifyKey, pin
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE
from shared.release_manifest import FILES
from shared.wire import parse_plan
from simulations.audit.bundle.code import installed_code
from simulations.audit.bundle.evidence import (
    AUDIT,
    AUDIT_KEYS,
    CODE,
    IDENTITIES,
    PLAN,
    POLICY_KEYS,
    RECEIPTS,
    ROUNDS,
    RUN,
    RUN_KEYS,
)
from simulations.audit.bundle.seal import parse, seal, spelled
from simulations.audit.bundle.verify import verify_bytes

BUNDLE_FILE = "evidence.tar"
MOST_PINNED = 2


def make_bundle(
    run: Path,
    home: Path,
    out: Path,
    key: SigningKey,
    audit: dict[str, Any] | None = None,
    *,
    with_release: bool = False,
) -> Path:
    """Write the evidence of a finished run, signed by `key`, once it passes its own verification.

    Parameters
    ----------
    run : Path
        A run folder with ``transcripts/``, ``rounds.jsonl``, ``adapter/``, ``ledgers/`` (those of a deployment come
        from the partners) and, of a simulation, ``run.json``.
    home : Path
        The coordinator's folder: ``identities.json``, ``receipts.json``, ``server.key``. Partners' folders below it, or
        ``policies/<partner>.json`` in the run folder, give the policies.
    out : Path
        The archive.
    key : SigningKey
        The bundler's: the coordinator's, a partner's, an auditor's.
    audit : dict or None
        ``audit.json``.
    with_release : bool
        Put the adapter's files in, and not only their digests.

    Raises
    ------
    ConfigError
        If a file is missing.
    IntegrityError, LedgerError
        If what was collected does not pass `verify_bundle`: such a bundle is not written.
    """
    coordinator = _coordinator(run, home)
    data = seal(collect(run, home, audit, with_release=with_release), coordinator, key)
    verify_bytes(data, key.public, str(out))
    write_bytes(out, data)
    return out


def collect(
    run: Path, home: Path, audit: dict[str, Any] | None = None, *, with_release: bool = False
) -> dict[str, bytes]:
    """The members of a run's bundle, by name; not verified yet."""
    ledgers = {f"ledgers/{file.stem}.jsonl": _whole_lines(_read(file)) for file in _found(run / "ledgers", "*.jsonl")}
    transcripts = {f"transcripts/{file.name}": _read(file) for file in _found(run / TRANSCRIPTS, "round-*.json")}
    plan, identities = _plan(transcripts), _read(home / IDENTITIES_FILE)
    members = {
        PLAN: spelled(plan),
        RUN: spelled(_run(run, plan, len(parse(identities, IDENTITIES)))),
        ROUNDS: _read(run / "rounds.jsonl"),
        RECEIPTS: _read(home / RECEIPTS_FILE),
        IDENTITIES: identities,
        CODE: spelled(installed_code()),
        **ledgers,
        **transcripts,
        **_policies(run, home, ledgers),
    }
    for name in (MANIFEST_FILE, SIGNATURE_FILE, *(FILES if with_release else ())):
        members[f"adapter/{name}"] = _read(run / "adapter" / name)
    if audit is not None:
        members[AUDIT] = spelled({name: audit[name] for name in AUDIT_KEYS if name in audit})
    return members


def _coordinator(run: Path, home: Path) -> Pin:
    """The key of the home, and the one before it if receipts in the ledgers are by that."""
    today = Admission.open(home).key.public.text if (home / SERVER_KEY_FILE).exists() else ""
    signed = {today} if today else set()
    for file in _found(run / "ledgers", "*.jsonl"):
        for line in _whole_lines(_read(file)).splitlines():
            told = parse(line, file.name)
            if told["kind"] == "receipt":
                signed.add(told["fields"]["server"])
    if not 0 < len(signed) <= MOST_PINNED:
        raise IntegrityError(f"{home}: Expected one coordinator's key in the ledgers, or two, got {len(signed)}.")
    return pin(VerifyKey.from_text(text) for text in sorted(signed))


def _plan(transcripts: Mapping[str, bytes]) -> dict[str, Any]:
    """Of the last round's signed plan."""
    if not transcripts:
        raise ConfigError("transcripts: Expected a run with transcripts of its rounds, got none.")
    name = max(transcripts)
    try:
        order = parse_plan(parse(transcripts[name], name)["plan"]["text"])
    except (KeyError, TypeError, VeilrecError):
        raise IntegrityError(f"{name}: Expected the transcript of a round.") from None
    return {"run_id": order.run_id, "plan": order.plan.told(), "config": order.config.model_dump(mode="json")}


def _run(run: Path, plan: Mapping[str, Any], partners: int) -> dict[str, Any]:
    """What ``run.json`` says and can be checked; a deployment has none, so that its plan, rounds and release say it."""
    if (run / "run.json").exists():
        whole = parse(_read(run / "run.json"), RUN)
    else:
        whole = _deployed(run, plan, load_config(run / "config.json"), partners)
    try:
        return {
            name: {field: whole[name][field] for field in fields if field in whole[name]} if fields else whole[name]
            for name, fields in RUN_KEYS.items()
            if name in whole
        }
    except TypeError:
        raise IntegrityError(f"{RUN}: Expected the document of a run.") from None


def _deployed(run: Path, plan: Mapping[str, Any], config: RunConfig, partners: int) -> dict[str, Any]:
    records = [parse(line, ROUNDS) for line in _read(run / "rounds.jsonl").splitlines()]
    manifest = parse(_read(run / "adapter" / MANIFEST_FILE), MANIFEST_FILE)
    last = records[-1].get("epsilon") if records else None
    return {
        "seed": config.seed,
        "engine": "deployment",
        "config": config.model_dump(mode="json"),
        "data": {"name": "real", "partners": partners},
        "model": {
            "base": config.model.base,
            "base_sha256": manifest.get("base_sha256"),
            "adapted_layers": config.model.adapted_layers,
            "lora_rank": config.model.lora_rank,
            "adapter_fingerprint": manifest.get("fingerprint"),
        },
        "privacy": {**plan["plan"], "epsilon": last},
    }


def _policies(run: Path, home: Path, ledgers: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the partners allow: told by their own files where these lie here, or as they were handed in."""
    found: dict[str, bytes] = {}
    for ledger in ledgers:
        name = Path(ledger).stem
        handed = run / "policies" / f"{name}.json"
        if (home / name / PARTNER_FILE).is_file():
            found[f"policies/{name}.json"] = spelled(policy_of(Premises.open(home / name)))
        elif handed.is_file():
            told = parse(_read(handed), handed.name)
            found[f"policies/{name}.json"] = spelled({key: told[key] for key in POLICY_KEYS})
    return found


def policy_of(premises: Premises) -> dict[str, Any]:
    """A partner's policy as a bundle tells it: limits and public keys. No path, and nothing of its data."""
    policy = premises.policy.model_dump(exclude={"server_key"}, exclude_unset=True)
    if premises.policy.server_key is not None:
        policy["server_key"] = _texts(premises.policy.server_key)
    Policy.model_validate(policy)
    return {
        "name": premises.name,
        "simulated": premises.simulated,
        "policy": policy,
        "peers": {name: _texts(keys) for name, keys in sorted(premises.peers.items())},
    }


def _texts(keys: Pin) -> str | list[str]:
    texts = [key.text for key in keys.keys]
    return texts[0] if len(texts) == 1 else texts


def _whole_lines(data: bytes) -> bytes:
    """Without a last line that a crash tore: it counts for nothing."""
    return data[: data.rfind(b"\n") + 1]


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file() and not file.is_symlink())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}). Expected a finished run.") from None


def load_audit(run: Path) -> dict[str, Any] | None:
    """``audit/audit.json`` of a run, if it was audited.

    Raises
    ------
    IntegrityError
        If it is no JSON object.
    """
    file = run / "audit" / AUDIT
    if not file.exists():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{file}: Expected an audit's results, got {type(error).__name__}.") from None
    if not isinstance(told, dict):
        raise IntegrityError(f"{file}: Expected an audit's results, got no object.")
    return told
