"""The end table of a sweep against figures worked by hand, and its forms."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.bootstrap import Difference, Resampled
from cxrlt_cli.commands.sweep import figures
from cxrlt_cli.commands.sweep.figures import FIGURES, Scored, TableOfRows, Value, _compared, _mean, _Measured
from cxrlt_cli.commands.sweep.plan import Entry
from cxrlt_cli.commands.sweep.table import _latex, _markdown, as_blocks, as_csv, as_latex, as_markdown, write_tables
from cxrlt_cli.events import Notice, silent

NAN = math.nan


def entry(name: str, runs: int = 2) -> Entry:
    return Entry(name, "", tuple(RunDir(Path(f"{name}-{k}")) for k in range(runs)), None, ((),) * runs)


def measured(name: str, points: list[float], reps: list[float], images: str = "ab") -> _Measured:
    same = {figure: np.array(points) for figure in FIGURES}
    drawn = {figure: Resampled(known, np.array(reps)) for figure, (_, known) in FIGURES.items()}
    return _Measured(entry(name, len(points)), (tuple(images),) * len(points), same, drawn)


def test_a_row_is_the_mean_over_seeds_with_its_interval() -> None:
    (row,) = _compared([measured("a", [0.2, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5])], "a", silent)
    value = row.values["macro_ap"]
    assert (value.mean, value.each) == (pytest.approx(0.3), (0.2, 0.4))
    assert value.sd == pytest.approx(math.sqrt(2) / 10)  # |0.2 - 0.4| / sqrt(2)
    # the standard deviation of the five replicates is sqrt(0.025), with four degrees of freedom; on the logit scale
    reach = stats.t.ppf(0.975, 4) * math.sqrt(0.025) / (0.3 * 0.7)
    ends = [1 / (1 + math.exp(math.log(0.7 / 0.3) - side * reach)) for side in (-1, 1)]
    assert (value.low, value.high) == (pytest.approx(ends[0], abs=1e-6), pytest.approx(ends[1], abs=1e-6))
    assert row.differences is None


def test_the_bias_of_a_row_is_told_below_the_table() -> None:
    (row,) = _compared([measured("a", [0.2], [0.1, 0.2, 0.3])], "a", silent)
    assert row.values["macro_ap"].bias == 0
    assert "too high" not in as_markdown(table())
    biased = {name: replace(value, bias=0.0123) for name, value in table().rows[0].values.items()}
    moved = replace(table(), rows=(replace(table().rows[0], values=biased),))
    assert "too high, here by up to 0.012; its intervals" in as_markdown(moved)


def test_a_difference_is_paired() -> None:
    a = measured("a", [0.2, 0.4], [0.30, 0.32, 0.28, 0.31])
    b = measured("b", [0.3, 0.5], [0.41, 0.42, 0.37, 0.41])
    _, row = _compared([a, b], "a", silent)
    assert row.differences is not None
    found = row.differences["tail_ap"]
    differences = np.array([0.11, 0.10, 0.09, 0.10])
    assert found.value == pytest.approx(0.1)
    low, high = stats.t.interval(0.95, 3, 0.1, differences.std(ddof=1))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.detectable == pytest.approx(stats.t.ppf([0.975, 0.8], 3).sum() * differences.std(ddof=1))
    assert row.difference_sd == pytest.approx(0)  # each seed differs by the same 0.1


def test_p_values_are_adjusted_for_the_rows() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=999)
    rows = [measured("ref", [0.5], list(0.5 + 0 * noise))]
    rows += [measured(f"r{k}", [0.5 + d], list(0.5 + d + 0.01 * noise)) for k, d in enumerate((0.03, 0.012, 0.03))]
    _, first, middle, last = _compared(rows, "ref", silent)
    assert first.differences is not None
    assert middle.differences is not None
    p = first.differences["macro_ap"].p
    assert p == pytest.approx(2 * stats.norm.sf(3), rel=0.3)
    assert (first.adjusted, last.adjusted) == (pytest.approx(3 * p), pytest.approx(3 * p))
    assert middle.adjusted == pytest.approx(middle.differences["macro_ap"].p)


def test_other_images_are_not_compared() -> None:
    said: list[Any] = []
    a, b = measured("a", [0.2], [0.2, 0.3]), measured("b", [0.2], [0.2, 0.3], images="ac")
    assert _compared([a, b], "a", said.append)[1].differences is None
    assert isinstance(said[0], Notice)
    assert "other images" in said[0].text


@pytest.mark.parametrize(
    ("images", "seeds", "freedom"), [("aaa", {"a": 0}, 8.0), ("abc", {"a": 0, "b": 1, "c": 2}, 24.0)]
)
def test_repetitions_on_the_same_images_share_their_resamples(
    images: str, seeds: dict[str, int], freedom: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds, and folds that are all scored on test; a mean over folds of their own has three times the freedom."""
    asked = {}

    def resampled(plan: object, found: SimpleNamespace, seed: int) -> object:
        asked[found.image_id] = seed
        drawn = {known: Resampled(known, np.array([0.1, 0.2, 0.3]), freedom=8.0) for _, known in FIGURES.values()}
        return SimpleNamespace(overall=drawn, groups=dict.fromkeys(("head", "medium", "tail"), drawn), resamples=3)

    found = iter(images)
    monkeypatch.setattr(figures, "open_run", lambda path: path)
    monkeypatch.setattr(figures, "predicted", lambda run, asked, emit: SimpleNamespace(image_id=next(found)))
    monkeypatch.setattr(figures, "_evaluated", lambda found: SimpleNamespace(overall={}, groups=defaultdict(dict)))
    monkeypatch.setattr(figures, "_resampled", resampled)
    one = figures._measure(SimpleNamespace(split="test"), entry("r", 3), {}, silent)  # type: ignore[arg-type]
    assert asked == seeds
    assert one.reps["macro_ap"].freedom == pytest.approx(freedom)


