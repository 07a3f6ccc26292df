"""A short fold on real radiographs, end to end; skipped where the NIH subset is not at hand."""

from pathlib import Path

import pytest

from cxrlt_cli.artifacts import read_predictions
from cxrlt_cli.data.manifest import load_prepared


@pytest.mark.slow
def test_a_short_fold_on_nih_radiographs(shared: Path, cxrlt, tmp_path: Path) -> None:
    source, weights = shared / "data" / "nih-cxr-lt-1k", shared / "weights" / "tf_efficientnet_lite0.safetensors"
    if not (source.is_dir() and weights.is_file()):
        pytest.skip("the NIH subset or the weights are not among the shared data")
    images = ["--images", source / "images", "--labels", source / "labels.csv"]
    assert cxrlt("prepare", "csv", "data", *images, "--size", 64, "--folds", 5).code == 0
    settings = ["data.path=data", "data.fold=0", f"model.backbone.pretrained={weights}", "train.epochs=1"]
    outcome = cxrlt("train", "nih_lite0", *(part for item in settings for part in ("--set", item)), "--out", "run")
    assert outcome.code == 0, outcome.err
    evaluated = cxrlt("evaluate", "run", "--json").json
    assert evaluated["runs"][0]["overall"]["macro_auroc"] > 0.55
    prepared, predictions = load_prepared(tmp_path / "data"), read_predictions(tmp_path / "run/predictions/dev.parquet")
    fold = prepared.frame.set_index("image_id")["fold"]
    assert (fold.loc[predictions.image_id] == 0).all()
    assert len(predictions.image_id) == (fold == 0).sum()
