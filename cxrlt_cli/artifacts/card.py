"""The model card: what a model file says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.errors import RunError

#: Version of model.safetensors; raised when an older reader could not read it.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model file says about itself, stored as JSON in the metadata of ``model.safetensors``.

    That of an ensemble is stored in ``ensemble.safetensors``: its backbone, head and loss are called "ensemble", its
    image size is the largest of its members', its epoch is 0, and its score is judged out of fold.

    Attributes:
        classes: class names, in the order of the outputs.
        positives: images labelled 1 in the training split, per class.
        negatives: images labelled 0 in the training split, per class.
        image_size: side of the images the network saw, in pixels.
        in_chans: input channels of the backbone.
        fit: how images were made square, "pad" or "squash".
        backbone: name and options of the backbone plugin.
        head: name and options of the head plugin.
        loss: name and options of the loss plugin.
        augment: transforms training saw ("flip", "rotate", ...).
        views: image views it was trained on; None means all.
        dataset: content hash of the prepared dataset.
        tta: name and options of the default test-time augmentation.
        linked: whether the file holds a posterior link.
        epoch: epoch the weights are from, counted from 1.
        score: dev macro AP of that epoch, None where undefined.
        format: version of the file.
    """

    classes: tuple[str, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    image_size: int
    in_chans: int
    fit: str
    backbone: dict[str, Any]
    head: dict[str, Any]
    loss: dict[str, Any]
    augment: tuple[str, ...] = ()
    views: tuple[str, ...] | None = None
    dataset: str = ""
    tta: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    linked: bool = True
    epoch: int = 0
    score: float | None = None
    format: int = FORMAT

    @property
    def stats(self) -> ClassStats:
        """Label counts of the training split."""
        return ClassStats(self.classes, self.positives, self.negatives)

    def metadata(self) -> dict[str, str]:
        """The metadata to store in the safetensors file: one entry, since their order in the file is random."""
        return {"card": json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)}


_TUPLES = ("classes", "positives", "negatives", "augment", "views")


def read_card(path: Path) -> ModelCard:
    """The model card in a ``model.safetensors`` or ``ensemble.safetensors``; reads the header only.

    Raises:
        RunError: the file is missing, damaged, or not a cxrlt model.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise RunError(
            "the file is missing", where=str(path), cure="The run has no finished epoch yet: continue its training."
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"is not a readable safetensors file: {error}", where=str(path), cure="The file is damaged; train again."
        ) from error
    return _parse_card(metadata.get("card"), path)


def _parse_card(text: str | None, path: Path) -> ModelCard:
    cure = "Give a model.safetensors written by cxrlt train."
    if text is None:
        raise RunError("is a safetensors file of another program (it has no model card)", where=str(path), cure=cure)
    try:
        raw = json.loads(text)
        known = {f.name for f in fields(ModelCard)}
        values: dict[str, Any] = {key: value for key, value in raw.items() if key in known}
        values |= {key: tuple(values[key]) for key in _TUPLES if values.get(key) is not None}
        card = ModelCard(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"has a damaged model card: {error}", where=str(path), cure=cure) from error
    if card.format > FORMAT:
        raise RunError(
            f"has format {card.format}, this cxrlt reads up to {FORMAT}", where=str(path), cure="Install a newer cxrlt."
        )
    return card
