"""What an import remembers: which files were taken, up to where each database was read, who must not come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.errors import IntegrityError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Watermark:
    """The largest value of a database's watermark column that was read.

    Parameters
    ----------
    kind : {"number", "time", "text"}
    value : str
        As SQL would write it, without quotes.
    """

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class SourceState:
    """One source.

    Parameters
    ----------
    taken : mapping of str to str
        SHA-256 of every file that was taken, and the stamp (inode, size, time) by which it is known unread.
    watermark : Watermark or None
    """

    taken: Mapping[str, str] = field(default_factory=dict)
    watermark: Watermark | None = None


@dataclass(frozen=True, slots=True)
class IntakeState:
    """All of ``intake/state.json``. It changes in one commit with the data that it is about.

    Parameters
    ----------
    sources : mapping of str to SourceState
    suppressed : frozenset of str
        Marks of users who were erased; see `client.intake.suppression`.
    scrubber : str
        By which all reviews of the data were scrubbed; empty if they were not.
    data : str
        Stamp of the interactions that the last import or erasure left.
    checked : float
        When the sources were last looked at, UTC seconds.
    """

    sources: Mapping[str, SourceState] = field(default_factory=dict)
    suppressed: frozenset[str] = frozenset()
    scrubber: str = ""
    data: str = ""
    checked: float = 0.0

    def source(self, name: str) -> SourceState:
        """What is known of a source; nothing of a new one."""
        return self.sources.get(name, SourceState())

    def with_source(self, name: str, state: SourceState) -> IntakeState:
        """With another state of one source."""
        return replace(self, sources={**self.sources, name: state})

    def to_bytes(self) -> bytes:
        """As the file holds it."""
        told = {
            "format": FORMAT,
            "sources": {
                name: {
                    "taken": dict(sorted(one.taken.items())),
                    "watermark": None if one.watermark is None else [one.watermark.kind, one.watermark.value],
                }
                for name, one in sorted(self.sources.items())
            },
            "suppressed": sorted(self.suppressed),
            "scrubber": self.scrubber,
            "data": self.data,
            "checked": self.checked,
        }
        return (json.dumps(told, indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> IntakeState:
        """Read the file; an empty state where there is none.

        Raises
        ------
        IntegrityError
            If it is not what was written. Starting from nothing would bring users back who were erased.
        """
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != FORMAT:
                raise ValueError
            sources = {
                str(name): SourceState(
                    {str(digest): str(stamp) for digest, stamp in one["taken"].items()},
                    None if one["watermark"] is None else Watermark(*map(str, one["watermark"])),
                )
                for name, one in told["sources"].items()
            }
            suppressed = frozenset(map(str, told["suppressed"]))
            return cls(sources, suppressed, str(told["scrubber"]), str(told["data"]), float(told["checked"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise IntegrityError(f"{path}: Expected the state of an intake (format={FORMAT}).") from None
