"""The report of an evaluation: self-contained, escaped, small, and saying what was measured."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from judged import HOSTILE, judged, worth
from PIL import Image

from cxrlt_cli.bootstrap import holm, paired, replicates
from cxrlt_cli.report import comparison, evaluation
from cxrlt_cli.report.contents import Contrast, Judged, Pictures, Ran
from cxrlt_cli.report.mistakes import worst
from cxrlt_cli.report.page import figure
from cxrlt_cli.report.thumbnails import heated, jpegs, side_of

RAN = Ran([("run", "runs/<b>&\"'")], "name: <script>x</script>", ["<i>remark"], ["<i>warning"])
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes, the cells of tables and the text of a page; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self._open = "", list[str]()
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data


def pictures(one: Judged) -> Pictures:
    rng = np.random.default_rng(0)
    found = worst(one)
    pixels = {mistake.row: rng.integers(0, 256, (96, 96), dtype=np.uint8) for mistake in found}
    warm = {(mistake.row, mistake.c): heated(pixels[mistake.row], rng.random((3, 3))) for mistake in found}
    return Pictures(96, jpegs(pixels), jpegs(warm), places=(3, 3))


def rendered(one: Judged, shots: Pictures | None = None) -> str:
    return evaluation.render(one, RAN, worst(one), shots, worth())


@pytest.fixture(scope="module")
def one() -> Judged:
    return judged()


@pytest.fixture(scope="module")
def text(one: Judged) -> str:
    return rendered(one, pictures(one))


@pytest.fixture(scope="module")
def compared(one: Judged) -> str:
    other = judged(seed=1, name="other")
    made = [each.replicates for each in (other, one)]
    figures = {
        name: paired(other.result.overall[name], one.result.overall[name], *(reps.overall[name] for reps in made))
        for name in ("macro_ap", "ece")
    }
    ap = paired(*(each.result.per_class["ap"] for each in (other, one)), *(reps.per_class["ap"] for reps in made))
    contrast = Contrast("other", one.name, figures, {"tail": figures}, one.classes, ap, holm(ap.p))
    return comparison.render([one, other], [contrast], RAN)


def test_a_figure_beyond_its_interval_is_explained(one: Judged, text: str) -> None:
    """The mAP of medium classes is 0.009 too high, that of all classes by too little to mention."""
    assert one.replicates is not None
    assert "mAP comes out too high, here by up to 0.009;" in text.partition('id="tail"')[0]
    high = replace(one.replicates.overall["macro_ap"], bias=0.02)
    other = replace(one, replicates=replace(one.replicates, overall={**one.replicates.overall, "macro_ap": high}))
    assert "here by up to 0.020;" in comparison.render([one, other], [], RAN)
    assert "too high" not in comparison.render([one, one], [], RAN)
    subset = replace(one.subsets[0], replicates=other.replicates)
    page = evaluation.render(replace(one, subsets=[subset]), RAN, [])
    headline, _, subsets = page.partition('id="subsets"')
    assert "here by up to 0.009;" in headline
    assert "0.020" not in headline  # what is said of subsets is no word about all classes
    assert "here by up to 0.020;" in subsets


def test_the_pages_need_nothing_from_anywhere(text: str, compared: str) -> None:
    for page in (text, compared):
        attributes = Page(page).attributes
        sources = [value for _, name, value in attributes if name in ("src", "srcset", "href", "xlink:href", "action")]
        assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in sources)
        assert not re.search(r"https?:|url\(|@import", page)
        assert not [name for _, name, _ in attributes if name.startswith("on")]
        assert "default-src 'none'" in page


def test_text_from_data_is_escaped(text: str, compared: str) -> None:
    for page in (text, compared):
        parsed = Page(page)
        assert parsed.tags.count("script") == 1
        assert not {"u", "i"} & (set(parsed.tags) - {"i"})
        assert "<script>alert" not in page
        assert "<script>x" not in page
        for name in HOSTILE:
            assert name in parsed.text
        assert "runs/<b>&\"'" in parsed.text
    assert '<img src="x' not in text


def test_no_name_turns_the_text_beside_it() -> None:
    names = ("\u202eEVIL\x00", "\u0639\u0631\u0628\u064a", "\u2069mass", "d", "nowhere")
    one = judged(names, image_id=[f"\u2067{row}" for row in range(300)])
    page = rendered(one)
    assert not re.search("[\x00\u202a-\u202e\u2066-\u2069]", page)
    for drawn in ('<th scope="row">\ufffdEVIL\ufffd</th>', '<tspan class="name">\ufffdEVIL\ufffd</tspan>'):
        assert drawn in page
    called = re.findall(r"<figcaption><b>(.*?) 0\.\d{3}</b><bdi>\ufffd\d+</bdi>", page)
    assert {"<bdi>\ufffdEVIL\ufffd</bdi>", "<bdi>\u0639\u0631\u0628\u064a</bdi>"} < set(called)


def test_every_link_leads_somewhere(text: str) -> None:
    attributes = Page(text).attributes
    places = {value for _, name, value in attributes if name == "id"}
    assert {value for _, name, value in attributes if name == "href"} == {f"#{place}" for place in places - {"spans"}}


def test_every_class_stands_with_its_figures(one: Judged, text: str) -> None:
    rows = {row[0]: row for row in Page(text).rows if len(row) == 16}
    for c, name in enumerate(one.classes):
        row, figures = rows[name], one.result.per_class
        assert row[15] == one.result.group[c]
        assert row[2].rstrip("*") == str(one.result.positives[c])
        assert row[3].startswith("\u2013" if np.isnan(figures["ap"][c]) else f"{figures['ap'][c]:.3f}")
        assert row[6] == ("\u2013" if np.isnan(figures["f1"][c]) else f"{figures['f1'][c]:.3f}")
        assert row[9] == "0.400"


def test_tables_can_be_read_out_and_scrolled_by_keyboard(text: str, compared: str) -> None:
    for page in (text, compared):
        tags = re.findall(r"<th\b(?: scope=\"\w+\")?", page)
        assert set(tags) == {'<th scope="col"', '<th scope="row"'}
        bodies = re.findall(r"<tbody>(.*?)</tbody>", page, flags=re.DOTALL)
        assert all(row.startswith('<th scope="row">') for body in bodies for row in body.split("<tr>")[1:])
        scrolled = [tag for tag in re.findall("<[^>]*>", page) if 'class="scroll"' in tag]
        assert all(re.search('role="region" tabindex="0" aria-label="[^"]+"', tag) for tag in scrolled)


def test_the_headline_has_intervals_and_chance(one: Judged, text: str) -> None:
    shown = "".join(Page(text).text.split())
    low, high = evaluation.figure_of(one.result.overall["macro_ap"], one.replicates.overall["macro_ap"])[1:]
    assert f"mAP{one.result.overall['macro_ap']:.3f}{low:.3f}to{high:.3f}" in shown
    assert f"chance{one.result.overall['chance_ap']:.3f}" in shown
    assert f"beforecalibration{one.before.overall['ece']:.3f}" in shown
    assert "Withoutapositivehere,andleftoutofmAP,F1andAUROC:nowhere." in shown


def test_what_it_was_before_calibration_has_an_interval_where_there_are_resamples(one: Judged) -> None:
    drawn = replicates(one.labels, one.scores, one.image_id, posteriors=one.uncalibrated, resamples=20)
    low, high = drawn.overall["ece"].interval(one.before.overall["ece"])
    shown = "".join(Page(rendered(replace(one, before_replicates=drawn))).text.split())
    assert f"beforecalibration{one.before.overall['ece']:.3f}({low:.3f}to{high:.3f})" in shown


def test_without_resamples_pictures_or_thresholds_a_page_is_whole() -> None:
    one = judged(replicates=None, thresholds=None, uncalibrated=None, before=None, subsets=())
    page = Page(rendered(one))
    assert "img" not in page.tags
    assert "The images are not at hand" in page.text
    assert "before calibration" not in page.text.lower().replace("\n", " ")
    assert "Subsets" not in page.text


def test_all_decisions_right_is_no_error() -> None:
    one = judged()
    right = judged(decisions=one.labels == 1)
    page = Page(rendered(right)).text
    assert "Every decision was right" in page
    assert "No finding was called where it is absent" in page


def test_many_classes_and_pictures_stay_below_a_megabyte() -> None:
    names = [f"finding number {c}" for c in range(120)]
    one = judged(names, np.geomspace(0.4, 0.004, 120), count=600, resamples=3)
    page = rendered(one, pictures(one))
    assert page.count("data:image/jpeg") == 96  # of noise, the hardest to compress
    assert len(page.encode()) < 1_000_000
    assert "Curves below: the 36 classes with most positives here" in page


def test_differences_are_shown_with_their_intervals(compared: str) -> None:
    rows = [row for row in Page(compared).rows if row and row[0] == "mAP"]
    assert re.fullmatch(r"[+\u2212]\d\.\d{3}", rows[0][1])
    assert re.fullmatch(r"[+\u2212]\d\.\d{3} to [+\u2212]\d\.\d{3}", rows[0][2])
    assert "Detectable" in compared


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert figure(-0.0004, 3, "+") == figure(0.0004, 3, "+") == figure(-0.0, 3, "+") == "0.000"
    assert figure(-0.0005001, 3, "+") == "\u22120.001"
    assert figure(0.4, 3, "+") == "+0.400"


def test_words_for_laymen(text: str) -> None:
    shown = " ".join(Page(text).text.split())
    for words in ("area under the ROC curve", "calibration error, all entries", "mean squared error of the posterior"):
        assert words in shown
    assert "1 to 10\u00a0%" in text  # a figure and its % stand on one line


def test_what_ran_stands_run_by_run(one: Judged) -> None:
    facts = [("run", "a"), ("weights", "1"), ("run", "b"), ("split", "dev")]
    page = comparison.render([one, one], [], Ran(facts))
    assert re.findall(r'<dt class="first">(\w+)</dt><dd class="first">(\w+)</dd>', page) == [
        ("run", "b"),
        ("split", "dev"),
    ]


def test_a_heat_map_marks_its_place_and_nothing_else() -> None:
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    made = heated(np.full((96, 96), 100, np.uint8), heat)
    assert made[0, 0, 0] > 150 > made[0, 0, 2]
    assert (made[60:, 60:] == 100).all()


def test_heat_maps_say_how_coarse_they_are_and_where_they_are_empty(one: Judged, text: str) -> None:
    found, made = worst(one), pictures(one)
    assert "has 3 \u00d7 3 places, and the orange is no finer" in text
    assert "no place speaks for it" not in text
    silent = {(found[0].row, found[0].c)}
    page = rendered(one, replace(made, places=(1, 1), silent=silent))
    assert "has 1 \u00d7 1 places: it cannot tell where" in page
    assert page.count("no place speaks for it") == 1
    assert "places" not in Page(rendered(one, Pictures(96, made.plain))).text


def test_pictures_are_told_apart_without_eyes(one: Judged, text: str) -> None:
    said = [value for tag, name, value in Page(text).attributes if (tag, name) == ("img", "alt")]
    first = worst(one)[0]
    image = one.image_id[first.row]
    assert said[:2] == [f"image {image}", f"what speaks for {one.classes[first.c]} in {image}"]


@pytest.mark.parametrize(("size", "side"), [(512, 96), (128, 96), (96, 72), (32, 24)])
def test_thumbnails_are_never_the_pixels_themselves(size: int, side: int) -> None:
    assert side_of(size) == side
    decoded = Image.open(io.BytesIO(jpegs({0: np.zeros((side, side), np.uint8)})[0]))
    assert decoded.format == "JPEG"
    assert decoded.size == (side, side)
