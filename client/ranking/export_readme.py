"""The README.md of an export: what is in the folder, and how another team ranks with it."""

from __future__ import annotations

from shared.adapter import Release

ONNX = """
## onnx/

`pip install numpy onnxruntime tokenizers`, then

```python
from rank import Ranker                # onnx/rank.py: one file, without Veilrec

ranker = Ranker("..")                  # the folder that holds manifest.json; digests are checked
ranker.rank([{"item": "AN-ID", "event": "purchase", "rating": 5, "review": "The user's own words."}], k=10)
ranker.rank_query("a wish in words", k=10)
```

| file | holds |
|---|---|
| `behaviour.onnx` | `vectors` (B, T, H), `events`, `ratings` (B, T) and `lengths` (B,) to `wanted` (B, H + R) |
| `text_encoder.onnx` | `input_ids`, `attention_mask` (B, S) to `text_vectors` and `item_vectors`, each (B, H) |
| `tokenizer.json` | for the library tokenizers; it cuts and pads as the model was trained |
| `arrays.npz` | `inputs` (I, H), `outputs` (I, H + R); the prior: `popularity` (I,), `item_to_item`, `widen` |
| `settings.json` | what the formulas below take as given |
| `rank.py` | all of it in numpy |

Vectors are float32, all other inputs int64. A user is the newest `max_events` events, the oldest first, padded behind.
The vector of an event is the row of its item in `inputs` (zeros without item) plus the text vector of the user's own
words (zeros without). Then

```
score(u, i) = wanted(u) . outputs[i]  +  prior(u)[i]
prior(u)    = popularity_weight popularity  +  weight asinh(steepness z(u))  +  likeness cos(m(u), outputs[:, :H])
z(u)        = sum_t decay^age_t item_to_item[i_t] (@ widen), less its mean over items, over its deviation
m(u)        = sum_t likeness_decay^age_t outputs[i_t, :H]
```

The first term is an inner product: any index of inner products over `outputs` retrieves by it. Items that the user has
met are left out by whoever ranks.
"""

SENTENCE_TRANSFORMERS = """
## sentence-transformers/

```python
SentenceTransformer("sentence-transformers").encode(texts)   # item vectors: cosines with item_vectors.npy
```

This is the frozen text encoder, for items and for plain similarity to a query; texts are read as they are, without a
prompt. It is not the recommender: the behaviour stage reads events, not sentences, and no sentence encoder holds it.
What a user wants is `Ranker.wanted` of `onnx/rank.py`, computed where the user's history lies. Vectors of users are
never exported: they are private.
"""


def readme(release: Release, formats: frozenset[str], n_items: int) -> str:
    """The text for a release, in the `formats` that the export holds."""
    parts = [_head(release, n_items)]
    parts += [ONNX] if "onnx" in formats else []
    parts += [SENTENCE_TRANSFORMERS] if "sentence-transformers" in formats else []
    return "".join(parts)


def _head(release: Release, n_items: int) -> str:
    manifest, privacy = release.manifest, release.manifest["privacy"]
    if privacy["mode"] == "none":
        guarantee = "**Trained without privacy**: a simulation. Its parameters may tell of the people in its data."
    else:
        guarantee = (
            f"Trained with user-level differential privacy, mode {privacy['mode']}: epsilon {privacy['epsilon']:.3g} "
            f"at delta {privacy['delta']:g}. Ranking with it spends nothing."
        )
    return f"""# A Veilrec release for other runtimes

Release version {manifest["version"]}, fingerprint `{manifest["fingerprint"]}`.
Base model {manifest["base"]}, whose licence goes with its weights. {n_items:,} items.

{guarantee}

In this folder are the released parameters, the public catalogue and the released prior. There is no history, no
review, no vector of a user, and nothing that a partner learned for itself. `manifest.json` holds the manifest of the
release and the SHA-256 of every other file here.

`release/` holds that manifest byte for byte, with the signature over it where the release has one. `items.json` names
the items (`item_ids`, `titles`) in the order of all rows; `item_vectors.npy` (I, H) are their normalised vectors by the
frozen encoder.
"""
