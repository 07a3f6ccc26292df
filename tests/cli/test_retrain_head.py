"""``cxrlt retrain-head``: another head for a run, as a user makes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_dataset, make_run
from safetensors.numpy import load_file

from cxrlt_cli.artifacts import RunDir, read_card, read_lines, read_predictions
from cxrlt_cli.commands import retrain_head
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.engine import features
from cxrlt_cli.metrics import average_precision
from cxrlt_cli.posterior import read_link

Run = Any
METHODS = ("crt", "lws", "tau-norm", "ncm", "logistic", "keep-best")
QUICK = {
    "crt": ("train.epochs=2",),
    "lws": ("train.epochs=2",),
    "logistic": ("logistic.min_positives=2", "logistic.penalties=[0.1, 1]"),
    "keep-best": ("train.epochs=2", "keep.folds=2"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", count=96)


@pytest.fixture(scope="module")
def parent(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("runs") / "joint", prepared)


def settings(method: str) -> list[str]:
    return [part for setting in QUICK.get(method, ()) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def made(parent: RunDir) -> dict[str, Path]:
    """A run by every method, made once."""
    outs = {method: parent.path.parent / f"by-{method}" for method in METHODS}
    for method, out in outs.items():
        retrain_head.run(parent.path, method, overrides=QUICK.get(method, ()), out=out)
    return outs


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_an_ordinary_run(method: str, made: dict[str, Path], parent: RunDir, prepared: Prepared) -> None:
    run = RunDir(made[method])
    info, card = run.info(), read_card(run.model)
    assert (info["kind"], info["method"], info["status"]) == ("retrain-head", method, "finished")
    assert info["parent"]["path"] == str(parent.path)
    assert (card.classes, card.dataset) == (prepared.classes, prepared.content_hash)
    rows = read_lines(run.metrics)
    assert (rows[-1]["epoch"], rows[-1]["macro_ap"]) == (card.epoch, card.score)
    assert info["best"] == {"epoch": card.epoch, "macro_ap": card.score}
    assert {"head.resolved.yaml", "recipe.resolved.yaml", "decisions.safetensors"} <= {
        p.name for p in run.path.iterdir()
    }
    dev = read_predictions(run.predictions("dev"))
    labels = prepared.labels[prepared.rows("dev")]
    assert np.nanmean(average_precision(labels, dev.logits)) == pytest.approx(card.score)


@pytest.mark.parametrize("method", METHODS)
def test_the_backbone_is_the_parents_bit_for_bit(method: str, made: dict[str, Path], parent: RunDir) -> None:
    before, after = load_file(parent.model), load_file(RunDir(made[method]).model)
    names = {name for name in before if name.startswith("backbone.")}
    assert names == {name for name in after if name.startswith("backbone.")}
    assert any("running_var" in name for name in names)
    for name in names:
        assert before[name].tobytes() == after[name].tobytes(), name
    changed = [name for name in before if name.startswith("head.") and not np.array_equal(before[name], after[name])]
    assert changed or RunDir(made[method]).info()["head"].get("tau") == 0


@pytest.mark.parametrize(("method", "linked"), [("crt", True), ("lws", True), ("logistic", True), ("keep-best", True)])
def test_links(method: str, linked: bool, made: dict[str, Path]) -> None:
    run = RunDir(made[method])
    assert read_card(run.model).linked is linked
    assert read_link(run.model) is not None
    if method == "logistic":
        link = read_link(run.model)
        some = np.linspace(-50, 50, 8).reshape(2, 4)
        np.testing.assert_allclose(link.log_odds_of(some), some)


@pytest.mark.parametrize("method", ["ncm", "tau-norm"])
def test_no_link_is_told(method: str, made: dict[str, Path], cxrlt: Run) -> None:
    assert read_link(RunDir(made[method]).model) is None
    said = cxrlt("evaluate", made[method])
    assert said.code == 0
    assert f"the method '{method}' has no posterior link" in said.err


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_and_predict_take_it(method: str, made: dict[str, Path], cxrlt: Run, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(made[method], run)
    kept = read_predictions(RunDir(run).predictions("dev"))
    figures = cxrlt("evaluate", run, "--json").json["runs"][0]
    report = RunDir(run).report.read_text(encoding="utf-8")
    assert f"<dt>made by</dt><dd>retrain-head ({method}) from " in report
    assert "linear" in report.partition("<dt>plugins</dt>")[2].partition("</dd>")[0]
    assert figures["overall"]["macro_ap"] == pytest.approx(read_card(RunDir(run).model).score)
    assert cxrlt("predict", run, "--split", "test").code == 0
    assert cxrlt("predict", run, "--split", "dev").code == 0
    again = read_predictions(RunDir(run).predictions("dev"))
    if method != "keep-best":  # whose dev predictions are cross-fitted
        np.testing.assert_allclose(again.logits, kept.logits, rtol=1e-3, atol=1e-3)
    assert again.image_id == kept.image_id


def test_what_is_said(parent: RunDir, made: dict[str, Path], cxrlt: Run) -> None:
    said = cxrlt("retrain-head", parent.path, "tau-norm", "--out", made["tau-norm"])
    assert said.code == 0
    assert "already finished" in said.err
    assert "cannot change AP or AUROC" in said.out
    assert "+0.0000 to +0.0000" in said.out
    found = cxrlt("retrain-head", parent.path, "lws", *settings("lws"), "--out", made["lws"], "--json").json
    assert found["compared"]["macro_ap"]["difference"] == 0
    assert found["compared"]["macro_ap"]["p"] == 1
    crt = cxrlt("retrain-head", parent.path, "crt", *settings("crt"), "--out", made["crt"], "--json").json
    ap = crt["compared"]["macro_ap"]
    assert ap["difference"] == pytest.approx(ap["after"] - ap["before"])
    assert ap["low"] <= ap["difference"] <= ap["high"]
    assert ap["after"] == pytest.approx(read_card(RunDir(made["crt"]).model).score)


def test_features_are_computed_once(
    parent: RunDir, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "_compute", lambda *_: pytest.fail("computed again"))
    out = tmp_path / "again"
    retrain_head.run(parent.path, "crt", overrides=QUICK["crt"], out=out)
    assert RunDir(out).model.read_bytes() == RunDir(made["crt"]).model.read_bytes()
    head = load_file(RunDir(out).model)["head.weight"]
    retrain_head.run(parent.path, "crt", overrides=[*QUICK["crt"], "train.seed=1"], out=tmp_path / "other")
    assert not np.array_equal(load_file(tmp_path / "other" / "model.safetensors")["head.weight"], head)


def test_dry_run_writes_nothing(parent: RunDir, made: dict[str, Path], cxrlt: Run, tmp_path: Path) -> None:
    plan = cxrlt("retrain-head", parent.path, "--out", tmp_path / "dry", "--dry-run", "--json").json
    assert (plan["feature_sets"], plan["feature_sets_to_compute"]) == (2, 0)
    other = cxrlt(
        "retrain-head", parent.path, "--out", tmp_path / "dry", "--dry-run", "--json", "--set", "features.dtype=float32"
    ).json
    assert other["bytes_to_compute"] == 4 * 48 * 96  # 96 features of each of 48 training images
    assert not (tmp_path / "dry").exists()


def test_the_default_place_is_beside_the_run(parent: RunDir, made: dict[str, Path]) -> None:
    result = retrain_head.run(parent.path, "ncm")
    assert result.data["run"] == str(parent.path.with_name("joint-ncm"))


def test_an_interrupted_run_continues(
    parent: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cxrlt: Run, made: dict[str, Path]
) -> None:
    from cxrlt_cli.engine import closed_heads

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(closed_heads, "_class", stop)
        with pytest.raises(KeyboardInterrupt):
            retrain_head.run(parent.path, "logistic", overrides=QUICK["logistic"], out=out)
    assert RunDir(out).info()["status"] == "failed"
    said = cxrlt("retrain-head", parent.path, "logistic", *settings("logistic"), "--out", out)
    assert said.code == 0
    assert RunDir(out).model.read_bytes() == RunDir(made["logistic"]).model.read_bytes()


# -- what is refused -----------------------------------------------------------------------------------------------


def test_other_work_is_not_overwritten(parent: RunDir, made: dict[str, Path], cxrlt: Run) -> None:
    said = cxrlt("retrain-head", parent.path, "ncm", "--set", "ncm.distance=euclidean", "--out", made["ncm"])
    assert said.code == 5
    assert "ncm.distance: cosine -> euclidean" in said.err
    onto_parent = cxrlt("retrain-head", parent.path, "ncm", "--out", parent.path)
    assert onto_parent.code == 2
    assert "whose head is to be replaced" in onto_parent.err
    onto_other = cxrlt("retrain-head", made["crt"], "ncm", "--out", parent.path)
    assert onto_other.code == 5
    assert "another kind" in onto_other.err


def test_other_weights_are_not_mixed(prepared: Prepared, cxrlt: Run, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "one", prepared), tmp_path / "out"
    assert cxrlt("retrain-head", run.path, "ncm", "--out", out).code == 0
    info = json.loads((out / "run.json").read_text())
    info["parent"]["weights"] = "0" * 64
    (out / "run.json").write_text(json.dumps(info))
    said = cxrlt("retrain-head", run.path, "ncm", "--out", out)
    assert said.code == 5
    assert "other weights" in said.err
    assert cxrlt("retrain-head", run.path, "ncm", "--out", out, "--fresh").code == 0
    assert len(list(tmp_path.glob("out.before-*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere"], 5, "no such run directory"),
        (["RUN", "nothing.yaml"], 2, "nothing.yaml"),
        (["RUN", "demo_phantom"], 2, "not a head recipe"),
        (["RUN", "crt", "--set", "loss=bse"], 4, "no loss 'bse'"),
        (["RUN", "ncm", "--set", "tau=1"], 2, "does not use 'tau'"),
        (["RUN", "crt", "--set", "features.views=2"], 2, "without augmentation"),
        (["RUN", "crt", "--data", "elsewhere"], 3, "elsewhere"),
        (["RUN", "crt", "--device", "tpu"], 2, "device"),
    ],
)
def test_bad_input(parent: RunDir, cxrlt: Run, arguments: list[str], code: int, text: str) -> None:
    said = cxrlt("retrain-head", *[str(parent.path) if a == "RUN" else a for a in arguments], "--out", "result")
    assert said.code == code, said.err
    assert text in said.err
    assert "Traceback" not in said.err


def test_a_head_that_cannot_be_scaled(prepared: Prepared, cxrlt: Run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "cosine", prepared, head={"name": "cosine"})
    said = cxrlt("retrain-head", run.path, "tau-norm", "--out", tmp_path / "out")
    assert said.code == 2
    assert "not answer in proportion" in said.err
    assert RunDir(tmp_path / "out").info()["status"] == "failed"


def test_another_dataset_may_teach(parent: RunDir, cxrlt: Run, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", count=80, seed=9)
    said = cxrlt("retrain-head", parent.path, "ncm", "--data", other.path, "--out", tmp_path / "moved")
    assert said.code == 0, said.err
    card = read_card(tmp_path / "moved" / "model.safetensors")
    assert card.dataset == other.content_hash
    assert card.positives == other.stats(other.rows("train")).positives
    assert cxrlt("evaluate", tmp_path / "moved").code == 0


def test_a_spatial_head_gets_maps(parent: RunDir, cxrlt: Run, tmp_path: Path) -> None:
    arguments = ("--set", "train.epochs=1", "--set", "head=csra", "--set", "features.dtype=float32")
    said = cxrlt("retrain-head", parent.path, "crt", *arguments, "--out", tmp_path / "csra")
    assert said.code == 0, said.err
    kept = read_predictions(RunDir(tmp_path / "csra").predictions("dev"))
    assert cxrlt("predict", tmp_path / "csra", "--split", "dev").code == 0
    again = read_predictions(RunDir(tmp_path / "csra").predictions("dev"))
    np.testing.assert_allclose(again.logits, kept.logits, rtol=1e-3, atol=1e-4)
