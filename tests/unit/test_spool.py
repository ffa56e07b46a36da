"""What a node took and has not answered is there after a kill; nothing else is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from test_attempts import full_after

from client.spool import Spool


@pytest.fixture(autouse=True)
def coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower lets the process of a run alone make messages."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 11)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


def message(text: str = "hello", *, created_at: float = 0.0) -> Message:
    """As it came from the coordinator: with an id, and from the node of the SuperLink."""
    made = Message(RecordDict({"c": ConfigRecord({"text": text})}), dst_node_id=7, message_type="train", group_id="3")
    made.metadata.__dict__["_message_id"] = made.object_id
    if created_at:
        made.metadata.__dict__["_created_at"] = created_at
    return made


def texts(spool: Spool) -> list[object]:
    return [kept.content.config_records["c"]["text"] for kept in spool.left()]


def test_a_kept_message_comes_back_whole_in_another_life(tmp_path: Path) -> None:
    first = message()
    Spool(tmp_path / "spool").keep(first)
    (kept,) = Spool(tmp_path / "spool").left()
    assert kept.content == first.content
    assert kept.metadata.message_id == first.metadata.message_id
    assert (kept.metadata.run_id, kept.metadata.group_id, kept.metadata.message_type) == (11, "3", "train")
    reply = Message(RecordDict(), reply_to=kept)
    assert reply.metadata.reply_to_message_id == first.metadata.message_id


def test_a_message_that_was_answered_is_forgotten(tmp_path: Path) -> None:
    spool, one, other = Spool(tmp_path), message("one"), message("other")
    spool.keep(one)
    spool.keep(other)
    spool.drop(one)
    spool.drop(one)
    assert texts(spool) == ["other"]


def test_the_same_message_is_kept_once(tmp_path: Path) -> None:
    spool, one = Spool(tmp_path), message()
    spool.keep(one)
    spool.keep(one)
    assert texts(spool) == ["hello"]


def test_messages_come_back_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for k in (3, 1, 2):
        spool.keep(message(f"{k}", created_at=1e9 + k))
    assert texts(spool) == ["1", "2", "3"]


def test_before_the_first_message_there_is_none(tmp_path: Path) -> None:
    assert list(Spool(tmp_path / "never").left()) == []


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff" * 90])
def test_a_file_that_holds_no_message_is_dropped(tmp_path: Path, junk: bytes) -> None:
    spool = Spool(tmp_path)
    spool.keep(message())
    (tmp_path / "bad.message").write_bytes(junk)
    assert texts(spool) == ["hello"]
    assert not (tmp_path / "bad.message").exists()


def test_what_a_killed_write_left_is_no_message(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / ".0123.message.a1b2c3d4").write_bytes(b"half")
    assert list(spool.left()) == []


def test_an_id_that_is_a_path_stays_in_the_spool(tmp_path: Path) -> None:
    spool, evil = Spool(tmp_path / "spool"), message()
    evil.metadata.__dict__["_message_id"] = "../../identity"
    spool.keep(evil)
    assert {path.parent for path in tmp_path.rglob("*.message")} == {tmp_path / "spool"}
    spool.drop(evil)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_kept_message_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Spool(tmp_path).keep(message())
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_on_a_full_disk_a_message_is_not_half_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep(message("one"))
    with full_after(1000), pytest.raises(OSError) as raised:
        spool.keep(message("x" * 5000))
    assert raised.value.errno == errno.EFBIG
    assert texts(spool) == ["one"] and len(list(tmp_path.iterdir())) == 1


def test_a_reply_is_the_same_message_in_another_life(tmp_path: Path) -> None:
    """A SuperLink takes one reply to a message and waits for its parts: another one would never be whole."""
    spool, asked = Spool(tmp_path), message()
    assert spool.reply_to(asked) is None
    reply = Message(RecordDict({"a": ConfigRecord({"b": [1.5, 2.5], "c": b"bytes"})}), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    spool.keep(asked)
    spool.keep(asked, reply)
    (left,) = Spool(tmp_path).left()
    again = Spool(tmp_path).reply_to(left)
    assert again is not None and again.content == reply.content
    assert again.metadata.message_id == again.object_id == reply.object_id
    assert get_object_tree(again) == get_object_tree(reply)
    spool.drop(asked)
    assert spool.reply_to(asked) is None and list(tmp_path.iterdir()) == []
