"""What a score is worth on another split, in the report: bars that add up, words where there is no number, a table."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html import unescape

import pytest
from judged import CHANGES, fall, judged, worth

from cxrlt_cli.gap import COMPONENTS, Gap
from cxrlt_cli.report import evaluation
from cxrlt_cli.report.contents import Ran, Worth
from cxrlt_cli.report.svg import Fall, is_cut, waterfall
from cxrlt_cli.report.worth import Cell, section

ROW = re.compile(
    r'<div class="fall"><span class="label">(?P<label>.*?)</span>'
    r'<span class="note(?P<words> dim)?">(?P<note>.*?)</span><div class="lane(?: bare)?">(?P<lane>.*?)</div></div>'
)
BAR = re.compile(r'<rect class="(\w+)" x="([-\d.]+)%" y="0" width="([\d.]+)%"')
WHISKER = re.compile(r'<line class="whisker(?: thick)?" x1="([-\d.]+)%" x2="([-\d.]+)%" y1="6" y2="6"/>')
OBSERVED = re.compile(r'<line class="l2" x1="([\d.]+)%"')
LEVEL = re.compile(r'<line class="level" x1="([\d.]+)%"')


def rows_of(drawing: str) -> list[re.Match[str]]:
    return list(ROW.finditer(drawing))


def drawn(of: Worth, heading: str = "mAP") -> list[re.Match[str]]:
    return rows_of(next(one["drawing"] for one in section(of)["pictures"] if one["heading"] == heading))


def bar(row: re.Match[str]) -> tuple[str, float, float]:
    """Colour, left and right."""
    found = BAR.search(row["lane"])
    assert found, row["label"]
    return found[1], float(found[2]), float(found[2]) + float(found[3])


def of_component(rows: list[re.Match[str]], name: str) -> re.Match[str]:
    return next(row for row in rows if unescape(row["label"]).startswith(f"{name} as in"))


def only(name: str, **changes: object) -> Worth:
    """A gap of one figure."""
    start = {"ece": 0.0021}.get(name, 0.36)
    of = worth()
    return replace(of, gap=Gap({name: fall(name, start, **changes)}, ("mass",), (), None, 10))  # type: ignore[arg-type]


# -- drawings ------------------------------------------------------------------------------------------------------


def test_every_bar_begins_where_the_one_above_ended() -> None:
    rows = drawn(worth())
    labels = [unescape(row["label"]).split()[0] for row in rows]
    assert labels == ["on", *COMPONENTS, "expected", "observed"]
    level = bar(rows[0])[2]
    for name in COMPONENTS:
        row, made = of_component(rows, name), CHANGES[name]
        assert float(LEVEL.search(row["lane"])[1]) == pytest.approx(level, abs=0.02)  # type: ignore[index]
        if isinstance(made, str):
            continue
        kind, left, right = bar(row)
        assert kind == ("end" if made[0] == 0 else "up" if made[0] > 0 else "down")
        assert (right if made[0] < 0 else left) == pytest.approx(level, abs=0.02)
        level = left if made[0] < 0 else right
    assert bar(rows[-2])[1:] == pytest.approx((0, level), abs=0.02)


def test_lengths_are_those_of_the_changes() -> None:
    rows = drawn(worth())
    per_cent = bar(rows[0])[2] / 0.36
    for name in ("classes", "labels", "prevalence", "size"):
        _, left, right = bar(of_component(rows, name))
        assert right - left == pytest.approx(abs(CHANGES[name][0]) * per_cent, abs=0.02)  # type: ignore[arg-type]
    low, high = map(float, WHISKER.search(of_component(rows, "labels")["lane"]).groups())  # type: ignore[union-attr]
    assert (low / per_cent, high / per_cent) == pytest.approx((0.44 - 0.09, 0.44 - 0.01), abs=1e-4)
    assert not WHISKER.search(of_component(rows, "size")["lane"])
    assert float(OBSERVED.search(rows[0]["lane"])[1]) == pytest.approx(0.37 * per_cent, abs=0.02)  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "says"),
    [("checkpoint", "not estimated"), ("decisions", "0 by construction"), ("views", "not estimated")],
)
def test_what_is_not_known_stands_in_words_and_is_not_drawn(name: str, says: str) -> None:
    row = of_component(drawn(worth()), name)
    assert row["note"] == says
    assert row["words"]
    assert not BAR.search(row["lane"])
    assert not WHISKER.search(row["lane"])


def test_a_measured_nothing_is_drawn() -> None:
    row = of_component(drawn(worth()), "patients")
    assert row["note"] == "0.000"
    assert not row["words"]
    assert WHISKER.search(row["lane"])


def test_the_expected_score_has_both_intervals() -> None:
    row = drawn(worth())[-2]
    assert row["note"] == "0.364 (0.304 to 0.424)"
    inner, outer = (tuple(map(float, found)) for found in WHISKER.findall(row["lane"]))
    assert outer[0] < inner[0] < inner[1] < outer[1]
    assert "average over such test sets: 0.334 to 0.394, one such test set: 0.304 to 0.424" in row["lane"]
    alone = drawn(worth(), "F1")[-2]
    assert len(WHISKER.findall(alone["lane"])) == 1
    assert alone["note"] == "0.364 (0.334 to 0.394)"


def test_the_observed_score_is_said_to_fit_or_not() -> None:
    assert drawn(worth())[-1]["note"] == "0.370, inside the interval"
    assert drawn(worth(), "AUROC")[-1]["note"] == "0.500, outside the interval"
    assert drawn(worth(), "F1")[-1]["note"] == "0.300"  # there is no interval of one test set to fit
    blind = drawn(worth(observed={}))
    assert not any(OBSERVED.search(row["lane"]) for row in blind)
    assert unescape(blind[-1]["label"]).startswith("expected")


def test_small_figures_have_more_digits() -> None:
    rows = drawn(worth(), "ECE")
    assert rows[0]["note"] == "0.0021"
    assert of_component(rows, "classes")["note"] == "+0.0004"


def test_an_axis_that_does_not_start_at_0_is_marked() -> None:
    rows = [Fall("a", "", end=0.8, stands=True), Fall("b", "", 0.8, 0.81), Fall("c", "", 0.81, 0.81, stands=True)]
    assert is_cut(rows)
    assert waterfall(rows, title="").count('class="break"') == 2
    assert not is_cut(rows, observed=0.4)
    assert "break" not in waterfall(rows, title="", observed=0.4)
    assert section(only("macro_ap"))["cut"] == []
    close = replace(worth(), observed={}, gap=Gap({"macro_ap": fall(scale=0.1)}, ("mass",), (), None, 10))
    assert section(close)["cut"] == ["mAP"]


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.3, 0.3), (0.002, -0.001)])
def test_any_figures_can_be_drawn(ends: tuple[float, float]) -> None:
    """Nothing at all, no change, and an interval that reaches below 0."""
    rows = [Fall("a", "", end=ends[0], stands=True), Fall("b", "", ends[0], ends[0], ((ends[1], ends[0]),))]
    made = rows_of(waterfall(rows, title=""))
    places = [*bar(made[0])[1:], *bar(made[1])[1:], *map(float, WHISKER.search(made[1]["lane"]).groups())]  # type: ignore[union-attr]
    assert all(-0.01 <= place <= 100 for place in places)


# -- the section ---------------------------------------------------------------------------------------------------


def test_the_table_says_the_same() -> None:
    made = section(worth())
    rows = {label.split()[0]: cells for label, cells in made["rows"]}
    assert made["headings"] == ["mAP", "AUROC", "F1", "ECE"]
    assert list(rows) == ["on", *COMPONENTS, "expected", "average", "one", "observed"]
    assert [cells[0] for cells in rows.values()] == [
        Cell("0.360"),
        Cell("+0.080", "+0.050 to +0.100"),
        Cell("not estimated", words=True),
        Cell("0 by construction", words=True),
        Cell("0.000", "0.000 to 0.000"),
        Cell("\u22120.050", "\u22120.090 to \u22120.010"),
        Cell("not estimated", words=True),
        Cell("\u22120.020", "\u22120.060 to +0.020"),
        Cell("\u22120.006"),
        Cell("0.364"),
        Cell("0.334 to 0.394"),
        Cell("0.304 to 0.424"),
        Cell("0.370"),
    ]
    assert rows["one"][2] == Cell("not known", words=True)
    assert "observed" not in {label.split()[0] for label, _ in section(worth(observed={}))["rows"]}


def test_a_figure_without_a_value_is_said_to_have_none() -> None:
    nothing = fall("macro_ap", math.nan, confidence=(math.nan, math.nan), prediction=None)
    of = worth(gap=Gap({"macro_ap": nothing}, ("mass",), (), None, 10), observed={"macro_ap": math.nan})
    assert [one["drawing"] for one in section(of)["pictures"]] == [""]
    text = page(of)
    assert "It has no value here." in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).split('id="worth"')[1].split("<h2")[0]


def page(of: Worth | None) -> str:
    return evaluation.render(judged(), Ran([]), [], worth=of)


def test_it_stands_in_the_page_where_it_was_asked_for() -> None:
    text = page(worth())
    assert "What this score is worth on &lt;u&gt;test&lt;/u&gt;</h2>" in text
    assert text.count('<div class="falls" role="img" aria-label="') == 4
    assert "mAP from dev to &lt;u&gt;test&lt;/u&gt;: 0.360 on dev, 0.364 expected, 0.370 observed" in text
    assert "<li>Views: &lt;b&gt;not&lt;/b&gt; known.</li>" in text
    assert not re.search("<u>test|<i>hernia|<i>views", text)
    without = page(None)
    assert "is worth on" not in without
    assert 'href="#worth"' not in without
