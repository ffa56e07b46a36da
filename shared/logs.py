"""Structured logs: one JSON document a line, and nothing in it that was not meant for a log.

A log is copied, shipped and kept by others than those who may see the data. So no free text is written: an error is
its type and place, never its message, and every other text has to be of a name and a form that are listed here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO

from shared.errors import ConfigError, VeilrecError

LEVELS: Final = ("debug", "info", "warning", "error")
WITHHELD: Final = "[withheld]"
"""Stands where a text was not of a form that may be written."""
Value = str | int | float | bool | None

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_WORD = re.compile(r"[a-z]{1,24}(?:[_-][a-z]{1,24}){0,4}")
_ROUTE = re.compile(r"none|(?:/(?:[A-Za-z0-9_.:-]+|\{[a-z_:]+\})){0,8}/?")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_PARTNER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)")
_FILE = re.compile(r"[a-z][a-z0-9_-]{0,40}(?:\.[a-z]{1,12}){1,2}")

TEXTS: Final[dict[str, re.Pattern[str]]] = {
    "error": _NAME,
    "type": _NAME,
    "family": _NAME,
    "where": re.compile(r"[A-Za-z_<][A-Za-z0-9_.<>]{0,99}:\d{1,6}"),
    "logger": re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}"),
    "signal": re.compile(r"SIG[A-Z0-9]{2,8}"),
    "partner": _PARTNER,
    "process": re.compile(r"[a-z]{1,24}(?:-[a-z0-9]{1,24}){0,3}"),
    "step": _WORD,
    "stage": _WORD,
    "state": _WORD,
    "reason": _WORD,
    "mode": _WORD,
    "route": _ROUTE,
    "run": _HASH,
    "bundle": _HASH,
    "digest": _HASH,
    "fingerprint": _HASH,
    "version": re.compile(r"\d+(?:\.\d+){0,3}(?:[a-z.+-]{0,6}\d{0,4})?"),
    "device": re.compile(r"auto|cpu|mps|cuda(?::\d+)?"),
    "file": _FILE,
    "until": _TIME,
    "since": _TIME,
    "host": re.compile(r"localhost|\d{1,3}(?:\.\d{1,3}){3}|\[?[0-9a-f:]{2,39}\]?"),
}
"""The fields that may hold a text, and the form of it. A name that is not here is withheld, whatever it holds."""
PRIVATE: Final = frozenset(
    {
        "user",
        "users",
        "item",
        "items",
        "person",
        "email",
        "phone",
        "text",
        "title",
        "review",
        "query",
        "event",
        "events",
        "history",
        "rating",
        "list",
        "id",
        "ids",
        "key",
        "secret",
        "token",
        "passphrase",
        "password",
        "seed",
        "noise",
        "nonce",
        "value",
        "values",
        "data",
        "row",
        "rows",
        "cohort",
    }
)
"""Words of a field's name under which not even a number is written: ids are numbers in many shops."""


class Log:
    """Writes lines to a stream. Any thread may call it, and it never raises: a log must not end a round.

    Parameters
    ----------
    stream : text stream or None
        None for no logs.
    level : {"debug", "info", "warning", "error"}
        What is below it is not written.
    fields : str, int, float, bool or None
        Stand in every line, such as ``process="agent"``.

    Raises
    ------
    ConfigError
        If there is no such level.
    """

    def __init__(self, stream: TextIO | None = sys.stderr, level: str = "info", **fields: Value) -> None:
        if level not in LEVELS:
            raise ConfigError(f"log level: Expected one of {', '.join(LEVELS)}, got {level!r}.")
        self._stream, self._lowest = stream, LEVELS.index(level)
        self._fields = fields
        self._lock = threading.Lock()
        self.lost = 0
        """Lines that could not be written: the disk was full, or nobody reads the pipe."""

    @classmethod
    def to_file(cls, file: Path, level: str = "info", **fields: Value) -> Log:
        """A log that is appended to a file that its owner alone may read; the file may be rotated by truncation.

        Raises
        ------
        ConfigError
            If the file cannot be opened.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{file}: Expected a file to log to, got {type(error).__name__}.") from None
        return cls(os.fdopen(handle, "a", encoding="utf-8"), level, **fields)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream, unless it is the process's own."""
        if self._stream is not None and self._stream not in (sys.stderr, sys.stdout):
            with suppress(OSError):
                self._stream.close()

    def tell(self, event: str, *, level: str = "info", because: BaseException | None = None, **fields: Value) -> None:
        """Write one line.

        Parameters
        ----------
        event : str
            What happened, in a word or a few.
        level : str
            One of `LEVELS`.
        because : exception, optional
            The message of a `VeilrecError` is written: it holds no user's text or id (`shared.errors`). Of any other
            error nothing is.
        fields : str, int, float, bool or None
            See `TEXTS` and `PRIVATE`.
        """
        level = level if level in LEVELS else "error"
        if self._stream is None or LEVELS.index(level) < self._lowest:
            return
        told = {name: presentable(name, value) for name, value in {**self._fields, **fields}.items()}
        if isinstance(because, VeilrecError):
            told["why"] = str(because)
        named = event if _WORD.fullmatch(event) else WITHHELD
        line = json.dumps({"time": round(time.time(), 3), "level": level, "event": named, **told}) + "\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self.lost += 1

    def trouble(self, error: BaseException, event: str = "error", *, level: str = "error", **fields: Value) -> None:
        """An error: its type and place; what an error that nobody foresaw says may be anything, and is not written."""
        self.tell(event, level=level, because=error, type=type(error).__name__, where=place(error), **fields)


def presentable(name: str, value: object) -> Value:
    """What may be written of a field: numbers unless its name is private, texts of a listed name and form."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        words = re.split(r"_+", name)
        return value if PRIVATE.isdisjoint(words) and math.isfinite(value) else WITHHELD
    form = TEXTS.get(name)
    return value if isinstance(value, str) and form is not None and form.fullmatch(value) else WITHHELD


def place(error: BaseException) -> str:
    """Where an error was raised: function and line, which are the program's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else "unknown:0"


class LibraryLines(logging.Handler):
    """Turns what libraries log into such lines: who and where, without the message.

    Flower, uvicorn and others put free text, and the text of exceptions, into their logs.

    Parameters
    ----------
    log : Log
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        error = record.exc_info[1] if record.exc_info else None
        self._log.tell(
            "library",
            level=level if level in LEVELS else "info",
            because=error,
            logger=record.name,
            where=f"{record.funcName or 'unknown'}:{record.lineno}",
            type=type(error).__name__ if error else None,
        )


def take_over(log: Log, *, lowest: int = logging.WARNING) -> None:
    """Let `log` be the only way out of the process for what libraries log, from level `lowest` on."""
    root = logging.getLogger()
    root.handlers[:] = [LibraryLines(log)]
    root.setLevel(lowest)
    for other in logging.Logger.manager.loggerDict.values():
        if isinstance(other, logging.Logger):
            other.handlers.clear()
            other.propagate = True
