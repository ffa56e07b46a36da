"""What the report reads: ``run.json`` and ``rounds.jsonl`` of a run folder, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError, SchemaError

MOST_ROUNDS = 1_000_000_000
MODES = ("distributed", "local", "none")


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object whose fields are read with their type checked.

    A missing or null field is None (or empty); one of another type is an error that names it.

    Parameters
    ----------
    values : mapping
        The object.
    source : str
        The file, and the line where it has several; for messages.
    path : str
        Dotted place of the object in the file; empty for the whole document.
    """

    values: Mapping[str, object]
    source: str
    path: str = ""

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self._mistyped(name, "a string")

    def number(self, name: str) -> float | None:
        """A number; may be infinite."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._mistyped(name, "a number")
        try:
            return float(value)
        except OverflowError:  # JSON has integers of any length
            raise self._mistyped(name, "a number") from None

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.values.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise self._mistyped(name, "true or false")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where the field is missing."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._mistyped(name, "a list of strings")
        return tuple(value)

    def section(self, name: str) -> Fields:
        """An object; empty where the field is missing."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._mistyped(name, "an object")
        return Fields(value, self.source, self._place(name))

    def sections(self, name: str) -> tuple[Fields, ...]:
        """A list of objects; empty where the field is missing."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise self._mistyped(name, "a list of objects")
        return tuple(Fields(entry, self.source, f"{self._place(name)}[{k}]") for k, entry in enumerate(value))

    def amount(self, name: str) -> float | None:
        """A number that is not negative; may be infinite."""
        value = self.number(name)
        if value is not None and not value >= 0:
            raise self._mistyped(name, "a number of at least 0")
        return value

    def required_amount(self, name: str) -> float:
        """A number that has to be there and is not negative; may be infinite."""
        value = self.amount(name)
        if value is None:
            raise self._mistyped(name, "a number of at least 0")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """A string that has to be there and to be one of `choices`."""
        value = self.text(name)
        if value is None or value not in choices:
            raise self._mistyped(name, f"one of {', '.join(choices)}")
        return value

    def _place(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _mistyped(self, name: str, expected: str) -> SchemaError:
        return SchemaError(f"Expected {expected} in field {self._place(name)} of {self.source}.")


@dataclass(frozen=True, slots=True)
class Round:
    """One line of ``rounds.jsonl``; None where the line does not say.

    `seconds` is wall-clock time, `bytes_up` and `bytes_down` are per partner, `epsilon` is the spend so
    far, `noise_norm` the expected norm of the noise (a public constant), `loss` only exists without privacy.
    """

    number: int
    stage: str
    cohort: float | None
    seconds: float | None
    bytes_up: float | None
    bytes_down: float | None
    epsilon: float | None
    update_norm: float | None
    noise_norm: float | None
    ndcg: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder as the report sees it.

    Attributes
    ----------
    fields : Fields
        All of ``run.json``.
    mode : str
        One of `MODES`.
    epsilon, delta : float
        Of the whole run; infinite and 0 in mode none.
    rounds : tuple of Round
        Empty where there is no ``rounds.jsonl``.
    """

    fields: Fields
    mode: str
    epsilon: float
    delta: float
    rounds: tuple[Round, ...]

    @property
    def privacy(self) -> Fields:
        """The section ``privacy``."""
        return self.fields.section("privacy")


def read_run(run_dir: Path) -> Run:
    """Read and check a run folder.

    Raises
    ------
    DataError
        A file is missing or not JSON.
    SchemaError
        A field is missing or mistyped; the message names file and field.
    """
    path = run_dir / "run.json"
    fields = Fields(_parse(_read(path), str(path)), str(path))
    return check_run(fields, _read_rounds(run_dir / "rounds.jsonl"))


def check_run(fields: Fields, rounds: tuple[Round, ...] = ()) -> Run:
    """Check what every page about a run has to know: its mode and what it spent.

    Raises
    ------
    SchemaError
        ``privacy.mode`` is unknown, or a private run does not say its epsilon and delta.
    """
    privacy = fields.section("privacy")
    mode = privacy.choice("mode", MODES)
    if mode == "none":
        return Run(fields, mode, math.inf, 0.0, rounds)
    return Run(fields, mode, privacy.required_amount("epsilon"), privacy.required_amount("delta"), rounds)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"Expected a file {path}.") from None
    except UnicodeDecodeError:
        raise DataError(f"Expected UTF-8 text in {path}.") from None


def _parse(text: str, source: str) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"Expected JSON in {source}.") from None
    if not isinstance(document, dict):
        raise DataError(f"Expected a JSON object in {source}.")
    return document


def _read_rounds(path: Path) -> tuple[Round, ...]:
    if not path.exists():
        return ()
    lines = _read(path).split("\n")
    return tuple(
        read_round(Fields(_parse(line, f"{path}, line {k}"), f"{path}, line {k}"))
        for k, line in enumerate(lines, start=1)
        if line.strip()
    )


def read_round(line: Fields) -> Round:
    """One line of ``rounds.jsonl``.

    Raises
    ------
    SchemaError
        The round has no whole number, or a field is mistyped.
    """
    number = line.required_amount("round")
    if not number.is_integer() or number > MOST_ROUNDS:
        raise SchemaError(f"Expected a whole number in field round of {line.source}.")
    return Round(
        number=int(number),
        stage=line.text("stage") or "train",
        cohort=line.number("cohort"),
        seconds=line.number("seconds"),
        bytes_up=line.number("bytes_up"),
        bytes_down=line.number("bytes_down"),
        epsilon=line.amount("epsilon"),
        update_norm=line.number("update_norm"),
        noise_norm=line.number("noise_norm"),
        ndcg=line.number("ndcg@10"),
        loss=line.number("loss"),
    )
