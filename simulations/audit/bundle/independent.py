"""A second verifier of evidence bundles: ``python independent.py evidence.tar --trust KEY``. It imports no Veilrec.

Written from the formats, so that a mistake has to be made twice. Exit code 0 if nothing contradicts anything else, else
1 and one line. Epsilon: PLD of the Gaussian with the plan's variances. Veilrec bills Skellam noise and rounding on top:
a told one is no less (to 0.1 %: accountants differ by version), and at most 1.02 times as much.
"""

import base64
import io
import json
import math
import re
import sys
import tarfile
from decimal import Decimal
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist, mean, variance
from types import SimpleNamespace
from typing import Any, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting.pld import privacy_loss_distribution as pld

KNOWN = r"(plan|run|receipts|identities|code|audit)\.json|rounds\.jsonl|(ledgers|policies)/[\w.-]+\.jsonl?|"
KNOWN += r"transcripts/round-\d{4,}\.json|adapter/\w+\.(json|sig|safetensors)"
ABSENT = {"canaries": 0, "buckets": 1}  # fields of a plan that are told only where they differ from this
SHARES = ((3.0, 0.15), (6.0, 0.25), (math.inf, 0.5))  # guesses a canary, by claimed epsilon; 0.7 where none is claimed


def need(where: str, **holds: object) -> None:
    if wrong := [what.replace("_", " ") for what, each in holds.items() if not each]:
        raise ValueError(f"{where}: Expected {wrong[0]}")


def compact(value: object, sort_keys: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys).encode()


def once(pairs: list[tuple[str, Any]]) -> Any:
    need("JSON", every_key_once=len(dict(pairs)) == len(pairs))
    return dict(pairs)


loads = partial(json.loads, object_pairs_hook=once)


def raw(text: str) -> bytes:
    need("base64", one_spelling=base64.b64encode(base64.b64decode(text)).decode() == text)
    return base64.b64decode(text)


def joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def by(keys: list[str], purpose: str, message: bytes, signature: str, where: str) -> None:
    statement = f"veilrec/v1/{purpose}\0".encode() + message
    for key in keys:
        try:
            return Ed25519PublicKey.from_public_bytes(raw(key)).verify(raw(signature), statement)
        except InvalidSignature:
            continue
    raise ValueError(f"{where}: Expected a signature ({purpose}) of a known key")


