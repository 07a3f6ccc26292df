"""Tiny prepared datasets and run directories, written piece by piece, for tests of what reads them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import (
    ModelCard,
    Predictions,
    RunDir,
    read_predictions,
    write_json,
    write_predictions,
    write_text,
)
from cxrlt_cli.data.manifest import Prepared, arrow_table, content_hash, load_prepared, write_table
from cxrlt_cli.data.shards import ShardWriter, allocate, finish, plan_layout
from cxrlt_cli.recipe.load import dump_recipe
from cxrlt_cli.recipe.schema import Recipe

CLASSES = ("effusion", "nodule", "mass", "hernia")
#: Share of positives by class; the last one is drawn so rarely that a split may have none.
SHARES = (0.5, 0.3, 0.1, 0.02)
SIZE = 32


def make_pixels(count: int, size: int = SIZE, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, size, size) blurred noise, every image different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size // 4, size // 4), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def make_dataset(
    path: Path,
    *,
    count: int = 60,
    size: int = SIZE,
    classes: Sequence[str] = CLASSES,
    folds: int = 0,
    fit: str = "pad",
    seed: int = 0,
    labels: npt.NDArray[np.int8] | None = None,
) -> Prepared:
    """A prepared dataset: half train, a quarter dev, a quarter test; two images a patient; views PA, AP, lateral, none.

    Args:
        path: its directory.
        count: images.
        size: side in pixels.
        classes: class names.
        folds: with folds, patients are dealt to them in turn.
        fit: as stated in dataset.json.
        seed: of pixels and labels.
        labels: (count, C); default: drawn with ``SHARES``.
    """
    rng = np.random.default_rng(seed)
    pixels = make_pixels(count, size, seed)
    if labels is None:
        shares = np.resize(SHARES, len(classes))
        labels = (rng.random((count, len(classes))) < shares).astype(np.int8)
    layout = plan_layout(path / "images", size, count)
    allocate(layout)
    with ShardWriter(layout) as writer:
        crc = [writer.write(index, image) for index, image in enumerate(pixels)]
    finish(layout)
    patient = np.arange(count) // 2
    split = np.array(["train", "train", "dev", "test"])[patient % 4]
    columns: dict[str, Any] = {
        "image_id": image_ids(count),
        "patient_id": [f"p{number}" for number in patient],
        "study_id": [""] * count,
        "view": [("PA", "AP", "lateral", "")[index % 4] for index in range(count)],
        "split": split.tolist(),
        "path": image_ids(count),
        "sha256": [""] * count,
        "pixel_sha256": [""] * count,
        **{name: np.full(count, size) for name in ("file_size", "width", "height")},
        "bits": np.full(count, 8),
        "shard": np.arange(count) // layout.per_shard,
        "row": np.arange(count) % layout.per_shard,
        "crc32": np.array([zlib.crc32(image.tobytes()) for image in pixels]),
    }
    assert columns["crc32"].tolist() == crc
    if folds:
        columns["fold"] = (patient % folds).astype(np.int8)
    table = arrow_table(columns, classes, labels)
    info = {
        "format": 1,
        "name": path.name,
        "classes": list(classes),
        "image_size": size,
        "fit": fit,
        "images": count,
        "counts": {},
    }
    write_table(path / "manifest.parquet", table)
    write_json(path / "dataset.json", {**info, "content_hash": content_hash(table, info)})
    return load_prepared(path)


def image_ids(count: int) -> list[str]:
    """The identifiers of a dataset of ``count`` images."""
    return [f"image_{index:03d}.png" for index in range(count)]


def write_images(folder: Path, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> list[Path]:
    """The images as files, losslessly."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    return [folder / name for name in names]


def make_card(prepared: Prepared, **changes: Any) -> ModelCard:
    """The card of a small network trained on ``prepared``."""
    stats = prepared.stats(prepared.rows("train"))
    values: dict[str, Any] = {
        "classes": prepared.classes,
        "positives": stats.positives,
        "negatives": stats.negatives,
        "image_size": prepared.size,
        "in_chans": 1,
        "fit": prepared.fit,
        "backbone": {"name": "timm", "model": "test_resnet"},
        "head": {"name": "linear"},
        "loss": {"name": "bce"},
        "dataset": prepared.content_hash,
        "epoch": 3,
        "score": 0.5,
    }
    return ModelCard(**{**values, **changes})


