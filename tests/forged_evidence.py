"""Corruptions of a bundle by who has the bundler's key: it signs again, and cannot speak for all who signed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evidence_setting import BUNDLER, made

from server.transcript import ROUND_TRANSCRIPT, transcript_statement
from shared.hazmat.signing import SigningKey, VerifyKey, pin
from shared.privacy.ledger_entries import Entry, Reservation, parse, seal
from shared.privacy.ledger_heads import to_base64
from simulations.audit.bundle.seal import seal as sealed
from simulations.audit.bundle.seal import spelled

Members = dict[str, bytes]
Corrupt = Callable[[random.Random], bytes]
PARTNERS = tuple(f"partner-{k:03d}" for k in range(4))
ROUNDS = (1, 2, 3)


def again(changed: Members) -> bytes:
    """Signed by the bundler, as if nothing had happened."""
    return sealed(changed, made().coordinator.public, BUNDLER)


def resigned_extra(random_: random.Random) -> bytes:
    name = random_.choice(["secret.txt", "data/interactions.parquet", "partner-000/identity.key", "ledgers/x/y.jsonl"])
    return again({**made().members, name: random_.randbytes(40)})


def resigned_missing(random_: random.Random) -> bytes:
    found = dict(made().members)
    free = ("audit.json", "policies/")  # a bundle may be without
    del found[random_.choice(sorted(name for name in found if not name.startswith(free)))]
    return again(found)


def edited(name: str, change: Callable[[Any], None]) -> bytes:
    told = json.loads(made().members[name])
    change(told)
    return again({**made().members, name: spelled(told)})


def numbers(told: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there are numbers in JSON."""
    if isinstance(told, dict | list):
        pairs = told.items() if isinstance(told, dict) else enumerate(told)
        return [found for key, value in pairs for found in numbers(value, (*path, key))]
    return [path] if isinstance(told, int | float) and not isinstance(told, bool) else []


