"""Files are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.files import write_bytes, write_json, write_lines


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_bytes_are_written_and_replaced_and_folders_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    for data in (b"one", b"", b"\x00two"):
        write_bytes(file, data)
        assert file.read_bytes() == data
        assert entries(file.parent) == ["file"]


def test_json_is_read_back_with_its_letters(tmp_path: Path) -> None:
    value = {"name": "Käse 奶酪", "share": 0.1, "none": None}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Käse 奶酪" in text and text.endswith("\n")


def test_lines_are_one_document_each(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"round": 1, "note": "a\nb"}, {"round": 2, "epsilon": None}]
    write_lines(tmp_path / "rounds.jsonl", rows)
    lines = (tmp_path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    write_lines(tmp_path / "rounds.jsonl", [])
    assert (tmp_path / "rounds.jsonl").read_bytes() == b""


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()])
def test_a_crash_at_any_step_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    file = tmp_path / "file"
    write_bytes(file, b"old")

    def crash(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os if step == "fsync" else Path, step, crash)
    with pytest.raises(type(failure)):
        write_bytes(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert entries(tmp_path) == ["file"]


def test_data_are_on_disk_before_the_name_points_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append("fsync")
        sync(handle)

    def replaced(path: Path, target: Path) -> Path:
        steps.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_bytes(tmp_path / "file", b"data")
    assert steps == ["fsync", "replace"]


def test_what_cannot_be_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"path": tmp_path})
    assert entries(tmp_path) == []