def test_undefined_folds_are_left_out_of_the_mean() -> None:
    values = np.array([[0.2, NAN, 0.4], [NAN, NAN, NAN]])
    assert _mean(values).tolist() == pytest.approx([0.3, NAN], nan_ok=True)


def test_the_mean_over_seeds_is_taken_within_each_resample() -> None:
    """Two runs whose errors cancel have an interval narrower than either: that is what pooling has to show."""
    one, two = np.array([0.1, 0.3, 0.1, 0.3]), np.array([0.3, 0.1, 0.3, 0.1])
    assert _mean(np.stack([one, two], axis=1)).tolist() == pytest.approx([0.2] * 4)


# -- forms ---------------------------------------------------------------------------------------------------------


def table(name: str = "a_b", split: str = "test", folds: bool = False) -> TableOfRows:
    value = Value(0.25, 0.2, 0.3, 0.01, (0.24, 0.26))
    gone = Value(NAN, NAN, NAN, NAN, (NAN, NAN))
    values = dict.fromkeys(FIGURES, value) | {"tail_ap": gone}
    difference = Difference(-0.0123, -0.03, 0.0049, 0.0004, 0.05)
    nothing = Difference(NAN, NAN, NAN, NAN, NAN)
    differences = dict.fromkeys(FIGURES, difference) | {"tail_ap": nothing}
    rows = (
        Scored(entry("ref"), (5125, 5125), values, None, NAN, NAN),
        Scored(entry(name), (5125, 5125), values, differences, 0.004, 0.0012),
    )
    return TableOfRows("x", "", split, "ref", 2, folds, 1000, rows)


def test_the_terminal_shows_scores_and_differences() -> None:
    scores, differences, groups = as_blocks(table())
    assert not isinstance(scores, str)
    assert not isinstance(differences, str)
    assert not isinstance(groups, str)
    assert scores.title == "x on test: 5,125 images, mean of 2 seeds"
    assert scores.rows[1] == (
        "a_b", "0.2500", "0.2000 to 0.3000", "0.0100", "0.2500", "0.2500", "0.2500", "0.2500", "0.2500", "-",
    )  # fmt: skip
    assert differences.rows[0] == ("a_b", "-0.0123", "-0.0300 to +0.0049", "0.0040", "< 0.001", "0.001", "0.0500")
    assert groups.columns[1::2] == ("head AP", "medium AP", "tail AP")
    assert (groups.rows[0][0], groups.rows[0][-2:]) == ("a_b", ("-", "-"))
    assert "of each fold" in as_blocks(table(folds=True))[0].note  # type: ignore[union-attr]


def test_csv_has_everything_at_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(table()))))
    assert [row["row"] for row in rows] == ["ref", "a_b"]
    assert float(rows[1]["difference_macro_ap_value"]) == -0.0123
    assert float(rows[1]["difference_macro_ap_p_holm"]) == 0.0012
    assert (rows[0]["difference_macro_ap_value"], rows[1]["tail_ap_mean"]) == ("", "")
    assert len({len(line.split(",")) for line in as_csv(table()).splitlines()}) == 1


def test_latex_is_escaped() -> None:
    assert _latex("50 % of a_b & {c} #1 $2 ~x^y \\z") == (
        r"50 \% of a\_b \& \{c\} \#1 \$2 \textasciitilde{}x\textasciicircum{}y \textbackslash{}z"
    )
    assert _latex("-0.1 to +0.2, < 0.001, a-1") == "$-$0.1 to $+$0.2, $<$ 0.001, a-1"
    text = as_latex(table())
    assert r"a\_b & 0.2500" in text
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == text.count("\\toprule") == 3
    for line in text.splitlines():
        if line.endswith("\\\\"):
            assert line.replace(r"\&", "").count("&") in {9, 6}


def test_markdown_is_escaped() -> None:
    assert _markdown("a_b | c*d `e` <f> [g]") == r"a\_b \| c\*d \`e\` \<f\> \[g\]"
    lines = [line for line in as_markdown(table()).splitlines() if line.startswith("|")]
    assert lines[1].startswith("| --- | ---: |")
    assert lines[3].startswith(r"| a\_b | 0.2500 |")
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_files(tmp_path: Path) -> None:
    paths = write_tables(tmp_path, table())
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.tex", "table.json"]
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["rows"][1]["figures"]["tail_ap"]["mean"] is None
    assert data["rows"][1]["difference"]["macro_ap"]["p_holm"] == 0.0012
    assert data["rows"][0]["difference"] is None


def test_every_figure_has_a_heading() -> None:
    from cxrlt_cli.commands.sweep.table import _HEADS

    assert set(_HEADS) == set(figures.FIGURES)