def put(told: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> None:
    for key in path[:-1]:
        told = told[key]
    told[path[-1]] = change(told[path[-1]])


def forged_number(name: str, within: str = "") -> Corrupt:
    """A number of a member, half of it or more."""

    def corrupt(random_: random.Random) -> bytes:
        told = json.loads(made().members[name])
        path = random_.choice([path for path in numbers(told) if within in map(str, path) or not within])
        return edited(name, lambda told: put(told, path, lambda value: better(random_, value)))

    return corrupt


def better(random_: random.Random, value: float) -> float:
    """Another number of the same kind, far enough from it that no accountant's version is to blame."""
    if isinstance(value, int):
        return value + random_.choice([-1, 1, 7])
    return value * random_.choice([0.5, 0.9, 1.1]) if value else random_.choice([0.5, 1.0])


def forged_round(random_: random.Random) -> bytes:
    lines = made().members["rounds.jsonl"].splitlines()
    at = random_.randrange(len(lines))
    told = json.loads(lines[at])
    path = random_.choice(numbers(told))
    put(told, path, lambda value: better(random_, value))
    lines[at] = json.dumps(told).encode()
    return again({**made().members, "rounds.jsonl": b"\n".join(lines) + b"\n"})


def dropped_round(random_: random.Random) -> bytes:
    lines = made().members["rounds.jsonl"].splitlines(keepends=True)
    del lines[random_.randrange(len(lines))]
    return again({**made().members, "rounds.jsonl": b"".join(lines)})


def transcript_of(random_: random.Random) -> str:
    return f"transcripts/round-{random_.choice(ROUNDS):04d}.json"


def forged_transcript_number(random_: random.Random) -> bytes:
    return forged_number(transcript_of(random_))(random_)


def forged_transcript_text(random_: random.Random) -> bytes:
    """A digest, a key, a hash or a signature, one letter of it."""
    name = transcript_of(random_)
    told = json.loads(made().members[name])
    texts = [path for path in paths_of_text(told) if len(at_path(told, path)) >= 32]
    path = random_.choice(texts)
    text = at_path(told, path)
    at = random_.randrange(len(text) - 2)
    other = random_.choice([letter for letter in "0123456789abcdef" if letter != text[at]])
    return edited(name, lambda told: put(told, path, lambda value: value[:at] + other + value[at + 1 :]))


def paths_of_text(told: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(told, dict | list):
        pairs = told.items() if isinstance(told, dict) else enumerate(told)
        return [found for key, value in pairs for found in paths_of_text(value, (*path, key))]
    return [path] if isinstance(told, str) else []


def at_path(told: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        told = told[key]
    return told


def dropped_transcript(random_: random.Random) -> bytes:
    found = dict(made().members)
    del found[transcript_of(random_)]
    return again(found)


def swapped_transcripts(random_: random.Random) -> bytes:
    one, other = (f"transcripts/round-{number:04d}.json" for number in random_.sample(ROUNDS, 2))
    found = made().members
    return again({**found, one: found[other], other: found[one]})


def forged_receipt(random_: random.Random) -> bytes:
    name, what = random_.choice(PARTNERS), random_.choice(["count", "hash", "signature", "partner"])

    def change(told: Any) -> None:
        receipt = told[name]
        other = told[random_.choice([each for each in PARTNERS if each != name])]
        receipt[what] = receipt["count"] + random_.choice([-4, -1, 1]) if what == "count" else other[what]

    return edited("receipts.json", change)


def older_receipt(random_: random.Random) -> bytes:
    """One that the coordinator did sign, before the last rounds."""
    name = random_.choice(PARTNERS)
    lines = [json.loads(line) for line in made().members[f"ledgers/{name}.jsonl"].splitlines()]
    old = random_.choice([line["fields"] for line in lines if line["kind"] == "receipt"])
    return edited("receipts.json", lambda told: told.update({name: old}))


def no_receipt(random_: random.Random) -> bytes:
    return edited("receipts.json", lambda told: told.pop(random_.choice(PARTNERS)))


def dropped_tail(random_: random.Random) -> bytes:
    name = f"ledgers/{random_.choice(PARTNERS)}.jsonl"
    lines = made().members[name].splitlines(keepends=True)
    return again({**made().members, name: b"".join(lines[: random_.randrange(1, len(lines))])})


def dropped_line(random_: random.Random) -> bytes:
    name = f"ledgers/{random_.choice(PARTNERS)}.jsonl"
    lines = made().members[name].splitlines(keepends=True)
    del lines[random_.randrange(len(lines))]
    return again({**made().members, name: b"".join(lines)})


def flipped_ledger(random_: random.Random) -> bytes:
    name = f"ledgers/{random_.choice(PARTNERS)}.jsonl"
    data = bytearray(made().members[name])
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return again({**made().members, name: bytes(data)})


def forked(random_: random.Random) -> bytes:
    """The partner writes its own history anew from some round on: another request, or another set of survivors."""
    name = random_.choice(PARTNERS)
    return again({**made().members, f"ledgers/{name}.jsonl": b"".join(fork(random_, name, random_.random() < 0.5))})


def fork(random_: random.Random, name: str, keep_receipts: bool) -> list[bytes]:
    entries = entries_of(name)
    at = random_.choice([k for k, entry in enumerate(entries) if isinstance(entry.body, Reservation)])
    lines, previous = [entry.line for entry in entries[:at]], entries[at].previous
    body: Any = entries[at].body
    for entry in entries[at:]:
        if entry.body.kind == "receipt" and not keep_receipts:
            continue
        forged = replace(body, request="0" * 64) if entry.body is body else entry.body
        made_anew = seal(len(lines), entry.time, previous, forged, made().key(name))
        lines, previous = [*lines, made_anew.line], made_anew.hash
    return lines


def entries_of(name: str) -> list[Entry]:
    found: list[Entry] = []
    key: VerifyKey = made().key(name).public
    for index, line in enumerate(made().members[f"ledgers/{name}.jsonl"].splitlines(keepends=True)):
        found.append(parse(line, index, found[-1].hash if found else "", key if index else None))
    return found


def cheaper_plan(random_: random.Random) -> bytes:
    """A partner declares less than was spent, and signs all of its ledger again."""
    name = random_.choice(PARTNERS)
    lines, previous = [], ""
    for entry in entries_of(name):
        body: Any = entry.body
        if body.kind == "receipt":
            continue
        if body.kind == "plan":
            body = replace(body, epsilon=body.epsilon * random_.choice([0.5, 0.97]))
        anew = seal(len(lines), entry.time, previous, body, made().key(name))
        lines, previous = [*lines, anew.line], anew.hash
    return again({**made().members, f"ledgers/{name}.jsonl": b"".join(lines)})


def others_ledger(random_: random.Random) -> bytes:
    one, other = random_.sample(PARTNERS, 2)
    return again({**made().members, f"ledgers/{one}.jsonl": made().members[f"ledgers/{other}.jsonl"]})


def no_ledger(random_: random.Random) -> bytes:
    found = dict(made().members)
    del found[f"ledgers/{random_.choice(PARTNERS)}.jsonl"]
    return again(found)


def others_key(random_: random.Random) -> bytes:
    one, other = random_.sample(PARTNERS, 2)
    stranger = SigningKey.generate().public.text
    return edited("identities.json", lambda told: told.update({one: random_.choice([told[other], stranger])}))


def forged_release(random_: random.Random) -> bytes:
    return edited("adapter/manifest.json", lambda told: told["privacy"].update(epsilon=told["privacy"]["epsilon"] / 2))


def swapped_release_file(random_: random.Random) -> bytes:
    name = random_.choice(["config.json", "adapter_config.json", "adapter_model.safetensors", "behaviour.safetensors"])
    return again({**made().members, f"adapter/{name}": random_.randbytes(30)})


def second_coordinator(random_: random.Random) -> bytes:
    """The bundler names a key of its own beside the coordinator's, and signs a transcript by it."""
    name, found = transcript_of(random_), dict(made().members)
    told = json.loads(found[name])
    told["sums"][0]["total_sha256"] = "0" * 64
    told["signature"] = to_base64(BUNDLER.sign(ROUND_TRANSCRIPT, transcript_statement(told)))
    found[name] = spelled(told)
    return sealed(found, pin([made().coordinator.public, BUNDLER.public]), BUNDLER)


def forged_audit(random_: random.Random) -> bytes:
    """What follows from other numbers of the audit, or of the run."""
    return edited("audit.json", random_.choice(AUDIT_FORGERIES))


def estimate(told: Any, name: str) -> Any:
    return next(one for one in told["rungs"][1]["estimates"] if one["estimator"] == name)


def shifted(told: Any) -> None:
    told["rungs"][1]["scores"][0]["inside"] = [value - 0.5 for value in told["rungs"][1]["scores"][0]["inside"]]


AUDIT_FORGERIES: tuple[Callable[[Any], Any], ...] = (
    lambda told: told["claimed"].update(epsilon=1.0),
    lambda told: told["claimed"].update(delta=1e-9),
    lambda told: told["plan"].update(noise_multiplier=20.0),
    lambda told: told["plan"].update(rounds=1),
    lambda told: told["run"].update(run_id="another"),
    lambda told: told.update(verdict="PASS"),
    lambda told: told.update(format=2),
    lambda told: told["rungs"][1].update(verdict="PASS"),
    lambda told: told["rungs"][1].update(verdict="FAIL"),
    lambda told: told["rungs"][0].update(power=0.5),
    lambda told: told["rungs"][0]["measurements"][0].update(holds=False),
    lambda told: told["rungs"][1].update(epsilon_lower_bound=0.1234),
    lambda told: estimate(told, "Gaussian pair").update(lower_bound=0.0),
    lambda told: estimate(told, "Gaussian pair").update(confidence=0.999),
    lambda told: estimate(told, "Gaussian pair").update(refutes=True),
    lambda told: estimate(told, "Gaussian pair").update(claimed=12.0),
    lambda told: estimate(told, "one-run SNJ").update(lower_bound=1.0),
    lambda told: estimate(told, "one-run SNJ").update(claimed=12.0),
    lambda told: estimate(told, "one-run f-DP").update(claimed=3.0),
    shifted,
    lambda told: told["rungs"][1]["scores"][0]["outside"].pop(),
    lambda told: told["rungs"][1]["scores"][0].update(name="others"),
)


SIGNED_KINDS: dict[str, Corrupt] = {
    "signed, a file more": resigned_extra,
    "signed, a file less": resigned_missing,
    "a number of run.json": forged_number("run.json", "privacy"),
    "a number of the configuration in run.json": forged_number("run.json", "config"),
    "partners in run.json": forged_number("run.json", "data"),
    "a number of plan.json": forged_number("plan.json"),
    "a number of rounds.jsonl": forged_round,
    "a line of rounds.jsonl": dropped_round,
    "a number of a transcript": forged_transcript_number,
    "a letter of a transcript": forged_transcript_text,
    "a transcript removed": dropped_transcript,
    "transcripts swapped": swapped_transcripts,
    "a receipt forged": forged_receipt,
    "an older receipt": older_receipt,
    "a receipt removed": no_receipt,
    "a ledger's tail dropped": dropped_tail,
    "a ledger's line dropped": dropped_line,
    "a bit of a ledger": flipped_ledger,
    "a ledger forked": forked,
    "a cheaper plan": cheaper_plan,
    "another's ledger": others_ledger,
    "a ledger removed": no_ledger,
    "another's key": others_key,
    "the release's epsilon": forged_release,
    "a release's file": swapped_release_file,
    "the audit": forged_audit,
    "a second coordinator": second_coordinator,
}
