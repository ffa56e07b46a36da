"""Masks: the published stream, exact cancellation, and no silent misuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ProtocolError
from shared.hazmat import masking
from shared.hazmat.masking import add_mask, mask_of

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())
SEED = bytes(range(32))
WORDS_A_CHUNK = masking._CHUNK // 4


def test_the_stream_is_aes_256_in_counter_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """NIST SP 800-38A, F.5.5, from the counter of the vector."""
    case = VECTORS["aes256_ctr"]
    monkeypatch.setattr(masking, "_FIRST_COUNTER", bytes.fromhex(case["counter"]))
    stream = mask_of(bytes.fromhex(case["key"]), 16).astype("<u4").tobytes()
    plain, cipher = bytes.fromhex(case["plaintext"]), bytes.fromhex(case["ciphertext"])
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)) == cipher


@pytest.mark.parametrize("case", VECTORS["aes256_first_block"]["cases"])
def test_the_stream_starts_at_counter_zero(case: dict[str, str]) -> None:
    assert mask_of(bytes.fromhex(case["key"]), 4).astype("<u4").tobytes().hex() == case["block"]


def test_the_mask_is_the_frozen_one() -> None:
    case = VECTORS["own"]["mask"]
    assert mask_of(bytes.fromhex(case["seed"]), len(case["words"])).tolist() == case["words"]


@pytest.mark.parametrize("n", [0, 1, WORDS_A_CHUNK - 1, WORDS_A_CHUNK, WORDS_A_CHUNK + 1, 3 * WORDS_A_CHUNK + 5])
def test_a_shorter_mask_begins_a_longer_one(n: int) -> None:
    assert np.array_equal(mask_of(SEED, n), mask_of(SEED, 4 * WORDS_A_CHUNK)[:n])


def test_no_part_of_a_long_mask_repeats() -> None:
    """Chunks of the stream must not restart. Two equal words in a row of 8: p < 1e-70."""
    mask = mask_of(SEED, 4 * WORDS_A_CHUNK).reshape(-1, 8)
    assert len(np.unique(mask, axis=0)) == len(mask)


def test_a_mask_is_added_in_place_and_removed_bit_by_bit() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    total = values.copy()
    add_mask(total, SEED, 1)
    assert np.array_equal(total, values + mask_of(SEED, values.size))
    assert (total != values).mean() > 0.999
    add_mask(total, SEED, -1)
    assert np.array_equal(total, values)


def test_a_view_is_masked_in_place() -> None:
    total = np.zeros(20, dtype=np.uint32)
    add_mask(total[::2], SEED, 1)
    assert np.array_equal(total[::2], mask_of(SEED, 10))
    assert not total[1::2].any()


def test_a_mask_looks_uniform() -> None:
    """Bits of 32 positions over 65,536 words, 6 standard errors: a true stream fails with p < 1e-7."""
    words = mask_of(SEED, 2**16)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 2**8


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.float64])
def test_other_types_than_uint32_are_refused(dtype: type) -> None:
    with pytest.raises(ProtocolError, match="Expected a vector of uint32"):
        add_mask(np.zeros(4, dtype=dtype), SEED, 1)


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ProtocolError, match="Expected a vector of uint32"):
        add_mask(np.zeros((2, 2), dtype=np.uint32), SEED, 1)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="Expected a mask seed of 32 bytes"):
        mask_of(bytes(length), 1)


@pytest.mark.parametrize("sign", [0, 2, -2])
def test_another_sign_is_refused(sign: int) -> None:
    with pytest.raises(ProtocolError, match="Expected sign=1 or sign=-1"):
        add_mask(np.zeros(1, dtype=np.uint32), SEED, sign)