def opened(data: bytes, trust: str) -> tuple[dict[str, bytes], list[str]]:
    """The members of an archive in its one form whose manifest is signed, and the coordinator's keys."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members, again = {info.name: tar.extractfile(info).read() for info in tar}, b""  # type: ignore[union-attr]
    for name, content in sorted(members.items()):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        again += info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    need("archive", its_one_form=again + bytes(1024) == data)
    manifest, signature = members.pop("manifest.json"), members.pop("manifest.sig").decode("ascii")
    by([trust], "evidence bundle", manifest, signature.removesuffix("\n"), "manifest.sig")
    real = {name: {"sha256": sha256(each).hexdigest(), "size": len(each)} for name, each in members.items()}
    told = loads(manifest)
    need("manifest.json", digests=told["members"] == real, signer=[told["signer"], told["format"]] == [trust, 1])
    need("archive", no_other_members=all(re.fullmatch(KNOWN, name, re.ASCII) for name in members))
    return members, told["coordinator"]


@lru_cache(maxsize=64)
def epsilon_of(plan: str, part: str) -> float | None:
    """Of a plan, or a part of it: the worse of a user at one partner and at as many as the plan says."""
    told, found = json.loads(plan), [0.0]
    prior = None if part == "training" else told["prior_noise_multiplier"]
    steps = 0 if part == "prior" else told["rounds"] * told["local_steps"]
    for k in {1, told["partners_per_user"]} if (prior or steps) and told["mode"] != "none" else {}:
        whole = pld.from_gaussian_mechanism(prior, value_discretization_interval=1e-4) if prior else pld.identity(1e-4)
        if steps:
            z, q = told["noise_multiplier"] * k**0.5, told["sampling_rate"]
            one = pld.from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=1e-4)
            whole = whole.compose(one.self_compose(k * steps) if k * steps > 1 else one)
        found.append(whole.get_epsilon_for_delta(told["delta"]))
    return None if told["mode"] == "none" else max(found)


def accounted(told: Any, plan: Any, where: str, part: str = "whole run") -> None:
    exact = epsilon_of(json.dumps(plan), part)
    need(where, epsilon_of_the_plan=told is None if exact is None else exact * 0.999 <= told <= exact * 1.02)


def snj(m: int, r: int, v: int, delta: float, alpha: float, epsilon: float) -> bool:
    """Whether v of r right guesses refute epsilon (Steinke, Nasr, Jagielski), by exact binomial tails."""
    tails, right, wrong = [0.0] * (r + 2), -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    for i in range(r, -1, -1):
        tails[i] = tails[i + 1] + math.exp(math.log(math.comb(r, i)) + i * right + (r - i) * wrong)
    return tails[v] + 2 * m * delta * max([(tails[v - i] - tails[v]) / i for i in range(1, v + 1)], default=0.0) < alpha


def follows(one: Any, ins: list[float], out: list[float], delta: float) -> bool:
    """Whether a bound is where the scores cease to refute, with equal scores ordered against the truth or for it."""
    n, k, bound, claimed, slack = len(ins), len(out), one["lower_bound"], one["claimed"], 2e-4
    half = int((0.7 if claimed is None else next(s for most, s in SHARES if claimed <= most)) * (n + k)) // 2
    mu = (mean(ins) - mean(out)) / math.sqrt(((n - 1) * variance(ins) + (k - 1) * variance(out)) / (n + k - 2))
    mu -= NormalDist().inv_cdf(one["confidence"]) * math.sqrt(1 / n + 1 / k + mu**2 / (2 * (n + k)))
    a, b = max(mu, 1e-9) / math.sqrt(8), max(mu, 1e-9) * math.sqrt(2)
    tests = [lambda e: math.erfc(e / b - a) - math.exp(e) * math.erfc(e / b + a) > 2 * delta] * 2
    for kind in (1, 0) if one["estimator"] == "one-run SNJ" else ():
        order = sorted([(score, kind) for score in ins] + [(score, 1 - kind) for score in out])
        v = sum(each != kind for _, each in order[:half]) + sum(each == kind for _, each in order[n + k - half :])
        tests.insert(0, partial(snj, n + k, 2 * half, v, delta, 1 - one["confidence"]))
    return (bound <= slack or tests[1](bound - slack * (1 + bound))) and not tests[0](bound + slack * (1 + bound))


def ledger(name: str, data: bytes, pins: list[str], servers: list[str]) -> SimpleNamespace:
    hashes, keys, runs = [""], [loads(data.split(b"\n")[0])["fields"]["identity"]], cast(Any, {})
    spent = {"epsilon": Decimal(0), "delta": Decimal(0)}
    for index, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        at, entry = f"ledgers/{name}.jsonl, line {index + 1}", loads(line)
        kind, told, signature = entry["kind"], entry["fields"], entry.pop("signature")
        by(keys[-1:], "ledger-entry", compact(entry), signature, at)
        hashed = sha256(compact([index, kind, hashes[-1], {k: told[k] for k in told if k != "output"}])).hexdigest()
        link = [entry["index"], entry["previous"], entry["hash"]] == [index, hashes[-1], hashed]
        spelled = compact({**entry, "signature": signature}) == line and data[-1:] == b"\n"
        need(at, one_spelling=spelled, its_place_in_the_chain=link and (kind == "genesis") == (index == 0))
        run = runs.get(told.get("run_id"))
        if kind == "plan":
            text = "\n".join(f"{field}={value!r}" for field, value in sorted(told["plan"].items()))
            digest, known = sha256(text.encode()).hexdigest(), ABSENT.items() & told["plan"].items()
            same = [digest, told["plan"]["delta"]] == [told["plan_digest"], told["delta"]] and not known
            need(at, digest_and_delta_of_the_plan=same, one_plan=run is None)
            accounted(told["epsilon"], told["plan"], at)
            runs[told["run_id"]] = {**told, "rounds": {}}
            for what, before in spent.items():
                cost, most = (math.inf if each is None else each for each in (told[what], told[f"max_{what}"]))
                spent[what] = before + Decimal(repr(float(cost)))
                need(at, plans_within_the_budget=spent[what] <= Decimal(repr(float(most))))
        elif kind == "receipt":
            by(servers, "ledger-head", compact([name, told["count"], told["hash"]]), told["signature"], at)
            head = told["count"] > 0 and hashes[told["count"]] == told["hash"]
            need(at, head_that_was_told=head, receipt=[told["partner"], told["server"] in servers] == [name, True])
        elif kind == "succession":
            by([told["identity"]], "ledger-succession", compact([index, hashes[-1]]), told["consent"], at)
            need(at, a_new_key=told["identity"] not in keys)
            keys.append(told["identity"])
        elif kind == "audit":
            need(at, canaries=told["canaries"] == run["plan"].get("canaries") and run.setdefault("audit", told) is told)
        elif index:
            step(kind, told, run, index + 1, at)
        hashes.append(entry["hash"])
    need(f"ledgers/{name}.jsonl", the_partner_s_own_key={*keys} & {*pins})
    return SimpleNamespace(hashes=hashes, keys=keys, runs=runs, spent=[*spent.values(), len(runs)])


def step(kind: str, told: Any, run: Any, count: int, at: str) -> None:
    plan, rounds, state = run["plan"], run["rounds"], run["rounds"].get(told["round"], {})
    if kind == "reserve":  # then one release, then one opening
        training = [plan["sampling_rate"], plan["noise_multiplier"], plan["local_steps"], plan["rounds"]]
        *takes, most = training if told["stage"] == "train" else [1.0, plan["prior_noise_multiplier"], 1, 1]
        done = [each["stage"] for each in rounds.values()].count(told["stage"])
        asked = [told[k] for k in ("sampling_rate", "noise_multiplier", "releases", "plan_digest")]
        next_one = told["round"] > max(rounds, default=0) and told["stage"] in ("train", "prior") and done < most
        need(at, a_next_round=next_one, what_the_plan_takes=asked == [*takes, run["plan_digest"]])
        rounds[told["round"]] = {**told, "survivors": []}
    elif kind == "release":
        need(at, one_release_of_what_was_reserved=state and "output" not in state)
        state |= {"output": told["output"], "count": count}
    else:
        names, turn = told["survivors"], kind == "open" and "output" in state and not state["survivors"]
        need(at, one_opening=turn, enough_survivors=names == sorted({*names}) and len(names) >= plan["survivors"])
        state |= {"survivors": names}


def transcript(number: int, told: Any, case: SimpleNamespace) -> None:
    at, line, plan = f"transcripts/round-{number:04d}.json", case.lines[number - 1], ABSENT | case.plan
    text, signature, books = told["plan"]["text"].encode(), told.pop("signature"), case.ledgers
    by(case.servers, "round plan", text, told["plan"]["signature"], at)
    by(case.servers, "round transcript", compact(told, True), signature, at)
    order, stage, everyone = loads(text), "prior" if number <= case.prior else "train", []
    asked = [order[k] for k in ("round", "stage", "run_id", "plan", "config", "catalogue_digest")]
    same = asked == [number, stage, case.run_id, case.plan, case.config, case.release["catalogue_sha256"]]
    need(at, plan=same, round=[told["round"], told["format"]] == [number, 1], sums=len(told["sums"]) <= plan["buckets"])
    request = sha256(json.dumps({k: order[k] for k in order if k != "attempt"}, sort_keys=True).encode()).hexdigest()
    for one in told["sums"]:
        names, roster, masked = one["survivors"], [each["name"] for each in one["roster"]], one["masked"]
        signers, parts = [each["name"] for each in one["consents"]], [sha256(text).digest()]
        enough = names == sorted({*names}) == sorted(one["heads"]) and len(names) >= plan["survivors"]
        agreed = signers == sorted({*signers} & {*names}) and len(signers) >= plan["survivors"]
        whole = agreed and len(roster) >= 3 and roster == sorted({*roster, *names} & {*books})
        need(at, survivors=enough, consents=whole if masked else not roster + signers, masks=masked is plan["masked"])
        for offer in one["roster"]:
            offered = [offer["name"].encode(), raw(offer["sealing_key"]), raw(offer["mask_key"])]
            by(books[offer["name"]].keys, "secure sum: offer", joined(parts[0], *offered), offer["signature"], at)
            parts += [*offered, raw(offer["signature"])]
        agreed_on = joined(sha256(joined(b"veilrec/v1/roster", *parts)).digest(), *map(str.encode, names))
        for consent in one["consents"]:
            by(books[consent["name"]].keys, "secure sum: consent", agreed_on, consent["signature"], at)
        for name, head in one["heads"].items():
            state, count = books[name].runs[case.run_id]["rounds"][number], head["count"]
            paid = state["request"] == request and state["survivors"] in ([names] if name in signers else [[], names])
            chained = 0 < state["count"] <= count and books[name].hashes[count] == head["hash"]
            need(f"{at}, {name}", that_it_paid_for_this_sum=paid, the_entry_that_paid=chained)
            need(f"receipts.json, {name}", a_receipt_as_new_as_the_rounds=count <= case.receipts[name]["count"])
        everyone += names
    fits = [line["round"], line["stage"], line["cohort"], len({*everyone})] == [number, stage] + [len(everyone)] * 2
    need(at, the_line_of_rounds=compact(told["record"], True) == compact(line, True), this_round_s_record=fits)


def claims(members: dict[str, bytes], case: SimpleNamespace) -> None:
    run, plan, config, release = case.run, case.plan, case.config, case.release
    told, private = [line["epsilon"] for line in case.lines], run["privacy"]
    before = told[0] if case.prior else None if plan["mode"] == "none" else 0.0
    accounted(before, plan if case.prior else plan | {"prior_noise_multiplier": None}, "rounds.jsonl", "prior")
    need("rounds.jsonl", growing=told[-1] is None or told == sorted(told), claim=told[-1] == private["epsilon"])
    most = max((book.spent for book in case.ledgers.values()), key=lambda each: each[:2])
    spent = {"epsilon": float(most[0]) if most[0].is_finite() else None, "delta": float(most[1]), "plans": most[2]}
    want = ABSENT | plan | {"ledger": spent, "prior_epsilon": before, "epsilon": told[-1]}
    want |= {"randomness": "system" if config["seed"] is None else "seeded"}
    fits = want | private == want and plan.keys() | {"epsilon"} <= private.keys()
    facts = {k: config["model"][k] for k in ("base", "adapted_layers", "lora_rank")}
    facts |= {"base_sha256": release["base_sha256"], "adapter_fingerprint": release["fingerprint"]}
    same = [run["seed"], run["config"], run["data"]["partners"]] == [config["seed"], config, len(case.pins)]
    need("run.json", numbers_of_plan_and_ledgers=fits, configuration=same, the_model=run["model"] == facts)
    data, seal = members["adapter/manifest.json"], loads(members["adapter/manifest.sig"])
    by(case.servers, "release manifest", data, seal["signature"], "adapter/manifest.sig")
    claim, mode = {"epsilon": told[-1], "delta": plan["delta"]}, {"mode": plan["mode"]}
    real = {n[8:]: sha256(d).hexdigest() for n, d in members.items() if n[:8] == "adapter/" and "manifest." not in n}
    need("adapter", its_files=real.items() <= release["files"].items(), claim=release["privacy"] == claim | mode)
    if "audit.json" not in members:
        return
    audit = loads(members["audit.json"])
    asked = [audit["claimed"], audit["format"], ABSENT | audit["plan"], audit["run"]["run_id"]]
    need("audit.json", run=asked == [claim, 1, ABSENT | plan, case.run_id])
    for rung in audit["rungs"]:
        at, estimates, passes = f"audit.json, {rung['name']}", rung["estimates"], (rung["power"] or 0) >= 0.8
        for one in (each for each in estimates if each["estimator"] != "cosines"):
            accounted(one["claimed"], plan, at, one["about"].split(", ")[0])
            if one["estimator"] in ("one-run SNJ", "Gaussian pair"):
                (scores,) = (each for each in rung["scores"] if each["name"] == one["about"])
                need(at, bound_of_its_scores=follows(one, scores["inside"], scores["outside"], plan["delta"]))
                need(at, what_refutes=one["refutes"] is (one["lower_bound"] > (one["claimed"] or math.inf)))
        refuted, whole = any(one["refutes"] for one in estimates), all(one["holds"] for one in rung["measurements"])
        may = {"FAIL": refuted or not whole, "PASS": passes and whole and not refuted, "INCONCLUSIVE": not refuted}
        bound = rung["epsilon_lower_bound"] in [None, *(one["lower_bound"] for one in estimates)]
        need(at, verdict_of_its_numbers=may[rung["verdict"]], bound_of_an_estimate=bound)
    said = {rung["verdict"] + rung["name"][:2] for rung in audit["rungs"]}
    good = "PASS" if "PASS0-" in said and said & {"PASS1-", "PASS2-", "PASS3-"} else "INCONCLUSIVE"
    need("audit.json", verdict=audit["verdict"] == ("FAIL" if any("FAIL" in each for each in said) else good))


def check(data: bytes, trust: str) -> str:
    members, servers = opened(data, trust)
    told = {name: loads(members[f"{name}.json"]) for name in ("run", "receipts", "code")} | loads(members["plan.json"])
    case = SimpleNamespace(servers=servers, release=loads(members["adapter/manifest.json"]), ledgers={}, **told)
    case.pins = {k: [v] if isinstance(v, str) else v for k, v in loads(members["identities.json"]).items()}
    case.lines = [loads(line) for line in members["rounds.jsonl"].splitlines()]
    for name in sorted({*case.receipts} | {Path(name).stem for name in members if name.startswith("ledgers/")}):
        book = case.ledgers[name] = ledger(name, members[f"ledgers/{name}.jsonl"], case.pins[name], servers)
        run, receipt = book.runs.get(case.run_id), case.receipts.get(name)
        claim = run is None or [run["plan"], run["epsilon"]] == [case.plan, case.run["privacy"]["epsilon"]]
        need(f"ledgers/{name}.jsonl", the_claim=claim)
        if receipt:
            head, place = [receipt["partner"], receipt["count"], receipt["hash"]], f"receipts.json, {name}"
            by(servers, "ledger-head", compact(head), receipt["signature"], place)
            need(place, a_head_of_its_ledger=[name, book.hashes[head[1]]] == [head[0], head[2]])
    case.prior = int(case.plan["prior_noise_multiplier"] is not None)
    rounds = [f"transcripts/round-{n + 1:04d}.json" for n in range(case.prior + case.plan["rounds"])]
    found = {name for name in members if name[:12] == "transcripts/"}
    need("rounds", transcripts=found == {*rounds}, lines=len(case.lines) == len(rounds))
    taken = b"".join(members[f"ledgers/{name}.jsonl"] for name in case.ledgers)  # receipts among it
    case.servers = [key for key in servers if key.encode() in taken] or servers[: len(servers) == 1]
    for number, name in enumerate(rounds, start=1):
        transcript(number, loads(members[name]), case)
    claims(members, case)
    keys = ", ".join(f"{name} {' or '.join(case.pins[name])}" for name in case.ledgers)
    return f"consistent: run {case.run_id}, epsilon {case.lines[-1]['epsilon']}; keys as the bundle tells them: {keys}"


if __name__ == "__main__":
    try:
        print(check(Path(sys.argv[1]).read_bytes(), sys.argv[sys.argv.index("--trust") + 1]))
    except Exception as error:  # whatever a bundle breaks is its fault
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