def make_run(
    path: Path, prepared: Prepared, *, data: dict[str, Any] | None = None, weights: bool = True, **card: Any
) -> RunDir:
    """A finished run on ``prepared``.

    Args:
        path: the run directory.
        prepared: the dataset.
        data: further keys of the recipe's ``data`` section.
        weights: false writes a model file with its card and link only, quickly and without torch.
        card: changes of the model card.
    """
    made = make_card(prepared, **card)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "data": {"path": str(prepared.path), **(data or {})},
            "model": {"backbone": {**made.backbone, "pretrained": False}, "head": made.head, "in_chans": 1},
            "loss": made.loss,
            "train": {"batch_size": 8},
        }
    )
    run = RunDir(path)
    write_text(run.recipe, dump_recipe(recipe))
    dataset = {"path": str(prepared.path), "name": prepared.name, "hash": prepared.content_hash}
    write_json(run.run_json, {"format": 1, "name": "tiny", "status": "finished", "dataset": dataset})
    tensors = link_tensors(len(made.classes)) if made.linked else {}
    if weights:
        _save_network(run.model, made, tensors)
    else:
        _save_link(run.model, made, tensors)
    return run


def link_tensors(classes: int) -> dict[str, npt.NDArray[np.float64]]:
    """A link by which the log-odds of class c are the logit less c."""
    knots = np.array([-20.0, 0.0, 20.0])
    return {"link.logit": knots, "link.log_odds": knots[None, :] - np.arange(classes)[:, None]}


def expected_posteriors(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """What ``link_tensors`` makes of (N, C) logits."""
    return np.asarray(1 / (1 + np.exp(-(logits.astype(np.float64) - np.arange(logits.shape[1])))))


def _save_network(path: Path, card: ModelCard, link: dict[str, npt.NDArray[np.float64]]) -> None:
    import torch

    from cxrlt_cli.model import build_from_card, save_model

    torch.manual_seed(0)
    model = build_from_card(card)
    with torch.no_grad():
        model.head.weight.normal_(std=10.0)  # logits that differ between images
    tensors = {name: torch.from_numpy(value) for name, value in link.items()}
    save_model(path, {**model.state_dict(), **tensors}, card)


def _save_link(path: Path, card: ModelCard, link: dict[str, npt.NDArray[np.float64]]) -> None:
    from safetensors.numpy import save_file

    save_file({"head.bias": np.zeros(len(card.classes), np.float32), **link}, path, metadata=card.metadata())


def write_logits(run: RunDir, prepared: Prepared, split: str, *, seed: int = 0, fold: int | None = None) -> Predictions:
    """Predictions of a split that know something about the labels."""
    rows = prepared.rows(split, fold=fold)
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(len(rows), len(prepared.classes))) + 2 * prepared.labels[rows]).astype(np.float32)
    frame = prepared.frame.iloc[rows]
    made = Predictions(prepared.classes, frame["image_id"].tolist(), frame["patient_id"].tolist(), logits)
    write_predictions(run.predictions(split), made)
    return made


def shuffle(path: Path) -> None:
    """Bring the rows and the four classes of kept predictions into another order."""
    kept = read_predictions(path)
    rows, columns = np.random.default_rng(0).permutation(len(kept.image_id)), [2, 0, 3, 1]
    shuffled = replace(
        kept,
        classes=tuple(kept.classes[c] for c in columns),
        image_id=[kept.image_id[row] for row in rows],
        patient_id=[kept.patient_id[row] for row in rows],
        logits=kept.logits[rows][:, columns],
    )
    write_predictions(path, shuffled)


def rewrite_card(path: Path, **changes: Any) -> None:
    """Change entries of the card in a model file, leaving its tensors."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        card = json.loads(file.metadata()["card"])
    save_file(tensors, path, metadata={"format": "pt", "card": json.dumps({**card, **changes})})
