"""A release as ONNX graphs and arrays: the behaviour stage, the text encoder, the catalogue and the prior.

The graphs hold no catalogue. Item residuals, learned vectors of items, become a part of two arrays instead: they are
added to the text vectors that are read, and appended to the item vectors that are scored against, so that the score of
the texts is one product, ``wanted @ outputs.T``, and any index of inner products can serve it.

Shapes: B users or texts, T events, S word pieces, I items, H width, R width of the item residuals (0 without).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from client.ranking import export_reference
from client.ranking.scorer import QUERY_BEHAVIOUR_WEIGHT, QUERY_POPULARITY_WEIGHT
from shared.adapter import Release
from shared.errors import ConfigError, IntegrityError
from shared.files import write_bytes, write_json
from shared.model.behaviour import RATING_STEPS, SCALE_GAIN, BehaviourStage, CatalogueVectors, EventBatch
from shared.model.merged import merged
from shared.model.prior_scores import LIKENESS_DECAY, STEEPNESS
from shared.model.prior_texts import completed
from shared.model.weights import BaseModel, find_base, load_bert, load_tokenizer
from shared.schema import EVENT_KINDS

if TYPE_CHECKING:
    from transformers import BertModel

OPSET = 18
TOLERANCE = 1e-3
"""The most by which a graph's numbers may be away from the model's. Seen: 3e-6."""
Named = dict[str, Tensor]


class BehaviourGraph(nn.Module):
    """What a user wants next, from vectors of events: ``(B, T, H)`` to ``(B, H + R)``."""

    def __init__(self, model: BehaviourStage) -> None:
        super().__init__()
        self.stage = merged(model)
        residuals, self.stage.residuals = self.stage.residuals, None  # they are in the arrays
        self.narrow = None if residuals is None else residuals.narrow
        self.register_buffer("nothing", torch.zeros(1, model.width))

    def forward(self, vectors: Tensor, events: Tensor, ratings: Tensor, lengths: Tensor) -> Tensor:
        """The normalised and scaled vector after the newest event, and the item residuals' part behind it."""
        stage, catalogue = self.stage, CatalogueVectors(self.get_buffer("nothing"), self.get_buffer("nothing"))
        without = torch.full_like(events, -1)  # all that is read of an event's texts lies in `vectors`
        hidden = stage.newest(EventBatch(without, events, ratings, lengths, vectors, without), catalogue)
        wanted = hidden if stage.head is None else hidden + stage.head(hidden)
        scale = stage.config.temperature * torch.exp(SCALE_GAIN * stage.scale.weight)
        wanted = F.normalize(wanted, dim=-1) * scale
        return wanted if self.narrow is None else torch.cat([wanted, self.narrow(hidden)], dim=-1)


class EncoderGraph(nn.Module):
    """The frozen BERT as `shared.model.text` reads it: word pieces ``(B, S)`` to two vectors, each ``(B, H)``."""

    def __init__(self, bert: BertModel, adapted_layers: int) -> None:
        super().__init__()
        self.bert, self.below = bert, bert.config.num_hidden_layers - adapted_layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Text vectors (means below the adapted layers) and item vectors (normalised means behind all)."""
        seen = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        weights = attention_mask.unsqueeze(-1).float()
        x = self.bert.embeddings(input_ids=input_ids)
        states = [x]
        for layer in self.bert.encoder.layer:
            x = layer(x, attention_mask=seen)
            states.append(x)
        below, above = ((state * weights).sum(1) / weights.sum(1) for state in (states[self.below], x))
        return below, F.normalize(above, dim=-1)


def write_onnx(folder: Path, release: Release, vectors: CatalogueVectors, passages: Sequence[str]) -> None:
    """Write the graphs, the arrays, and how to rank with them; each graph is compared with the model that it is of.

    Raises
    ------
    ConfigError
        If onnx or onnxruntime is not installed.
    IntegrityError
        If a graph does not compute what the model does.
    """
    require_onnx()
    base = find_base(release.config.model.base)
    _write_graph(
        folder / "behaviour.onnx",
        BehaviourGraph(release.model).eval(),
        _events(release.model.width, release.config.model.max_events),
        {"vectors": "BT", "events": "BT", "ratings": "BT", "lengths": "B"},
        ("wanted",),
    )
    tokenizer = _write_tokenizer(folder / "tokenizer.json", base, release.config.model.max_tokens)
    _write_graph(
        folder / "text_encoder.onnx",
        EncoderGraph(load_bert(base), release.config.model.adapted_layers).eval(),
        _pieces(tokenizer, passages),
        {"input_ids": "BS", "attention_mask": "BS"},
        ("text_vectors", "item_vectors"),
    )
    write_bytes(folder / "arrays.npz", _packed(_arrays(release, vectors)))
    write_json(folder / "settings.json", _settings(release))
    write_bytes(folder / "rank.py", Path(export_reference.__file__).read_bytes())


def require_onnx() -> None:
    """Refuse to begin what cannot be finished.

    Raises
    ------
    ConfigError
        If onnx or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ConfigError("Expected onnx and onnxruntime for format=onnx: pip install 'veilrec[export]'.") from None


