"""The report that ``cxrlt evaluate`` writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest

from cxrlt_cli.artifacts import RunDir, write_predictions
from cxrlt_cli.data.manifest import Prepared

Cxrlt = Callable[..., Any]
NAME = "run <b>&\"'"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return factories.make_dataset(tmp_path_factory.mktemp("made") / "data", count=240)


@pytest.fixture
def run(prepared: Prepared, tmp_path: Path) -> RunDir:
    made = factories.make_run(tmp_path / NAME, prepared, weights=False)
    for split in ("dev", "test"):
        factories.write_logits(made, prepared, split)
    return made


def evaluate(cxrlt: Cxrlt, *arguments: str | Path) -> Any:
    return cxrlt("evaluate", *arguments, "--resamples", "5")


def test_one_run_keeps_its_report(cxrlt: Cxrlt, run: RunDir) -> None:
    done = evaluate(cxrlt, run.path, "--json")
    assert done.code == 0, done.err
    assert done.json["report"] == str(run.report)
    text = run.report.read_text(encoding="utf-8")
    assert "<b>&" not in text
    assert "run &lt;b&gt;&amp;&#34;&#39;" in text
    assert "data:image/jpeg;base64," in text
    assert "cross-fitted by patient" in text
    assert len(text) < 1_000_000
    assert {path.name for path in run.path.iterdir() if "report" in path.name} == {"report.html"}


def test_other_predictions_have_a_report_of_their_own(cxrlt: Cxrlt, run: RunDir) -> None:
    done = evaluate(cxrlt, run.path, "--split", "test")
    assert done.code == 0, done.err
    assert f"report: {run.path / 'report.test.html'}" in done.err.replace("\n", " ").replace("  ", " ")
    assert not run.report.exists()
    assert "fitted on dev" in (run.path / "report.test.html").read_text(encoding="utf-8")


def test_it_says_what_was_chosen_on_these_images(cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path) -> None:
    def said(*arguments: str | Path) -> list[str]:
        assert evaluate(cxrlt, run.path, *arguments, "--report", "a.html").code == 0
        return re.findall(r"[\w ]+ chosen on these images", Path("a.html").read_text(encoding="utf-8"))

    assert said() == ["The epoch was chosen on these images"]
    assert said("--split", "test") == []
    other = factories.make_dataset(tmp_path / "other", count=80)
    write_predictions(run.predictions(f"dev-{other.content_hash[:12]}"), factories.write_logits(run, other, "dev"))
    assert said("--data", other.path) == []
    factories.write_logits(run, prepared, "dev")
    run.run_json.write_text(json.dumps({**run.info(), "average": {"kind": "swa", "epochs": [1, 2]}}))
    assert said() == []


def test_a_report_can_go_elsewhere_or_nowhere(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    assert evaluate(cxrlt, run.path, "--report", tmp_path / "new" / "a.html").code == 0
    assert "<h1>" in (tmp_path / "new" / "a.html").read_text(encoding="utf-8")
    assert evaluate(cxrlt, run.path, "--no-report").code == 0
    assert not run.report.exists()


def test_several_runs_are_compared_in_a_report_where_one_is_asked_for(
    cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path
) -> None:
    other = factories.make_run(tmp_path / "other", prepared, weights=False)
    factories.write_logits(other, prepared, "dev", seed=1)
    assert evaluate(cxrlt, run.path, other.path).code == 0
    assert not list(tmp_path.rglob("*.html"))
    assert evaluate(cxrlt, run.path, other.path, "--report", "both.html").code == 0
    text = Path("both.html").read_text(encoding="utf-8")
    assert "<bdi>other</bdi> minus <bdi>run &lt;b&gt;" in text
    assert "adjusted over the classes" in text


def test_tables_of_other_programs_have_a_report(cxrlt: Cxrlt) -> None:
    rng = np.random.default_rng(0)
    ids = ["image_id,<i>mass</i>,hernia", *(f"<u>{k},{rng.random():.3f},{rng.random():.3f}" for k in range(80))]
    Path("made.csv").write_text("\n".join(ids))
    labels = ["image_id,<i>mass</i>,hernia", *(f"<u>{k},{k % 3 // 2},{k % 5 // 4}" for k in range(80))]
    Path("labels.csv").write_text("\n".join(labels))
    done = evaluate(cxrlt, "--predictions", "made.csv", "--labels", "labels.csv", "--report", "a.html", "--json")
    assert done.code == 0, done.err
    text = Path("a.html").read_text(encoding="utf-8")
    assert "The images are not at hand" in text
    assert "Patients are not known" in text
    assert "No training table was given" in text
    assert "&lt;i&gt;mass" in text
    assert "<u>" not in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-report", "--heatmaps"], "--no-report goes with neither"),
        (["--report", "a.txt"], "the report is an .html file"),
        (["--heatmaps", "SECOND"], "--heatmaps needs one run"),
    ],
)
def test_options_that_contradict_are_refused_before_any_work(
    cxrlt: Cxrlt, run: RunDir, options: list[str], says: str
) -> None:
    done = evaluate(cxrlt, run.path, *(str(run.path) if option == "SECOND" else option for option in options))
    assert done.code == 2
    assert says in done.err.replace("\n", " ")


def test_heat_maps_stand_beside_the_pictures(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    made = factories.make_run(tmp_path / "network", prepared)
    factories.write_logits(made, prepared, "dev")
    plain, warm = tmp_path / "plain.html", tmp_path / "warm.html"
    assert evaluate(cxrlt, made.path, "--report", plain).code == 0
    done = evaluate(cxrlt, made.path, "--report", warm, "--heatmaps")
    assert done.code == 0, done.err
    pictures = [file.read_text(encoding="utf-8").count("data:image/jpeg") for file in (plain, warm)]
    assert pictures[0] > 0
    assert pictures[1] == 2 * pictures[0]
    assert "Grad-CAM" in warm.read_text(encoding="utf-8")
    assert re.search(r"has \d \u00d7 \d places", warm.read_text(encoding="utf-8"))


def test_an_ensemble_has_no_heat_maps(cxrlt: Cxrlt, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrlt_cli.commands.evaluate import html

    opened = replace(html.open_run(run.path), dir=RunDir(run.path / "without"))
    monkeypatch.setattr(html, "open_run", lambda path: opened)
    monkeypatch.setattr(html, "place_of", lambda of, asked: run.report)
    done = evaluate(cxrlt, run.path, "--heatmaps")
    assert done.code == 2
    assert "--heatmaps needs a network" in done.err.replace("\n", " ")


PROBE = """
import json, sys
from pathlib import Path
from cxrlt_cli.commands import evaluate
made = evaluate.run([Path(sys.argv[1])], resamples=2, report=evaluate.Wanted())
print(json.dumps([made.data["report"], sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_a_report_needs_no_torch(run: RunDir) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, run.path], capture_output=True, text=True, check=True, env=os.environ
    )
    report, modules = json.loads(done.stdout.splitlines()[-1])
    assert Path(report).is_file()
    assert not {"torch", "timm", "torchvision", "sklearn"} & set(modules)