def _write_graph(file: Path, graph: nn.Module, example: Named, axes: dict[str, str], outputs: tuple[str, ...]) -> None:
    import onnx

    dynamic = {name: dict(enumerate(letters)) for name, letters in axes.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing is called old, and is: but the newer exporter takes twenty times as long, writes the paths of this
        # machine's source files into the graph, and makes a slower one (tried with torch 2.13, onnxscript 0.7).
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(example.values()),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(axes),
            output_names=list(outputs),
            dynamic_axes=dynamic | {name: {0: "B"} for name in outputs},
        )
    onnx.checker.check_model(str(file))
    _compare(file, graph, example)


@torch.inference_mode()
def _compare(file: Path, graph: nn.Module, example: Named) -> None:
    """Also with one row and a shorter time axis than the graph was traced with: what was taken as fixed shows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for rows, places in ((None, None), (1, 2)):
        cut = {key: t[:rows] if t.dim() == 1 else t[:rows, :places] for key, t in example.items()}
        if "lengths" in cut:
            cut["lengths"] = cut["lengths"].clamp(max=cut["events"].shape[1])
        expected = graph(*cut.values())
        try:
            found = session.run(None, {key: tensor.numpy() for key, tensor in cut.items()})
        except Exception as error:  # onnxruntime's errors have no family of their own
            raise IntegrityError(f"{file.name}: Expected a graph that runs ({type(error).__name__}).") from None
        for mine, theirs in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
            # Not "any > tolerance": what is no number is refused too.
            if mine.shape != theirs.shape or not bool((np.abs(mine.numpy() - theirs) <= TOLERANCE).all()):
                raise IntegrityError(f"{file.name}: Expected the numbers of the model within {TOLERANCE:g}.")


def _events(width: int, most: int) -> Named:
    """Histories of several lengths, made up, with every kind of event and rating."""
    random = torch.Generator().manual_seed(0)
    return {
        "vectors": 0.3 * torch.randn(3, most, width, generator=random),
        "events": torch.randint(0, len(EVENT_KINDS), (3, most), generator=random),
        "ratings": torch.randint(0, RATING_STEPS + 1, (3, most), generator=random),
        "lengths": torch.tensor([most, 1, max(1, most // 2)]),
    }


def _pieces(tokenizer: Any, passages: Sequence[str]) -> Named:
    """Word pieces of a few public texts: the shortest and the longest are among them."""
    ordered = sorted((passage for passage in passages if passage), key=len)
    tokens = tokenizer.encode_batch([*ordered[:1], *ordered[-2:], "A text."])
    return {
        "input_ids": torch.tensor([one.ids for one in tokens]),
        "attention_mask": torch.tensor([one.attention_mask for one in tokens]),
    }


def _write_tokenizer(file: Path, base: BaseModel, max_tokens: int) -> Any:
    """The base's tokenizer, set to cut and pad as the text stage does."""
    from tokenizers import Tokenizer

    own = load_tokenizer(base)
    tokenizer = Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=own.pad_token_id, pad_token=own.pad_token)
    write_bytes(file, tokenizer.to_str().encode())
    return tokenizer


@torch.inference_mode()
def _arrays(release: Release, vectors: CatalogueVectors) -> dict[str, NDArray[np.floating[Any]]]:
    """`inputs` (I, H) and `outputs` (I, H + R), and the prior with what texts tell of its weights."""
    inputs, outputs, residuals = vectors.texts, vectors.items, release.model.residuals
    if residuals is not None:
        inputs = inputs + residuals.inputs(torch.arange(len(inputs)))
        outputs = torch.cat([outputs, residuals.factors.weight], dim=1)
    prior = completed(release.prior, vectors.items.numpy()).arrays()
    for made_use_of in ("unseen", "text_weights"):
        prior.pop(made_use_of, None)
    return {"inputs": compact(inputs.numpy()), "outputs": compact(outputs.numpy()), **prior}


def compact(array: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """In half the bytes where that loses nothing: what the text stage made."""
    half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else array


def _packed(arrays: dict[str, NDArray[np.floating[Any]]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return buffer.getvalue()


def _settings(release: Release) -> dict[str, Any]:
    model, prior = release.config.model, release.config.prior
    return {
        "width": release.model.width,
        "max_events": model.max_events,
        "max_tokens": model.max_tokens,
        "rating_max": model.rating_max,
        "rating_steps": RATING_STEPS,
        "event_kinds": list(EVENT_KINDS),
        "prior": {
            "weight": prior.weight,
            "decay": prior.decay,
            "popularity_weight": prior.popularity_weight,
            "steepness": STEEPNESS,
            "likeness": 0.0 if release.prior.text_weights is None else float(release.prior.text_weights[0]),
            "likeness_decay": LIKENESS_DECAY,
        },
        "query_behaviour_weight": QUERY_BEHAVIOUR_WEIGHT,
        "query_popularity_weight": QUERY_POPULARITY_WEIGHT,
    }
